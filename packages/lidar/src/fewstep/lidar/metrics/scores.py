"""The whole table of a completion model: one prediction and one truth per scan, mean and spread over scans."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fewstep.core.errors import check
from fewstep.lidar.metrics.clouds import Points, as_array
from fewstep.lidar.metrics.distances import chamfer_of, directed_distances, hit_curves, integrated, thresholds
from fewstep.lidar.metrics.legacy import legacy_emd, legacy_iou, legacy_rmse
from fewstep.lidar.metrics.occupancy import VOXELS_M, Agreement, CompletionIoU, jsd_3d, jsd_bev
from fewstep.lidar.metrics.transport import SIZE, emd, emd_floor

PROTOCOL = """\
Clouds: prediction and truth in metres, sensor frame, scored as given; crop both before (LiDiff's evaluation: within
50 m of the sensor, -4 < z < 4.4 m, in the 10 m cells the scan occupies). Every number but IoU is made per scan; "mean"
and "std" (divided by n, not n - 1) are over scans.
chamfer_m: (mean distance of predicted points to the truth + mean distance of true points to the prediction) / 2,
Euclidean, not squared; to_truth_m and to_prediction_m are its halves. chamfer_squared_m2: the same of squares.
precision, recall, f_score: percent of distances (prediction to truth, truth to prediction) strictly below a threshold,
and their harmonic mean; each averaged by Simpson's rule over 100 thresholds from 0.05 to 0.10 m. f_score_of_means: the
harmonic mean, threshold by threshold, of precision and recall averaged over scans, then the same average.
jsd_3d: Jensen-Shannon distance, the square root of the divergence with natural logarithm (0 to 0.8326), of points per
cell of 0.5 m in the cube [-50, 50)^3. jsd_bev: the same of occupied cells per column.
iou_*: percent of cells of 0.5, 0.2 and 0.1 m in that cube occupied in both clouds among those occupied in either,
counted over all scans before the division. A cell holds its lower faces and not its upper ones.
emd_m: exact optimal assignment between random subsets of the two clouds, of the size the table states (fewer where a
cloud has fewer), Euclidean, mean per point; it depends on that size. emd_floor_m: the same between two disjoint subsets
of the truth, what a perfect completion scores.
legacy_*: as published elsewhere, wrong, for comparison only: legacy_iou_* in a cube of 50 cells each way only (before
June 2025), legacy_rmse_m is to_truth_m, legacy_emd_m as in Distillation-DPO (no distance beyond one voxel counts)."""

HIGHER_IS_BETTER = ("precision", "recall", "f_score", "f_score_of_means", "iou_", "legacy_iou_")


class Score(NamedTuple):
    """One row of the table; ``std`` is None where a number is made of all scans together."""

    name: str
    mean: float
    std: float | None
    better: str  # "lower" or "higher"


class Scores:
    """Accumulates :data:`PROTOCOL`'s numbers scan by scan.

    ``emd_points``: size of the subsets of the exact EMD, 0 to leave it out. ``legacy``: the published variants too.
    """

    def __init__(
        self,
        *,
        voxels_m: tuple[float, ...] = VOXELS_M,
        emd_points: int = SIZE,
        legacy: bool = False,
        seed: int = 0,
    ) -> None:
        check(emd_points >= 0, f"scores: emd_points must be at least 0, got {emd_points}")
        self.emd_points, self.legacy, self.seed = emd_points, legacy, seed
        self.iou = CompletionIoU(voxels_m)
        self.scans: list[Mapping[str, float]] = []
        self._curves = np.zeros((2, len(thresholds())))
        self._legacy_cells: dict[float, Agreement] = {}

    def update(self, prediction: Points, truth: Points) -> dict[str, float]:
        """Add a scan and return its numbers; UserError, with nothing added, when a cloud is empty or not finite."""
        distances = directed_distances(prediction, truth)
        curves = hit_curves(distances, thresholds())
        near, hits = chamfer_of(distances), integrated(*curves)
        p, q = as_array(prediction, "prediction"), as_array(truth, "truth")
        found = {
            "chamfer_m": near.value,
            "to_truth_m": near.to_truth,
            "to_prediction_m": near.to_prediction,
            "chamfer_squared_m2": chamfer_of(distances, squared=True).value,
            **hits._asdict(),
            "jsd_bev": jsd_bev(p, q),
            "jsd_3d": jsd_3d(p, q),
        }
        if self.emd_points:
            found["emd_m"] = emd(p, q, self.emd_points, self.seed)
            if len(q) > 1:
                found["emd_floor_m"] = emd_floor(q, self.emd_points, self.seed)
        if self.legacy:
            found |= self._legacy(p, q)
        own = {f"iou_{size:g}m": 100 * (cells.iou or 0) for size, cells in self.iou.update(p, q).items()}
        self._curves += curves
        self.scans.append(MappingProxyType(found))
        return found | own

    def _legacy(self, p: np.ndarray, q: np.ndarray) -> dict[str, float]:
        for size, counts in legacy_iou(p, q, tuple(self.iou.counts)).items():
            self._legacy_cells[size] = counts.plus(self._legacy_cells.get(size, Agreement(0, 0, 0)))
        made = {"legacy_rmse_m": legacy_rmse(p, q)}
        transport = legacy_emd(p, q)
        return made if transport is None else made | {"legacy_emd_m": transport}

    def rows(self) -> list[Score]:
        """Return the table; UserError when no scan was added."""
        check(len(self.scans) > 0, "scores: no scan was added, so there is nothing to average")
        made = []
        for name in dict.fromkeys(name for scan in self.scans for name in scan):
            values = [scan[name] for scan in self.scans if name in scan]
            made.append(Score(name, float(np.mean(values)), float(np.std(values)), _better(name)))
        pooled = {"f_score_of_means": integrated(*(self._curves / len(self.scans))).f_score}
        pooled |= {f"iou_{size:g}m": value for size, value in self.iou.value().items()}
        for size, cells in self._legacy_cells.items():
            if cells.iou is not None:
                pooled[f"legacy_iou_{size:g}m"] = 100 * cells.iou
        return made + [Score(name, value, None, _better(name)) for name, value in pooled.items()]

    def table(self) -> dict[str, Any]:
        """Return the rows with the numbers of scans and EMD points and the protocol, as JSON takes it."""
        rows = {row.name: {"mean": row.mean, "std": row.std, "better": row.better} for row in self.rows()}
        return {"scans": len(self.scans), "emd_points": self.emd_points, "scores": rows, "protocol": PROTOCOL}


def _better(name: str) -> str:
    return "higher" if name.startswith(HIGHER_IS_BETTER) else "lower"
