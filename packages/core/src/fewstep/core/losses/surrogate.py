"""Losses given by their gradient, and the scale that keeps such gradients comparable between noise levels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.tensors import Reduction, precise, reduce_sample, sample_mean


def gradient_surrogate(
    x: Float[Tensor, "b *d"], direction: Float[Tensor, "b *d"], *, reduction: Reduction = "mean"
) -> Float[Tensor, " b"]:
    """Return a loss per sample of ``x`` whose gradient is ``direction`` ("sum") or ``direction / n`` ("mean"), exactly.

    Its value is ``|direction|^2 / 2``, reduced likewise: a size to look at, not an objective. It equals the usual
    ``|x - sg(x - direction)|^2 / 2``, but never rounds ``direction`` against ``x``. No gradient enters ``direction``.
    """
    direction, x = precise(direction).detach(), precise(x)
    return reduce_sample(direction.square() / 2 + direction * (x - x.detach()), reduction)


def self_normaliser(
    x0: Float[Tensor, "b *d"], x0_teacher: Float[Tensor, "b *d"], *, floor: float = 1e-6
) -> Float[Tensor, " b"]:
    """Return ``mean |x0 - x0_teacher|`` of each sample, detached and at least ``floor`` (DMD, arXiv 2311.18828, eq. 8).

    Dividing by it makes a gradient ``x0_fake - x0_teacher`` independent of the scale of the data and nearly so of the
    noise level. ``x0_teacher`` is the guided prediction where there is guidance.
    """
    return sample_mean((precise(x0) - precise(x0_teacher)).detach().abs()).clamp_min(floor)
