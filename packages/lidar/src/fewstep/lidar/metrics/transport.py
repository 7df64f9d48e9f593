"""Earth mover's distance of clouds, in metres: exact on subsets, and bounds by entropic transport on whole clouds.

A cloud is the uniform law on its points; the distance is ``min E |p - q|`` over all couplings of the two laws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from fewstep.core.errors import check
from fewstep.lidar.metrics.clouds import Points, both

SIZE = 2048
LEVEL_ROUNDS, RELAXATION = 10, 1.8
PIECE = {"cpu": 2**20, "cuda": 2**26}  # entries of the cost matrix at a time, float32: what fits in a cache, 256 MB


class Transport(NamedTuple):
    """Bounds of the exact distance, in metres, and the share of the mass (0 to 1) the plan had in the wrong place.

    ``lower`` is the dual value of the potentials found, and the one to report: it converges fastest. ``upper`` is the
    cost of the plan after its misplaced mass was moved, wherever from, to where it was missing.
    """

    lower: float
    upper: float
    misplaced: float


def subset(points: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``size`` random points without repetition, or all of them when there are no more."""
    if len(points) <= size:
        return points
    chosen: np.ndarray = points[generator.choice(len(points), size, replace=False)]
    return chosen


def emd(prediction: Points, truth: Points, size: int = SIZE, seed: int = 0) -> float:
    """Return the exact distance by optimal assignment between equal random subsets of at most ``size`` points each.

    Exact for the clouds themselves where they are equally large and no larger than ``size``. Otherwise two subsets of
    one cloud differ too, by metres in a LiDAR scene: compare numbers of one ``size`` only, and beside
    :func:`emd_floor`. Takes about ``size^3``. Raises UserError when a cloud is empty or not finite.
    """
    check(size >= 1, f"EMD: size must be at least 1, got {size}")
    p, q = (cloud.cpu().numpy() for cloud in both(prediction, truth))
    size = min(size, len(p), len(q))
    streams = np.random.default_rng(seed).spawn(2)
    return _assigned(subset(p, size, streams[0]), subset(q, size, streams[1]))


