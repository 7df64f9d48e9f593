"""Trajectory distribution matching (TDM, arXiv 2503.06674): the algebra of a point on the student's own trajectory.

A student at ``t_i`` predicts (x0, eps) and lands on ``x_m = alpha_m x0 + sigma_m eps``; noise carries that on to
``x_tau = A x_m + beta e``. Because x0 and eps come from one prediction they are dependent, so that the score of
``x_tau`` is not what plain denoising of x0 learns. Two ways to a density with a meaning: weigh samples by
:func:`noise_importance` (the density of ``alpha_tau x0 + sigma_tau n``, n independent: DMD's marginal), or learn
:func:`conditional_score_target` (the density of ``x_tau`` itself). With ``m`` at clean data all of them coincide.

Everything is in anchor-free coordinates.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.losses.distances import huber_scale, l2, pseudo_huber, pseudo_huber_elementwise
from fewstep.core.losses.surrogate import self_normaliser
from fewstep.core.process import Coefficients
from fewstep.core.tensors import Reduction, expand_to, precise, reduce_sample

MatchingDistance = Literal["l2", "pseudo_huber", "pseudo_huber_elementwise"]


class Kernel(NamedTuple):
    """``x_tau = scale x_m + std e``, both "b"."""

    scale: Tensor
    std: Tensor


def forward_kernel(middle: Coefficients, after: Coefficients) -> Kernel:
    """Return the kernel of noising from ``middle`` up to ``after``: ``A^2 sigma_m^2 + beta^2 = sigma_tau^2``."""
    scale = after.alpha / middle.alpha
    return Kernel(scale, (after.sigma**2 - (scale * middle.sigma) ** 2).clamp_min(0).sqrt())


def effective_noise(
    eps: Float[Tensor, "b *d"], fresh: Float[Tensor, "b *d"], middle: Coefficients, after: Coefficients
) -> Float[Tensor, "b *d"]:
    """Return the ``n`` with ``x_tau = alpha_tau x0 + sigma_tau n``: ``(A sigma_m eps + beta e) / sigma_tau``."""
    kernel = forward_kernel(middle, after)
    own = expand_to(kernel.scale * middle.sigma / after.sigma, eps)
    return own * precise(eps) + expand_to(kernel.std / after.sigma, eps) * precise(fresh)


def noise_importance(
    noise: Float[Tensor, "b *d"],
    fresh: Float[Tensor, "b *d"],
    *,
    reduction: Reduction = "mean",
    limit: float = 10.0,
) -> Float[Tensor, " b"]:
    """Return ``exp(|e|^2/2 - |n|^2/2)``, detached: how likely the effective noise ``n`` is beside the drawn ``e``.

    "sum" is the exact density ratio up to a constant; "mean" over elements is the tempered one of TDM's code: it does
    not underflow for images. The exponent is clamped to ``+-limit``.
    """
    exponent = reduce_sample((precise(fresh).square() - precise(noise).square()).detach() / 2, reduction)
    return torch.exp(exponent.clamp(-limit, limit))


def conditional_score_target(
    x_tau: Float[Tensor, "b *d"], x_m: Float[Tensor, "b *d"], middle: Coefficients, after: Coefficients
) -> Float[Tensor, "b *d"]:
    """Return the clean sample whose score at ``x_tau`` is ``grad log p(x_tau | x_m)`` (Phased DMD, arXiv 2510.27684).

    ``(x_tau - (sigma_tau^2/beta^2) (x_tau - A x_m)) / alpha_tau``: a fake score fitted to it learns the density of
    ``x_tau``. Its variance grows as ``tau`` nears ``m``.
    """
    kernel = forward_kernel(middle, after)
    share = expand_to((after.sigma / kernel.std) ** 2, x_tau)
    residual = precise(x_tau) - expand_to(kernel.scale, x_tau) * precise(x_m)
    return (precise(x_tau) - share * residual) / expand_to(after.alpha, x_tau)


def trajectory_matching_loss(
    x0: Float[Tensor, "b *d"],
    x0_teacher: Float[Tensor, "b *d"],
    x0_fake: Float[Tensor, "b *d"],
    *,
    distance: MatchingDistance = "pseudo_huber_elementwise",
    c: float | None = 1e-3,
    normalise: bool = True,
    floor: float = 1e-6,
) -> Float[Tensor, " b"]:
    """Return the distance of ``x0`` from ``sg[x0 + x0_teacher - x0_fake]`` over ``mean |x0 - x0_teacher|``.

    TDM (arXiv 2503.06674) and its code: the teacher is the guided one. ``l2`` is a mean over elements without 1/2, so
    its gradient is ``2 (x0_fake - x0_teacher) / n``. ``pseudo_huber`` takes the norm of the whole sample, ``c`` by
    default ``0.00054 sqrt(n)`` when None (paper); elementwise is a mean over elements (code, c = 1e-3).
    """
    x0, shift = precise(x0), (precise(x0_fake) - precise(x0_teacher)).detach()
    difference = shift + (x0 - x0.detach())  # the target never rounds the shift against x0
    zero, scale = torch.zeros_like(difference), huber_scale(x0) if c is None else c
    if distance == "l2":
        value = l2(difference, zero)
    elif distance == "pseudo_huber":
        value = pseudo_huber(difference, zero, scale)
    else:
        value = pseudo_huber_elementwise(difference, zero, scale)
    return value / self_normaliser(x0, x0_teacher, floor=floor) if normalise else value
