"""Training pairs: a scan and its completion, a jittered map and the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.data.augmentation import Motion
from fewstep.lidar.data.cells import first_of_cells
from fewstep.lidar.data.crops import MAX_RANGE, MIN_RANGE, clean_scan, in_view, training_crop
from fewstep.lidar.data.farthest import farthest_points
from fewstep.lidar.data.poses import Pose

Float32 = npt.NDArray[np.float32]

JITTER_STD, MAX_JITTER = 0.2, 0.3  # metres
TARGET_VOXEL = 0.1


def resized(points: npt.NDArray[Any], count: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return ``count`` of the points "n 3" in random order, cut, or repeated as evenly as can be."""
    check(len(points) > 0, "no point to fill a cloud with; leave the scan out")
    rounds = -(-count // len(points))
    chosen = [rng.permutation(len(points)) for _ in range(rounds)]
    return np.asarray(points[np.concatenate(chosen)[:count]])


def training_pair(
    points: npt.NDArray[Any],
    pose: Pose,
    scan: npt.NDArray[Any],
    labels: npt.NDArray[np.uint32] | None,
    motion: Motion | None,
    rng: np.random.Generator,
    *,
    complete: int = 180_000,
    partial: int = 18_000,
    min_range: float = MIN_RANGE,
    max_range: float = MAX_RANGE,
) -> tuple[Float32, Float32]:
    """Return the completion "complete 3" and the scan "partial 3" of a pose in a map, both after ``motion``.

    The scan is cleaned (:func:`.crops.clean_scan`) and thinned by farthest points; the crop of the map is what is in
    the moved scan's view, in random order. UserError when nothing is left of either.
    """
    cleaned = scan[clean_scan(scan, labels, min_range=min_range, max_range=max_range)]
    check(len(cleaned) > 0, f"no point of the scan is between {min_range:g} and {max_range:g} m; leave it out")
    crop = training_crop(points, pose, max_range=max_range)
    if motion is not None:
        cleaned, crop = motion(cleaned), motion(crop)
    # The moved scan may reach a little farther than the range.
    seen = crop[in_view(crop, cleaned, max_range=np.inf)]
    check(len(seen) > 0, "the map has no point in the scan's view; are its poses those of the map?")
    thinned = cleaned[farthest_points(cleaned, partial)]
    return resized(seen, complete, rng).astype(np.float32), thinned.astype(np.float32)


def refiner_pair(
    points: npt.NDArray[Any], rng: np.random.Generator, *, given: int = 180_000, target: int = 360_000
) -> tuple[Float32, Float32]:
    """Return what a refiner is given "given 3" and is to return "target 3", both of one aggregate or crop "m 3".

    Given: its points moved by N(0, 0.2^2) metres per axis, clipped at 0.3. To return: its points, one per 0.1 m cell.
    """
    jitter = np.clip(JITTER_STD * rng.standard_normal((given, 3)), -MAX_JITTER, MAX_JITTER)
    jittered = resized(points, given, rng) + jitter
    even = points[first_of_cells(points, TARGET_VOXEL)]
    return jittered.astype(np.float32), resized(even, target, rng).astype(np.float32)
