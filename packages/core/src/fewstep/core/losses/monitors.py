"""Divergence estimates to log: several distillation losses have expectation zero, or a value without meaning.

All are detached, one value per sample; zero when, and for an exact fake score only when, student and teacher agree.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from fewstep.core.losses.distances import Distance
from fewstep.core.losses.divergence import FDivergence, density_ratio
from fewstep.core.tensors import expand_to, precise, sample_mean, sample_sum


def gap(x0_teacher: Float[Tensor, "b *d"], x0_fake: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Return the mean over elements of ``(x0_fake - x0_teacher)^2``."""
    return sample_mean((precise(x0_fake) - precise(x0_teacher)).detach().square())


def divergence_rate(
    x0_teacher: Float[Tensor, "b *d"],
    x0_fake: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    log_ratio: Float[Tensor, " b"],
    divergence: FDivergence,
    ratio_limit: float = 10.0,
) -> Float[Tensor, " b"]:
    """Return ``h(r) |S_p - S_q|^2``: its mean is ``-2/alpha^2 dD_f/d(tau^2)``, ``tau = sigma/alpha`` (de Bruijn)."""
    scale = expand_to(alpha / sigma**2, x0_fake)
    score_gap = ((precise(x0_fake) - precise(x0_teacher)) * scale).detach()
    return divergence.h(density_ratio(precise(log_ratio).detach(), ratio_limit)) * sample_sum(score_gap.square())


def distance_of(teacher: Float[Tensor, "b *d"], fake: Float[Tensor, "b *d"], distance: Distance) -> Float[Tensor, " b"]:
    """Return ``d(fake - teacher)``, the divergence score-implicit matching descends."""
    return distance.value((precise(fake) - precise(teacher)).detach())
