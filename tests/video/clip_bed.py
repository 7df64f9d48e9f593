"""Clips with known motion: discs that cross a torus at a known speed, and stripes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.rng import Rng


def discs(n: int, seed: int = 0, *, speed: float = 1.5, frames: int = 16, side: int = 32, soft: float = 4.0) -> Tensor:
    """Coloured discs on dark ground, "n 3 f h w" in [-1, 1], each in a direction of its own."""
    rng = Rng(seed, 0, tuple(range(n)))
    start, angle = rng.uniform("start", (2,)) * side, rng.uniform("angle") * 2 * math.pi
    radius, colour = 3 + 3 * rng.uniform("radius"), rng.uniform("colour", (3,))
    axis = torch.arange(side).double()
    shown = []
    for i in range(frames):
        centre = start + speed * i * torch.stack([angle.sin(), angle.cos()], 1)
        down, across = ((axis - centre[:, k, None] + side / 2) % side - side / 2 for k in (0, 1))
        distance = down[:, :, None].square() + across[:, None, :].square()
        disc = torch.sigmoid((radius[:, None, None].square() - distance) / soft)
        shown.append(1.6 * disc[:, None] * colour[:, :, None, None] - 0.8)
    return torch.stack(shown, 2).float()


def still(clips: Tensor) -> Tensor:
    """The first frame of every clip, for all of its length."""
    return clips[:, :, :1].expand_as(clips).clone()


def stripes(speed: float, *, period: int = 16, size: float = 0.5, frames: int = 6) -> Tensor:
    """One clip of vertical sinusoidal stripes, float64, three periods and a pixel wide, moving to the right."""
    k = 2 * math.pi / period
    x, i = torch.arange(3 * period + 1).double(), torch.arange(frames).double()
    return (size * torch.sin(k * (x[None] - speed * i[:, None])))[None, None, :, None, :].expand(1, 3, -1, 9, -1)


def alternating(frames: int = 8) -> Tensor:
    """One clip of black and white frames by turns."""
    turns = 2.0 * (torch.arange(frames).double() % 2) - 1
    return turns.reshape(1, 1, frames, 1, 1).expand(1, 3, -1, 6, 6)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Unit normal values, float64."""
    return Rng(seed, 0, tuple(range(shape[0]))).normal("noise", shape[1:], torch.float64)
