"""Differences of frames: blind to whatever stands still."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check


def frame_difference(clip: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c g h w"]:
    """Return ``x_{i+1} - x_i``, one frame fewer; UserError for a single frame (MCM, arXiv 2406.06890)."""
    return lagged_difference(clip, 1)


def lagged_difference(clip: Float[Tensor, "b c f h w"], lag: int) -> Float[Tensor, "b c g h w"]:
    """Return ``x_{i+lag} - x_i``, ``lag`` frames fewer (ours): motion too slow to show from frame to frame.

    Raises UserError unless ``1 <= lag < f``.
    """
    frames = clip.shape[2]
    check(1 <= lag < frames, f"a difference {lag} frames apart does not exist in a clip of {frames}")
    return clip[:, :, lag:] - clip[:, :, :-lag]
