"""The variants behind published numbers, for comparison with those only; each says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.lidar.metrics.clouds import Points, both
from fewstep.lidar.metrics.distances import directed_distances
from fewstep.lidar.metrics.occupancy import VOXELS_M, Agreement, agreement, cells

EMD_VOXEL_M = 0.5
EMD_FLOOR = 1e-9  # added to the kernel of the transport
EMD_MAX_VOXELS = 130_000
EMD_ROUNDS = 1000


def legacy_iou(prediction: Points, truth: Points, voxels_m: Sequence[float] = VOXELS_M) -> dict[float, Agreement]:
    """Return the cells behind IoU numbers published before June 2025 (LiDiff, ScoreLiDAR), by cell size.

    Wrong: coordinates were divided by the cell size and the range of 50 was kept, so that only a cube of 50 cells each
    way was scored, 25, 10 and 5 m: the dense part near the sensor, hence higher values. Sum over scans, then divide.
    """
    return {float(size): agreement(prediction, truth, size, 50 * size) for size in voxels_m}


def legacy_rmse(prediction: Points, truth: Points) -> float:
    """Return the mean distance in metres from predicted points to the truth, published as RMSE.

    Wrong: it is neither a root nor of squares, and it is one half of the Chamfer distance, blind to what is missing.
    """
    return float(directed_distances(prediction, truth).to_truth.mean())


def legacy_emd(prediction: Points, truth: Points) -> float | None:
    """Return the EMD of Distillation-DPO (arXiv 2504.11447) in metres; None above 130,000 voxels, which it leaves out.

    Voxel centres of 0.5 m weighed by their points, Sinkhorn transport with the kernel ``exp(-c / 0.001 m) + 1e-9``.
    Wrong: the exponential of two different voxels is 0, so all mass that is not in common voxels is spread whatever
    its distance: a shift of a sparse scene by 0.5 m scores the mean distance between its points, 52 m. Here the
    exponential is set to that 0, which leaves a diagonal plus a constant; updates go on to convergence (at most 1000).
    """
    p, q = (_voxels(cloud) for cloud in both(prediction, truth))
    if max(len(side[0]) for side in (p, q)) > EMD_MAX_VOXELS:
        return None
    (keys_p, a, centres_p), (keys_q, b, centres_q) = p, q
    _, shared_p, shared_q = np.intersect1d(keys_p, keys_q, assume_unique=True, return_indices=True)
    u, v = np.ones(len(a)), np.ones(len(b))
    for _ in range(EMD_ROUNDS):
        u = a / _product(v, shared_p, shared_q, len(a))
        columns = v * _product(u, shared_q, shared_p, len(b))
        v = v * b / columns
        if np.abs(columns - b).sum() < 1e-9:
            break
    return EMD_FLOOR * _spread_cost(u, centres_p, v, centres_q)


def _product(x: np.ndarray, own: np.ndarray, other: np.ndarray, rows: int) -> np.ndarray:
    """The kernel times ``x``: the constant part for all rows, the diagonal part where voxels are shared."""
    out = np.full(rows, EMD_FLOOR * x.sum())
    out[own] += x[other]
    return out


def _voxels(cloud: Tensor) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Keys, shares of the points and centres of the occupied voxels; a scene is well within a kilometre."""
    found = cells(cloud, EMD_VOXEL_M, 1000.0)
    index = np.stack(np.unravel_index(found.keys, (found.side,) * 3), 1) - found.side // 2
    return found.keys, found.counts / found.counts.sum(), torch.from_numpy((index + 0.5) * EMD_VOXEL_M)


def _spread_cost(u: np.ndarray, p: Tensor, v: np.ndarray, q: Tensor) -> float:
    """``sum_ij u_i |p_i - q_j| v_j``, in pieces."""
    weights = torch.from_numpy(v)
    rows = torch.split(torch.from_numpy(u), max(1, 2**20 // len(q)))
    pieces = zip(rows, torch.split(p, max(1, 2**20 // len(q))), strict=True)
    return sum(float(row @ (torch.cdist(piece, q) @ weights)) for row, piece in pieces)
