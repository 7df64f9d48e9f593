"""Correlations of neighbouring frames: where each place of a frame finds itself in the next one."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from fewstep.core.errors import check
from fewstep.core.tensors import precise


def _neighbours(clip: Tensor) -> tuple[Tensor, Tensor]:
    check(clip.shape[2] >= 2, f"a correlation of frames needs two of them, the clip has {clip.shape[2]}")
    clip = precise(clip)
    return clip[:, :, :-1], clip[:, :, 1:]


def global_correlation(clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b g p q"]:
    """Return ``sum_c a_c(p) b_c(q) / sqrt(c)`` of every place p of a frame and q of the next (arXiv 2406.06890).

    Takes ``(h w)^2`` numbers per pair of frames. Raises UserError for a single frame.
    """
    first, second = _neighbours(clip)
    found: Tensor = torch.einsum("bcfp,bcfq->bfpq", first.flatten(3), second.flatten(3)) / math.sqrt(clip.shape[1])
    return found


def local_correlation(
    clip: Float[Tensor, "b c f h w"], radius: int = 7, *, outside: float = 0.0
) -> Float[Tensor, "b g k h w"]:
    """Return :func:`global_correlation` with the places of the next frame at most ``radius`` away on either axis.

    Entry ``k = (dy + radius) (2 radius + 1) + dx + radius`` is the place ``(y + dy, x + dx)``; beyond the frame's edge
    it is ``outside``, a constant, which no loss between two clips sees. Raises UserError for a single frame and for a
    negative radius.
    """
    check(radius >= 0, f"the radius of a correlation must not be negative, got {radius}")
    first, second = _neighbours(clip)
    height, width = clip.shape[3:]
    edged = pad(second, (radius,) * 4)
    inside = pad(torch.ones(height, width, dtype=torch.bool, device=clip.device), (radius,) * 4)
    scale, side, found = math.sqrt(clip.shape[1]), 2 * radius + 1, []
    for dy in range(side):
        for dx in range(side):
            there = (slice(dy, dy + height), slice(dx, dx + width))
            value = (first * edged[..., there[0], there[1]]).sum(1) / scale
            found.append(torch.where(inside[there], value, outside))
    return torch.stack(found, 2)
