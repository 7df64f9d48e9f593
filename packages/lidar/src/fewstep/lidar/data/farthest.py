"""Farthest-point sampling, exact and fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fewstep.core.errors import check

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

SHARE = 0.02  # of the points, resolved in a round
MAX_PAIRS = 250_000  # of a round: bounds its memory
ONE_BY_ONE = 64  # picks between rounds that would be larger
WIDER = 1 + 1e-9  # searches by radius, which the exact distances then decide


def farthest_points(xyz: npt.NDArray[Any], k: int) -> Indices:
    """Return the indices "k", ascending, that greedy farthest-point sampling picks from ``xyz`` "n 3".

    The first pick is point 0, each next one the point farthest from all picks, the lowest index among equals; no point
    is picked twice. A cloud of fewer than ``k`` points is repeated first. UserError for an empty or non-finite cloud.

    Equal to the algorithm that picks one by one, in rounds (ours): a point that no point before it in the order of
    (distance, index) can bring closer is picked whatever happens elsewhere, so many are picked at once.
    """
    check(
        xyz.ndim == 2 and xyz.shape[1] == 3 and len(xyz) > 0,
        f"farthest points: a cloud of shape {xyz.shape}; give (n, 3)",
    )
    check(k >= 1, f"farthest points: {k} of them; ask for at least 1")
    points = np.ascontiguousarray(xyz, np.float64)
    check(bool(np.isfinite(points).all()), "farthest points: a coordinate is NaN or infinite; drop such points")
    if k >= len(points):
        return np.arange(k) % len(points)
    return np.sort(_Sampling(points, k).run())


class _Sampling:
    """``far``: squared distances to the nearest pick, -1 at picks."""

    def __init__(self, points: Floats, k: int) -> None:
        self.points, self.k = points, k
        self.columns = np.ascontiguousarray(points.T)
        self.tree = cKDTree(points)
        self.far = self._squares(self.columns, 0)
        self.far[0] = -1.0
        self.picks: list[Indices] = [np.zeros(1, np.int64)]
        self.count = 1

    def run(self) -> Indices:
        while self.count < self.k:
            top = float(self.far.max())
            if top <= 0:  # only copies of picks are left
                left = np.flatnonzero(self.far >= 0)
                self._keep(left[: self.k - self.count])
            elif not self._round(top):
                for _ in range(min(ONE_BY_ONE, self.k - self.count)):
                    self._one()
        return np.concatenate(self.picks)

    def _squares(self, columns: Floats, index: int | np.intp) -> Floats:
        x, y, z = (column - own for column, own in zip(columns, self.points[index], strict=True))
        return np.asarray(x * x + y * y + z * z)

    def _keep(self, picks: Indices) -> None:
        self.far[picks] = -1.0
        self.picks.append(picks)
        self.count += len(picks)

    def _one(self) -> None:
        pick = int(self.far.argmax())
        np.minimum(self.far, self._squares(self.columns, pick), out=self.far)
        self._keep(np.array([pick]))

    def _round(self, top: float) -> bool:
        """Pick until no point is farther than a floor; False when that is too much at once, and nothing is done."""
        size = max(int(len(self.far) * SHARE), 1)
        floor = max(float(np.partition(self.far, len(self.far) - size)[len(self.far) - size]), 0.0)
        if floor >= top:
            below = self.far[self.far < top]
            floor = max(float(below.max()) if len(below) else 0.0, 0.0)
        rivals = np.flatnonzero(self.far > floor)
        radius = float(np.sqrt(top)) * WIDER
        tree = cKDTree(self.points[rivals])
        if tree.count_neighbors(tree, radius) > 2 * MAX_PAIRS:
            return False
        picks, values = self._resolve(rivals, tree.query_pairs(radius, output_type="ndarray"), floor)
        order = np.lexsort((picks, -values))[: self.k - self.count]  # the order of picking one by one
        picks = picks[order]
        self._bring_closer(picks, radius)
        self._keep(picks)
        return True

    def _resolve(self, rivals: Indices, pairs: Indices, floor: float) -> tuple[Indices, Floats]:
        """Return the picks among ``rivals`` that leave none of them above ``floor``, and how far each was."""
        a, b = pairs[:, 0], pairs[:, 1]
        offset = self.points[rivals[a]] - self.points[rivals[b]]
        apart = offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1] + offset[:, 2] * offset[:, 2]
        far = self.far[rivals]
        open_ = np.ones(len(rivals), bool)
        picks, values = [], []
        while open_.any():
            useful = open_[a] & open_[b] & (apart < np.maximum(far[a], far[b]))
            a, b, apart = a[useful], b[useful], apart[useful]
            ahead = (far[a] > far[b]) | ((far[a] == far[b]) & (a < b))
            first, later = np.where(ahead, a, b), np.where(ahead, b, a)
            free = open_.copy()
            free[later[apart < far[later]]] = False
            chosen = np.flatnonzero(free)
            picks.append(rivals[chosen])
            values.append(far[chosen])
            # Never the other way round: one that is still ahead of a pick has its turn before it.
            np.minimum.at(far, later[free[first]], apart[free[first]])
            open_ &= ~free & (far > floor)
        return np.concatenate(picks), np.concatenate(values)

    def _bring_closer(self, picks: Indices, radius: float) -> None:
        near = cKDTree(self.points[picks]).sparse_distance_matrix(self.tree, radius, output_type="ndarray")
        chosen, moved = picks[near["i"]], near["j"]
        offset = self.points[moved] - self.points[chosen]
        squares = offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1] + offset[:, 2] * offset[:, 2]
        np.minimum.at(self.far, moved, squares)
