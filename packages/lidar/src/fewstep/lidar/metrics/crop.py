"""The part of a completion that is scored: what the scan can have seen."""

from __future__ import annotations

import numpy as np

from fewstep.core.errors import check
from fewstep.lidar.metrics.clouds import Points, as_array
from fewstep.lidar.metrics.occupancy import RANGE_M


def crop_prediction(prediction: Points, scan: Points, range_m: float = RANGE_M) -> np.ndarray:
    """Return the predicted points LiDiff keeps (arXiv 2403.13470, its code), float64, in their order.

    Nearer to the sensor than ``range_m``, below the highest point of ``scan``, and above the mean height of the scan
    less two standard deviations; none of the three limits is itself kept. Raises UserError for an empty scan.
    """
    points, seen = as_array(prediction, "prediction"), as_array(scan, "scan")[:, 2]
    check(len(seen) > 0, "the scan is empty: it says nothing about what to keep of a prediction")
    height = points[:, 2]
    near = np.linalg.norm(points, axis=1) < range_m
    kept: np.ndarray = points[near & (height < seen.max()) & (height > seen.mean() - 2 * seen.std())]
    return kept
