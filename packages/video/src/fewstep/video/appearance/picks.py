"""Which frames of a clip are looked at."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check


def distinct_frames(uniforms: Float[Tensor, "b f"], count: int) -> Int[Tensor, "b r"]:
    """Return ``count`` distinct frames of each clip, in order of time: those with the smallest of ``uniforms``.

    Raises UserError for more frames than there are.
    """
    frames = uniforms.shape[1]
    check(1 <= count <= frames, f"{count} distinct frames cannot be chosen from a clip of {frames}")
    return uniforms.topk(count, dim=1, largest=False).indices.sort(1).values


def segment_frames(uniforms: Float[Tensor, "b r"], frames: int) -> Int[Tensor, "b r"]:
    """Return one frame from each of ``r`` parts of a clip, which are equal to a frame (MCM, arXiv 2406.06890).

    Raises UserError for more parts than frames.
    """
    count = uniforms.shape[1]
    check(1 <= count <= frames, f"a clip of {frames} frames has no {count} parts")
    edges = torch.arange(count + 1, device=uniforms.device) * frames // count
    sizes = edges[1:] - edges[:-1]
    return edges[:-1] + torch.minimum((uniforms * sizes).long(), sizes - 1)


def pick_frames(clip: Float[Tensor, "b c f h w"], picks: Int[Tensor, "b r"]) -> Float[Tensor, "n c h w"]:
    """Return the picked frames of every clip, those of one clip next to each other, ``n = b r``."""
    rows = torch.arange(len(clip), device=clip.device)[:, None]
    return clip.transpose(1, 2)[rows, picks].flatten(0, 1)
