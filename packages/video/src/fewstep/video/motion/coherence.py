"""Temporal coherence: a clip's differences of frames against those of its target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.losses.distances import l2
from fewstep.video.motion.differences import lagged_difference


def coherence_loss(
    made: Float[Tensor, "b c f h w"], target: Float[Tensor, "b c f h w"], lag: int
) -> Float[Tensor, " b"]:
    """Return the mean square of the error of differences of frames ``lag`` apart (DCM, arXiv 2506.03123).

    The target carries no gradient. Raises UserError unless ``1 <= lag < f``.
    """
    return l2(lagged_difference(made, lag), lagged_difference(target.detach(), lag))


__all__ = ["coherence_loss"]
