"""Precision, recall, density and coverage by nearest neighbours: are samples plausible, is the whole data reached."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.metrics.kernel import squared_distances


class Neighbourhood(NamedTuple):
    """Shares in [0, 1], except ``density``, whose expectation is 1 for equal laws."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(features: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Return each sample's squared distance to its ``k``-th nearest other; UserError when there are not that many."""
    check(1 <= k < features.shape[0], f"k={k} nearest neighbours need more than {k} samples, got {features.shape[0]}")
    distances = squared_distances(features, features)
    distances.fill_diagonal_(torch.inf)  # rounding must not make a sample its own neighbour twice, or never
    return distances.kthvalue(k, dim=1).values


def neighbourhood(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = 5) -> Neighbourhood:
    """Return how the k-NN balls of real and generated features meet.

    Precision: share of fakes inside some real ball; recall: the same with the sides exchanged (arXiv 1904.06991,
    equation 1). Density: real balls per fake over k; coverage: share of real balls that hold a fake (arXiv
    2002.09797, equations 3 and 4).
    """
    real, fake = real.detach().double().cpu(), fake.detach().double().cpu()
    between = squared_distances(real, fake)
    in_real = between <= neighbour_radii(real, k)[:, None]
    in_fake = between <= neighbour_radii(fake, k)[None]
    return Neighbourhood(
        precision=float(in_real.any(0).double().mean()),
        recall=float(in_fake.any(1).double().mean()),
        density=float(in_real.sum(0).double().mean() / k),
        coverage=float(in_real.any(1).double().mean()),
    )
