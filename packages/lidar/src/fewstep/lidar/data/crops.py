"""What a map says about one scan: its surroundings within range, in the sensor's frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.data.cells import HALF, cell_keys
from fewstep.lidar.data.maps import is_static
from fewstep.lidar.data.poses import Pose, inverse, moved

MAX_RANGE = 50.0
MIN_RANGE = 3.5
HEIGHTS = (-4.0, 4.4)  # of evaluation; training has no upper one
VIEW = 10.0  # cells of the view filter


def within(xyz: npt.NDArray[Any], max_range: float) -> npt.NDArray[np.bool_]:
    """Return which points "n 3" are nearer to the origin than ``max_range``, "n"."""
    return np.asarray(np.square(xyz, dtype=np.float64).sum(axis=1) < max_range**2)


def ground_truth(
    points: npt.NDArray[Any],
    pose: Pose,
    scan: npt.NDArray[Any],
    *,
    max_range: float = MAX_RANGE,
    heights: tuple[float, float] = HEIGHTS,
    view: float = VIEW,
) -> npt.NDArray[np.float32]:
    """Return the crop of a map that a completion of ``scan`` "n 3" is compared with, "m 3" in the sensor's frame.

    Points within ``max_range`` of the sensor, between ``heights``, in view (:func:`in_view`): the protocol of LiDiff.
    """
    near = _crop(points, pose, max_range, heights)
    return near[in_view(near, scan, max_range=max_range, size=view)]


def training_crop(
    points: npt.NDArray[Any], pose: Pose, *, max_range: float = MAX_RANGE, lowest: float = HEIGHTS[0]
) -> npt.NDArray[np.float32]:
    """Return the crop of a map to train on, "m 3": as :func:`ground_truth`, of any height and not yet by view."""
    return _crop(points, pose, max_range, (lowest, np.inf))


def _crop(
    points: npt.NDArray[Any], pose: Pose, max_range: float, heights: tuple[float, float]
) -> npt.NDArray[np.float32]:
    rough = points
    for axis in (0, 1):  # cheap, for maps of many kilometres
        middle, reach = float(pose[axis, 3]), max_range + 1
        rough = rough[(rough[:, axis] > middle - reach) & (rough[:, axis] < middle + reach)]
    near = moved(inverse(pose), rough)
    low, high = heights
    return near[within(near, max_range) & (near[:, 2] > low) & (near[:, 2] < high)].astype(np.float32)


def in_view(
    points: npt.NDArray[Any], scan: npt.NDArray[Any], *, max_range: float = MAX_RANGE, size: float = VIEW
) -> npt.NDArray[np.bool_]:
    """Return which points "m 3" are in a cell that the scan "n 3" has a point in, "m".

    Cells of ``size`` metres from an origin half a cell below the least coordinates of the scan within ``max_range``.
    """
    near = np.asarray(scan[within(scan, max_range)], np.float64)
    check(len(near) > 0, f"no point of the scan is within {max_range:g} m; leave the scan out")
    origin = near.min(axis=0) - size / 2
    occupied = np.unique(cell_keys(near - origin, size))
    shifted = np.asarray(points, np.float64) - origin
    apart = (np.abs(shifted) < size * (HALF - 1)).all(axis=1)  # beyond, there is no cell, and no view
    seen = np.zeros(len(points), bool)
    seen[apart] = np.isin(cell_keys(shifted[apart], size), occupied)
    return seen


def clean_scan(
    xyz: npt.NDArray[Any],
    labels: npt.NDArray[np.uint32] | None = None,
    *,
    min_range: float = MIN_RANGE,
    max_range: float = MAX_RANGE,
    lowest: float = HEIGHTS[0],
) -> npt.NDArray[np.bool_]:
    """Return which points "n 3" of a scan a network is shown, "n": in range, not below, and static by their labels."""
    distance = np.square(xyz, dtype=np.float64).sum(axis=1)
    kept = (distance > min_range**2) & (distance < max_range**2) & (xyz[:, 2] > lowest)
    return np.asarray(kept if labels is None else kept & is_static(labels))
