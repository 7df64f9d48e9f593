"""Sliced Wasserstein distance: exact one-dimensional transport, averaged over directions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng


def directions(dim: int, count: int, seed: int = 0) -> Float[Tensor, "k d"]:
    """Return ``count`` unit vectors, uniform on the sphere, float64: the same for the same seed."""
    raw = Rng(seed, 0, tuple(range(count))).normal("sliced-directions", (dim,), torch.float64)
    unit: Tensor = raw / raw.norm(dim=1, keepdim=True)
    return unit


def wasserstein_1d(x: Float[Tensor, "n k"], y: Float[Tensor, "m k"], power: int = 2) -> Float[Tensor, " k"]:
    """Return ``integral_0^1 |F_x^-1(u) - F_y^-1(u)|^power du`` for every column, exact for any two sample sizes."""
    n, m = x.shape[0], y.shape[0]
    x, y = x.sort(0).values, y.sort(0).values
    # both quantile functions are constant between the merged breakpoints i/n and j/m: whole numbers avoid rounding
    edges = torch.unique(torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]))
    width = edges.diff().double() / (n * m)
    gap = x[edges[:-1] // m] - y[edges[:-1] // n]
    cost: Tensor = (gap.abs() ** power * width[:, None]).sum(0)
    return cost


def sliced_wasserstein(
    x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], *, count: int = 256, power: int = 2, seed: int = 0
) -> float:
    """Return ``(mean over directions of W_p^p)^(1/p)`` of two sets of samples (flattened), float64.

    For two laws that differ by a shift ``c`` it tends to ``|c| (E |u_1|^p)^(1/p)``: ``|c| / sqrt(d)`` for p = 2.
    Source: Bonneel et al. 2015, section 3. Raises UserError for an empty set.
    """
    check(x.shape[0] > 0 and y.shape[0] > 0, "a sliced Wasserstein distance needs samples on both sides")
    x, y = x.detach().double().cpu().flatten(1), y.detach().double().cpu().flatten(1)
    along = directions(x.shape[1], count, seed).T
    return float(wasserstein_1d(x @ along, y @ along, power).mean() ** (1 / power))
