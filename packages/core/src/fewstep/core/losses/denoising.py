"""Denoising score matching: one squared error of the clean sample, under the weights that make it each known loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fewstep.core.tensors import Reduction, expand_to, precise, reduce_sample

Weighting = Literal["uniform", "snr", "discounted_snr", "snr_plus_one", "truncated_snr", "min_snr", "karras", "flow"]

_WEIGHTS: Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "uniform": lambda a, s, gamma, data: s * 0 + 1,
    "snr": lambda a, s, gamma, data: (a / s) ** 2,
    "discounted_snr": lambda a, s, gamma, data: a**4 / s**2,
    "snr_plus_one": lambda a, s, gamma, data: (a / s) ** 2 + 1,
    "truncated_snr": lambda a, s, gamma, data: ((a / s) ** 2).clamp_min(1),
    "min_snr": lambda a, s, gamma, data: ((a / s) ** 2).clamp_max(gamma),
    "karras": lambda a, s, gamma, data: (a / s) ** 2 + data**-2,
    "flow": lambda a, s, gamma, data: ((a + s) / s) ** 2,
}


def denoising_weight(
    name: Weighting,
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    *,
    gamma: float = 5.0,
    sigma_data: float = 0.5,
) -> Float[Tensor, " b"]:
    """Return the weight on the squared x0 error, one per sample; SNR is ``alpha^2 / sigma^2``.

    ``snr``: the plain eps loss. ``discounted_snr``: alpha^2 times it (SwiftBrush's critic). ``snr_plus_one``: the plain
    v loss of a variance-preserving process. ``flow``: the plain loss on ``eps - x0``. ``truncated_snr``: max(SNR, 1)
    (arXiv 2202.00512). ``min_snr``: min(SNR, gamma) (arXiv 2303.09556). ``karras``: SNR + 1/sigma_data^2 (arXiv
    2206.00364). All but ``uniform`` and ``min_snr`` are infinite at sigma 0.
    """
    return _WEIGHTS[name](alpha, sigma, gamma, sigma_data)


def denoising_loss(
    predicted: Float[Tensor, "b *d"],
    x0: Float[Tensor, "b *d"],
    weight: Float[Tensor, " b"] | None = None,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, " b"]:
    """Return ``weight (predicted - x0)^2``, averaged or summed over elements; the target is detached.

    ``predicted``: the clean sample a network predicts at ``x_t``. Its optimum is the posterior mean, whatever the
    weight.
    """
    error = (precise(predicted) - precise(x0).detach()).square()
    if weight is not None:
        error = error * expand_to(weight, error)
    return reduce_sample(error, reduction)