def emd_floor(truth: Points, size: int = SIZE, seed: int = 0) -> float:
    """Return the exact distance between two disjoint random subsets of the truth: what a perfect completion scores.

    Each has ``size`` points, or half of the cloud when that is less. Raises UserError below two points.
    """
    cloud, _ = both(truth, truth)
    check(len(cloud) >= 2, f"EMD floor: two disjoint subsets need at least 2 points, got {len(cloud)}")
    size = min(size, len(cloud) // 2)
    drawn = subset(cloud.cpu().numpy(), 2 * size, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(2 * size)
    return _assigned(drawn[order[:size]], drawn[order[size : 2 * size]])


def _assigned(p: np.ndarray, q: np.ndarray) -> float:
    cost = cdist(p, q)
    return float(cost[linear_sum_assignment(cost)].mean())


@torch.no_grad()
def sinkhorn_emd(
    prediction: Points, truth: Points, *, eps_m: float = 0.02, tolerance: float = 1e-3, rounds: int = 100
) -> Transport:
    """Return bounds by entropic transport between whole clouds, in the log domain, on the prediction's device.

    The entropy's weight ``eps_m`` (metres) is halved from the clouds' extent down to its value, ten updates each; there
    up to ``rounds`` follow, until no more than ``tolerance`` of the mass is misplaced. Updates are over-relaxed (arXiv
    1711.01851). Costs are made anew for every update, in pieces: 10 ns per pair of points on a CPU core, for 100 to 500
    updates, half a minute for 2 x 3,000 points; more of them are for a GPU. Raises UserError for empty clouds,
    coordinates that are not finite, and ``eps_m`` outside (0, 0.05].
    """
    check(0 < eps_m <= 0.05, f"entropic EMD: eps must be in (0, 0.05] m, got {eps_m:g}")
    check(rounds >= 1, f"entropic EMD: rounds must be at least 1, got {rounds}")
    p, q = both(prediction, truth)
    middle = q.mean(0)
    p, q = (p - middle).float(), (q - middle).float()
    together = torch.cat([p, q])
    eps = float((together.amax(0) - together.amin(0)).norm())
    f, g = p.new_zeros(len(p)), q.new_zeros(len(q))
    while eps > eps_m:
        eps = max(eps / 2, eps_m)
        f, g = _potentials(p, q, f, g, eps, tolerance, rounds if eps == eps_m else LEVEL_ROUNDS)
    g = _soft_minimum(q, p, f, eps_m)
    upper, misplaced = _rounded(p, q, g, eps_m)
    return Transport(_dual(p, q, g), upper, misplaced)


def _potentials(
    p: Tensor, q: Tensor, f: Tensor, g: Tensor, eps: float, tolerance: float, rounds: int
) -> tuple[Tensor, Tensor]:
    for number in range(rounds):
        step = RELAXATION if number > 1 else 1
        g = torch.lerp(g, _soft_minimum(q, p, f, eps), step)
        exact = _soft_minimum(p, q, g, eps)
        missing = float((1 - ((f - exact) / eps).exp()).clamp_min(0).mean())  # of the mass of the rows, before
        f = torch.lerp(f, exact, step)
        if missing <= tolerance and number > 1:
            break
    return f, g


def _dual(p: Tensor, q: Tensor, g: Tensor) -> float:
    """The best value with potentials that keep ``f_i + g_j <= |p_i - q_j|``, starting from ``g``."""
    f = torch.cat([(c - g).amin(1) for c in _costs(p, q)])
    g = torch.cat([(c - f).amin(1) for c in _costs(q, p)])
    return float(f.double().mean() + g.double().mean())


def _rounded(p: Tensor, q: Tensor, g: Tensor, eps: float) -> tuple[float, float]:
    """Cost and misplaced mass of the plan, made a coupling by taking what columns have too much (arXiv 1705.09634)."""
    columns = g.new_zeros(len(q), dtype=torch.float64)
    for _, plan in _plan(p, q, g, eps):
        columns += plan.double().sum(0) / len(p)
    kept = (1 / (len(q) * columns)).clamp(max=1)
    lacking = (1 / len(q) - columns).clamp_min(0)
    cost, spare_cost, spare = 0.0, 0.0, 0.0
    for c, plan in _plan(p, q, g, eps):
        plan, c = plan.double() * kept, c.double()
        left = (1 - plan.sum(1)).clamp_min(0) / len(p)
        cost += float((plan * c).sum()) / len(p)
        spare_cost += float(left @ (c @ lacking))
        spare += float(left.sum())
    return cost + (spare_cost / spare if spare else 0.0), spare


def _costs(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    for piece in torch.split(x, max(1, PIECE["cuda" if x.is_cuda else "cpu"] // len(y))):
        yield torch.cdist(piece, y, compute_mode="donot_use_mm_for_euclid_dist")  # products lose centimetres


def _soft_minimum(x: Tensor, y: Tensor, potential: Tensor, eps: float) -> Tensor:
    """``-eps log(mean_j exp((potential_j - |x_i - y_j|) / eps))``."""
    found = []
    for cost in _costs(x, y):
        score = torch.sub(potential, cost, out=cost)
        top = score.amax(1, keepdim=True)
        score.sub_(top).div_(eps).clamp_(min=-80).exp_()  # the exponential of what underflows is slow
        found.append(top[:, 0] + eps * (score.sum(1).log() - math.log(len(y))))
    return -torch.cat(found)


def _plan(p: Tensor, q: Tensor, g: Tensor, eps: float) -> Iterator[tuple[Tensor, Tensor]]:
    for cost in _costs(p, q):
        yield cost, torch.softmax((g - cost) / eps, dim=1)
