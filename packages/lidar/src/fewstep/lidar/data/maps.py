"""Dense maps: all scans of a sequence in the frame of its first, one point per cell, without what moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.clouds.files import read_bytes
from fewstep.lidar.clouds.npy import read_array
from fewstep.lidar.data.cells import CellSet, cell_keys
from fewstep.lidar.data.folder import MAP_FILE
from fewstep.lidar.data.poses import moved
from fewstep.lidar.data.sequence import Sequence

MOVING = ("labels", "consistency", "keep")
FIRST_MOVING = 252

Map = npt.NDArray[np.float32]
"""Points in the frame of scan 0, "m 3"."""


def is_static(labels: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Return which points stand still, "n": 1 < class < 252, the class being the low 16 bits."""
    kind = labels & 0xFFFF
    return np.asarray((kind > 1) & (kind < FIRST_MOVING))


def build_map(
    sequence: Sequence,
    voxel: float = 0.1,
    min_range: float = 3.5,
    *,
    moving: str = "labels",
    seen: int = 2,
    progress: Callable[[int], object] | None = None,
) -> Map:
    """Return the map of a sequence "m 3": the first point seen in every cell of ``voxel`` metres.

    Points within ``min_range`` of the sensor (the vehicle) are left out, the range being that of xyz; LiDiff's released
    code squares the remission too and so keeps some of them. ``moving``: "labels" leaves out what labels call moving,
    unlabelled or an outlier; "consistency", for scans without labels, keeps cells that at least ``seen`` scans have a
    point in; "keep" keeps all. ``progress`` is told the number of scans done. Memory: that of the map, and 20 bytes
    per cell. Raises UserError where labels or poses are missing.
    """
    check(moving in MOVING, f"no way '{moving}' of leaving out what moves: {nearest(moving, MOVING)}")
    check(voxel > 0 and min_range >= 0, f"voxel {voxel:g} m must be above 0 and min_range {min_range:g} m not below")
    check(seen >= 1, f"seen must be at least 1, got {seen}")
    cells = CellSet()
    kept: list[Map] = []
    for index in range(len(sequence)):
        points = _static_points(sequence, index, moving == "labels")
        points = points[np.linalg.norm(points.astype(np.float64), axis=1) > min_range]
        world = moved(sequence.pose(index), points)
        kept.append(world[cells.add(cell_keys(world, voxel))].astype(np.float32))
        if progress is not None:
            progress(index + 1)
    found = np.concatenate(kept)
    if moving == "consistency":
        found = found[cells.counts >= seen]
    check(len(found) > 0, f"{sequence.folder}: no point is left for a map; look at its ranges and labels")
    return found


def _static_points(sequence: Sequence, index: int, by_labels: bool) -> npt.NDArray[Any]:
    xyz: npt.NDArray[Any] = sequence.scan(index).xyz
    if not by_labels:
        return xyz
    labels = sequence.labels(index)
    if labels is None:
        raise UserError(
            f"{sequence.folder}: scan {sequence.stem(index)} has no labels to tell what moves; "
            "take moving 'consistency' or 'keep'"
        )
    return xyz[is_static(labels)]


def save_map(path: str | Path, points: Map) -> None:
    """Write a map as ``.npy``, float32, whole or not at all."""

    def write(aside: Path) -> None:
        with open(aside, "wb") as file:
            np.save(file, np.ascontiguousarray(points, np.float32), allow_pickle=False)

    try:
        write_whole(Path(path), write)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); give another place") from error


def load_map(path: str | Path) -> Map:
    """Return the map of a file, or of the sequence whose folder it is; UserError when it holds none."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / MAP_FILE
        check(file.exists(), f"{file}: no map there; make it with `fewstep lidar build-maps`")
    found = read_array(file, read_bytes(file))
    check(
        found.ndim == 2 and found.shape[1] == 3 and found.dtype.kind == "f",
        f"{file}: a {found.dtype} of shape {found.shape} is no map; build it again",
    )
    check(bool(np.isfinite(found).all()), f"{file}: a NaN or infinite point; build the map again")
    return found.astype(np.float32)
