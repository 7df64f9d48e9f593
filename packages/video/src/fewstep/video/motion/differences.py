"""Differences of frames: blind to whatever stands still."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise, sample_mean


def frame_difference(clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c g h w"]:
    """Return ``x_{i+1} - x_i``, one frame fewer; UserError for a single frame (MCM, arXiv 2406.06890)."""
    return lagged_difference(clip, 1)


def relative_motion(clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Return the mean square of a clip's frame differences over its variance, detached, whatever its scale.

    0 for a still and for a single frame, 2 for frames that have nothing to do with each other.
    """
    x = precise(clip.detach())
    moved = x.diff(dim=2).square()
    if not moved[0].numel():
        return x.new_zeros(len(x))
    return sample_mean(moved) / x.flatten(1).var(1, correction=0).clamp_min(1e-24)


def lagged_difference(clip: Float[Tensor, "b c f h w"], lag: int) -> Float[Tensor, "b c g h w"]:
    """Return ``x_{i+lag} - x_i``, ``lag`` frames fewer (ours): motion too slow to show from frame to frame.

    Raises UserError unless ``1 <= lag < f``.
    """
    frames = clip.shape[2]
    check(1 <= lag < frames, f"a difference {lag} frames apart does not exist in a clip of {frames}")
    return clip[:, :, lag:] - clip[:, :, :-lag]
