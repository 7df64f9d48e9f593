"""Maximum mean discrepancy: distances between sets without a Gaussian assumption, unbiased at any sample size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check

Kernel = Callable[[Float[Tensor, "n d"], Float[Tensor, "m d"]], Float[Tensor, "n m"]]


def polynomial_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return ``(x . y / d + 1)^3``, the kernel of the kernel inception distance (arXiv 1801.01401, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf_kernel(bandwidth: float) -> Kernel:
    """Return the kernel ``exp(-|x - y|^2 / (2 bandwidth^2))``; UserError for a bandwidth that is not positive."""
    check(bandwidth > 0, f"the bandwidth of a kernel must be positive, got {bandwidth:g}")

    def kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return torch.exp(-squared_distances(x, y) / (2 * bandwidth**2))

    return kernel


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Return ``|x_i - y_j|^2``, never below 0, by differences of norms and one matrix product."""
    return (x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T).clamp_min(0)


def median_bandwidth(features: Float[Tensor, "n d"]) -> float:
    """Return the median distance between different samples, the usual bandwidth of a Gaussian kernel."""
    x = features.detach().double().cpu()
    rows, columns = torch.triu_indices(x.shape[0], x.shape[0], offset=1)
    return float(squared_distances(x, x)[rows, columns].sqrt().median())


def mmd(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], kernel: Kernel = polynomial_kernel, *, unbiased: bool = True
) -> float:
    """Return the squared maximum mean discrepancy of two sets, float64 (Gretton et al. 2012, lemma 6 and equation 5).

    ``unbiased`` leaves out the terms of a sample with itself: expectation 0 for equal laws, and values slightly below
    0 happen. Raises UserError for fewer than two samples on a side.
    """
    check(min(x.shape[0], y.shape[0]) >= 2, "a maximum mean discrepancy needs at least 2 samples on each side")
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    within = _mean_within(kernel(x, x), unbiased) + _mean_within(kernel(y, y), unbiased)
    return float(within - 2 * kernel(x, y).mean())


def _mean_within(gram: Tensor, unbiased: bool) -> Tensor:
    n = gram.shape[0]
    return (gram.sum() - gram.diagonal().sum()) / (n * (n - 1)) if unbiased else gram.mean()
