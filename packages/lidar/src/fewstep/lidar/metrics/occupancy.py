"""Metrics of occupied cells, hashed and never dense: completion IoU and Jensen-Shannon distances.

A cell is half-open: a coordinate ``x`` lies in cell ``floor(x / size)``, and the cube scored is ``[-range, range)``.
Points outside are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fewstep.core.errors import check
from fewstep.lidar.metrics.clouds import Points, as_array

RANGE_M = 50.0
VOXELS_M = (0.5, 0.2, 0.1)
JSD_CELL_M = 0.5


class Cells(NamedTuple):
    """Occupied cells: sorted ``keys`` ``(i side + j) side + k`` of cells counted from the corner, and their points."""

    keys: np.ndarray
    counts: np.ndarray
    side: int


class Agreement(NamedTuple):
    """Numbers of cells: in both clouds, in the prediction only, in the truth only."""

    both: int
    prediction_only: int
    truth_only: int

    @property
    def iou(self) -> float | None:
        """``both / (all three)``; None when no cell is occupied."""
        return self.both / sum(self) if sum(self) else None

    def plus(self, other: Agreement) -> Agreement:
        """Return the cells of both counts together."""
        return Agreement(*(a + b for a, b in zip(self, other, strict=True)))


def cells(points: Points, size_m: float, range_m: float = RANGE_M, *, name: str = "cloud") -> Cells:
    """Return the occupied cells of the cube; none for an empty cloud. UserError for points that are not finite.

    ``range_m`` must be a multiple of ``size_m``, and the cube at most 2^20 cells wide.
    """
    check(size_m > 0 and range_m > 0, f"cells: size {size_m:g} m and range {range_m:g} m must be positive")
    # 0.3 / 0.1 is below 3 in floating point, 0.3 * 10 is not
    per_metre = 1 / size_m
    half = round(range_m * per_metre)
    check(
        abs(half - range_m * per_metre) < 1e-6 and half <= 2**19,
        f"cells: range {range_m:g} m must be a multiple of the cell, {size_m:g} m, and at most 524288 of them",
    )
    index = np.floor(as_array(points, name) * per_metre)
    index = index[((index >= -half) & (index < half)).all(1)].astype(np.int64) + half
    side = 2 * half
    keys, counts = np.unique((index[:, 0] * side + index[:, 1]) * side + index[:, 2], return_counts=True)
    return Cells(keys, counts, side)


def agreement(prediction: Points, truth: Points, size_m: float, range_m: float = RANGE_M) -> Agreement:
    """Return how many cells the two clouds share; an empty cloud occupies none."""
    p = cells(prediction, size_m, range_m, name="prediction").keys
    q = cells(truth, size_m, range_m, name="truth").keys
    shared = int(np.isin(p, q, assume_unique=True).sum())
    return Agreement(shared, len(p) - shared, len(q) - shared)


class CompletionIoU:
    """Completion IoU in percent at several cell sizes, cells counted over all scans before the division (micro).

    A scan whose prediction is empty counts all its true cells as missed.
    """

    def __init__(self, voxels_m: Sequence[float] = VOXELS_M, range_m: float = RANGE_M) -> None:
        check(len(voxels_m) > 0, "completion IoU: give at least one cell size")
        self.range_m = range_m
        self.counts = {float(size): Agreement(0, 0, 0) for size in voxels_m}

    def update(self, prediction: Points, truth: Points) -> dict[float, Agreement]:
        """Count a scan and return its own numbers by cell size; UserError for points that are not finite."""
        found = {size: agreement(prediction, truth, size, self.range_m) for size in self.counts}
        for size, counts in found.items():
            self.counts[size] = self.counts[size].plus(counts)
        return found

    def value(self) -> dict[float, float]:
        """Return percent by cell size; UserError when no cell was occupied in any scan."""
        made = {}
        for size, counts in self.counts.items():
            iou = counts.iou
            check(
                iou is not None,
                f"completion IoU: no point within {self.range_m:g} m in any scan; coordinates must be metres",
            )
            made[size] = 100 * float(iou or 0)
        return made


def jsd_3d(prediction: Points, truth: Points, size_m: float = JSD_CELL_M, range_m: float = RANGE_M) -> float:
    """Return the Jensen-Shannon distance of the numbers of points per cell; see :func:`jensen_shannon`."""
    p, q = _occupied(prediction, truth, size_m, range_m)
    return jensen_shannon(p, q)


def jsd_bev(prediction: Points, truth: Points, size_m: float = JSD_CELL_M, range_m: float = RANGE_M) -> float:
    """Return the Jensen-Shannon distance seen from above: of the numbers of occupied cells per column.

    Each cell counts once however many points it holds, so the density of points does not matter.
    """
    p, q = _occupied(prediction, truth, size_m, range_m)
    return jensen_shannon(_columns(p), _columns(q))


def jensen_shannon(p: Cells, q: Cells) -> float:
    """Return ``sqrt((KL(p|m) + KL(q|m)) / 2)``, ``m = (p + q) / 2``, natural logarithm, of counts made shares.

    The square root of the divergence, 0 for equal shares, ``sqrt(log 2) = 0.8326`` for disjoint ones.
    """
    keys = np.union1d(p.keys, q.keys)
    shares = np.zeros((2, len(keys)))
    for row, side in zip(shares, (p, q), strict=True):
        row[np.searchsorted(keys, side.keys)] = side.counts / side.counts.sum()
    ratio = shares / shares.mean(0)
    terms = shares * np.log(np.where(shares > 0, ratio, 1))
    return float(max(terms.sum() / 2, 0.0) ** 0.5)


def _occupied(prediction: Points, truth: Points, size_m: float, range_m: float) -> tuple[Cells, Cells]:
    p = cells(prediction, size_m, range_m, name="prediction")
    q = cells(truth, size_m, range_m, name="truth")
    for name, side in (("prediction", p), ("truth", q)):
        check(len(side.keys) > 0, f"the {name} has no point within {range_m:g} m: its shares of cells are undefined")
    return p, q


def _columns(occupied: Cells) -> Cells:
    keys, counts = np.unique(occupied.keys // occupied.side, return_counts=True)
    return Cells(keys, counts, occupied.side)
