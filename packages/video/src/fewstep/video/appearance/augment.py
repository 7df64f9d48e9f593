"""Differentiable augmentation of frames before a discriminator sees them (DiffAugment, arXiv 2006.10738)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 7  # uniform numbers per frame


def augment_frames(frames: Float[Tensor, "n c h w"], uniforms: Float[Tensor, "n 7"]) -> Float[Tensor, "n c h w"]:
    """Return frames with brightness, saturation, contrast, place and a square of each changed by its own draws.

    Brightness moves by up to 0.5; saturation is scaled by 0 to 2, contrast by 0.5 to 1.5; the frame moves by up to an
    eighth of its sides, filled with 0, and a square of a fifth of them is set to 0 (the settings of MCM, arXiv
    2406.06890). The middle, 0.5, of the first five draws changes nothing.
    """
    u = uniforms.to(frames)[:, :, None, None, None]
    x = frames + (u[:, 0] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * u[:, 1])
    level = x.mean((1, 2, 3), keepdim=True)
    x = level + (x - level) * (u[:, 2] + 0.5)
    height, width = x.shape[2:]
    x = _moved(_moved(x, uniforms[:, 3], 2), uniforms[:, 4], 3)
    cut = _span(uniforms[:, 5], height)[:, None, :, None] & _span(uniforms[:, 6], width)[:, None, None, :]
    return torch.where(cut.to(x.device), 0, x)


def crop_frames(frames: Float[Tensor, "n c h w"], side: int, place: tuple[float, float]) -> Float[Tensor, "n c k k"]:
    """Return a square of ``side`` pixels of frames larger than it; ``place`` in [0, 1): where, down and across."""
    rooms = [frames.shape[axis] - side for axis in (2, 3)]
    if min(rooms) <= 0:
        return frames
    top, left = (min(int(u * (room + 1)), room) for u, room in zip(place, rooms, strict=True))
    return frames[:, :, top : top + side, left : left + side]


def _moved(x: Tensor, u: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    most = round(size / 8)
    shift = (u * (2 * most + 1)).long().clamp_max(2 * most).to(x.device) - most
    source = torch.arange(size, device=x.device)[None] - shift[:, None]
    shape = [len(x), 1, 1, 1]
    shape[axis] = size
    index = source.clamp(0, size - 1).reshape(shape).expand_as(x)
    outside = ((source < 0) | (source >= size)).reshape(shape)
    return torch.where(outside, 0, x.gather(axis, index))


def _span(u: Tensor, size: int) -> Tensor:
    """The fifth of an axis around a random place, cut off at its ends."""
    length = round(size / 5)
    start = (u * (size + 1 - length % 2)).long() - length // 2
    places = torch.arange(size, device=u.device)[None] - start[:, None]
    return (places >= 0) & (places < length)
