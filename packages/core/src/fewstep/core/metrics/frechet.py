"""Frechet distance between Gaussians fitted to two sets of features, and its limit for infinitely many samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng


@dataclass(frozen=True)
class Moments:
    """Mean "d" and covariance "d d" (unbiased, divided by ``n - 1``) of ``n`` features, float64."""

    mean: Float[Tensor, " d"]
    cov: Float[Tensor, "d d"]
    n: int


def moments(features: Float[Tensor, "n d"]) -> Moments:
    """Return the moments of features; UserError for fewer than two samples."""
    check(features.shape[0] >= 2, f"moments need at least 2 samples, got {features.shape[0]}")
    x = features.detach().double().cpu()
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (x.shape[0] - 1), x.shape[0])


def root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the symmetric square root of a positive semi-definite matrix (rounding below zero is cut)."""
    values, vectors = torch.linalg.eigh(matrix)
    half: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return half


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``, the squared 2-Wasserstein distance of Gaussians.

    The trace of the root is that of ``(C_a^(1/2) C_b C_a^(1/2))^(1/2)``, symmetric, so that no complex root appears
    even for covariances without full rank (Dowson and Landau 1982; arXiv 1706.08500).
    """
    half = root(a.cov)
    inner = half @ b.cov @ half
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return float(gap + a.cov.trace() + b.cov.trace() - 2 * cross)


def frechet_infinity(
    features: Float[Tensor, "n d"], reference: Moments, rng: Rng, *, smallest: float = 0.25, points: int = 8
) -> float:
    """Return the distance extrapolated to infinitely many samples (arXiv 1911.07023).

    The bias of the estimate is linear in ``1/n`` to first order: distances of ``points`` random subsets, from
    ``smallest n`` to ``n``, are fitted by a line in ``1/n``, whose value at 0 is returned. The bias of the
    reference's own size remains. Raises UserError when the smallest subset would have fewer than two samples.
    """
    total = features.shape[0]
    sizes = torch.linspace(smallest * total, total, points, dtype=torch.float64).round().long()
    check(int(sizes[0]) >= 2 and points >= 2, f"{total} samples are too few to extrapolate a Frechet distance from")
    values = []
    for index, size in enumerate(sizes.tolist()):
        order = Rng(rng.seed, index, tuple(range(total)), scope=rng.scope).uniform("frechet-subset").argsort()
        values.append(frechet_distance(moments(features[order[:size]]), reference))
    inverse = 1 / sizes.double()
    design = torch.stack([torch.ones_like(inverse), inverse], 1)
    solution = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(solution[0, 0])
