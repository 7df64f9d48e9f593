"""A folder of scans in any format, or one file; poses in ``poses.txt`` where somebody wrote them."""

from __future__ import annotations

import re
from collections.abc import Sequence as Listed
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.clouds import Cloud, is_cloud, read_cloud
from fewstep.lidar.data.poses import Pose, inverse, read_poses

POSES = "poses.txt"
MAP_FILE = "map_clean.npy"
NUSCENES = ".pcd.bin"


def naturally(path: Path) -> list[tuple[int, int, str]]:
    """Return a key by which scan_2 comes before scan_10."""
    parts = re.split(r"([0-9]+)", path.name)
    return [
        (0, int(part), part) if number % 2 and len(part) < 1000 else (1, 0, part) for number, part in enumerate(parts)
    ]


def clouds_in(path: Path, suffix: str = "") -> list[Path]:
    """Return the clouds of a folder whose names end in ``suffix``, or a file itself, in natural order; no map."""
    if path.is_file():
        return [path]
    files = [each for each in path.iterdir() if each.is_file() and is_cloud(each) and each.name != MAP_FILE]
    return sorted((each for each in files if each.name.lower().endswith(suffix)), key=naturally)


def find_folder(path: Path) -> dict[str, Path]:
    """Return the folder (or file) itself, when a cloud is there."""
    return {path.resolve().stem: path} if clouds_in(path) else {}


def find_nuscenes(path: Path) -> dict[str, Path]:
    """Return the folder itself, when a ``.pcd.bin`` is there."""
    return {path.resolve().name: path} if clouds_in(path, NUSCENES) else {}


class FolderSequence:
    """The clouds of a folder, sorted naturally, or of a single file; there are no labels."""

    suffix = ""

    def __init__(self, name: str, path: Path, fields: Listed[str] | None = None) -> None:
        self.name, self.fields = name, fields
        self.folder = path.parent if path.is_file() else path
        self.files = clouds_in(path, self.suffix)
        check(bool(self.files), f"{path}: no cloud there; give a folder of scans")
        self._alone = path.is_file()

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.files)

    def stem(self, index: int) -> str:
        """Return the name of a scan's file without its format."""
        file = self.files[index]
        return file.name[: -len(NUSCENES)] if file.name.lower().endswith(NUSCENES) else file.stem

    def scan(self, index: int, *, drop_invalid: bool = False) -> Cloud:
        """Return a scan."""
        file = self.files[index]
        fields = self.fields if file.suffix.lower() in (".bin", ".npy") else None
        return read_cloud(file, fields, drop_invalid=drop_invalid)

    def labels(self, index: int) -> npt.NDArray[np.uint32] | None:
        """Return None."""
        return None

    def pose(self, index: int) -> Pose:
        """Return where the sensor was, the poses of ``poses.txt`` seen from the first; a single file needs none."""
        if self._alone:
            return np.eye(4)
        poses = self._poses
        check(
            len(poses) == len(self),
            f"{self.folder / POSES}: {len(poses)} poses for {len(self)} scans; write one per scan",
        )
        return inverse(poses[0]) @ poses[index]

    @cached_property
    def _poses(self) -> list[Pose]:
        return read_poses(self.folder / POSES)


class NuScenesFolder(FolderSequence):
    """The ``.pcd.bin`` of a folder: float32 x, y, z, intensity, ring."""

    suffix = NUSCENES
