"""Scans in their order, with labels and poses where there are some; a reader per layout of folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.clouds import Cloud
from fewstep.lidar.data.folder import FolderSequence, NuScenesFolder, find_folder, find_nuscenes
from fewstep.lidar.data.kitti_raw import KittiRaw, find_drives
from fewstep.lidar.data.poses import Pose
from fewstep.lidar.data.semantic_kitti import SemanticKitti, find_sequence_folders

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(str(number) for number in range(11, 22)),
}
"""The sequences of SemanticKITTI by use; papers on completion call 08 their test set."""


@runtime_checkable
class Sequence(Protocol):
    """Scans of one drive. ``folder``: where they lie, and where what is made of them goes."""

    name: str
    folder: Path

    def __len__(self) -> int:
        """Return the number of scans."""
        ...

    def stem(self, index: int) -> str:
        """Return the name of a scan, without a suffix."""
        ...

    def scan(self, index: int, *, drop_invalid: bool = False) -> Cloud:
        """Return a scan in the sensor's frame; UserError when it cannot be read, NaN included unless dropped."""
        ...

    def labels(self, index: int) -> npt.NDArray[np.uint32] | None:
        """Return what the points are, "n", raw (class in the low 16 bits), or None where nothing says so."""
        ...

    def pose(self, index: int) -> Pose:
        """Return where the sensor was in the frame of scan 0, "4 4"; UserError where nothing says so."""
        ...


Fields = Listed[str] | None

_READERS: Mapping[str, tuple[Callable[[Path], dict[str, Path]], Callable[[str, Path, Fields], Sequence]]] = {
    "semantickitti": (find_sequence_folders, SemanticKitti),
    "kitti-raw": (find_drives, KittiRaw),
    "nuscenes": (find_nuscenes, NuScenesFolder),
    "folder": (find_folder, FolderSequence),
}
LAYOUTS = tuple(_READERS)


def open_sequence(path: str | Path, layout: str = "semantickitti", fields: Fields = None) -> Sequence:
    """Return the one sequence at a path: its own folder, a root with no other, or a file as a sequence of one.

    ``fields``: the columns of the scans, where they are not the layout's own. UserError when there is none or several.
    """
    found = open_sequences(path, layout, fields=fields)
    if len(found) > 1:
        names = ", ".join(sequence.name for sequence in found[:4])
        raise UserError(f"{path}: {len(found)} sequences are there ({names}, ...); give the folder of one")
    return found[0]


def open_sequences(
    path: str | Path, layout: str = "semantickitti", names: Listed[str] | None = None, fields: Fields = None
) -> list[Sequence]:
    """Return the sequences at a path: all, by name, or those of ``names``; UserError when one is not there."""
    check(layout in _READERS, f"no layout '{layout}' of LiDAR data: {nearest(layout, LAYOUTS)}")
    given = Path(path).expanduser()
    check(given.exists(), f"{given}: no such folder; give one of LiDAR scans")
    finder, reader = _READERS["folder" if given.is_file() else layout]
    folders = finder(given)
    check(bool(folders), f"{given}: no scans of the layout '{layout}' there; layouts: {', '.join(LAYOUTS)}")
    for name in names or ():
        check(name in folders, f"{given}: no sequence '{name}' there: {nearest(name, folders)}")
    return [reader(name, folders[name], fields) for name in (names or folders)]
