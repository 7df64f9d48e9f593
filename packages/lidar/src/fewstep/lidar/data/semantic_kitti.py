"""SemanticKITTI: ``sequences/SS`` with ``velodyne``, ``labels``, ``poses.txt`` and ``calib.txt``."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError, check
from fewstep.lidar.clouds import Cloud, read_cloud
from fewstep.lidar.clouds.files import read_bytes
from fewstep.lidar.clouds.layout import row_type
from fewstep.lidar.clouds.rows import layout_of
from fewstep.lidar.data.folder import naturally
from fewstep.lidar.data.poses import Pose, calibrated, inverse, read_calibration, read_poses, rigid


def find_sequence_folders(path: Path) -> dict[str, Path]:
    """Return the sequences below a root, one with ``dataset`` in between, ``sequences`` itself, or one sequence."""
    if (path / "velodyne").is_dir():
        return {path.resolve().name: path}
    for parent in (path / "sequences", path / "dataset" / "sequences", path):
        if parent.is_dir():
            found = {each.name: each for each in sorted(parent.iterdir()) if (each / "velodyne").is_dir()}
            if found:
                return found
    return {}


class SemanticKitti:
    """One sequence; labels and poses are read when they are asked for."""

    def __init__(self, name: str, folder: Path, fields: Listed[str] | None = None) -> None:
        self.name, self.folder, self.fields = name, folder, fields
        self.files = sorted((folder / "velodyne").glob("*.bin"), key=naturally)
        check(bool(self.files), f"{folder / 'velodyne'}: no .bin there; give a sequence with scans")

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.files)

    def stem(self, index: int) -> str:
        """Return the number of a scan as its file has it."""
        return self.files[index].stem

    def scan(self, index: int, *, drop_invalid: bool = False) -> Cloud:
        """Return a scan with its ``remission``."""
        return read_cloud(self.files[index], self.fields, drop_invalid=drop_invalid)

    def labels(self, index: int) -> npt.NDArray[np.uint32] | None:
        """Return a scan's labels, or None; UserError when there is not one per point."""
        file = self.folder / "labels" / f"{self.stem(index)}.label"
        if not file.exists():
            return None
        data = read_bytes(file)
        scan = self.files[index]
        points = scan.stat().st_size // row_type(self.fields or layout_of(scan)).itemsize
        check(
            len(data) == 4 * points,
            f"{file}: {len(data)} bytes are not the labels of the {points} points of {scan.name} (4 bytes each): "
            "copy both again",
        )
        return np.frombuffer(data, "<u4").astype(np.uint32)

    def pose(self, index: int) -> Pose:
        """Return Tr^-1 P Tr of the camera's pose P; a file of more poses than scans is read by the scans' numbers."""
        poses = self._poses
        row = index if len(poses) <= len(self) else self._number(index)
        check(
            len(poses) >= len(self) and row < len(poses),
            f"{self.folder / 'poses.txt'}: {len(poses)} poses for {len(self)} scans (up to {self.stem(-1)}); "
            "write one per scan",
        )
        return inverse(self._calibration) @ poses[row] @ self._calibration

    def _number(self, index: int) -> int:
        stem = self.stem(index)
        if not (stem.isascii() and stem.isdigit() and len(stem) < 16):
            raise UserError(f"{self.files[index]}: not named by a number, so no pose is its own; rename it")
        return int(stem)

    @cached_property
    def _poses(self) -> list[Pose]:
        return read_poses(self.folder / "poses.txt")

    @cached_property
    def _calibration(self) -> Pose:
        file = self.folder / "calib.txt"
        if not file.exists():
            return np.eye(4)
        return rigid(calibrated(read_calibration(file), "Tr", 12, file), f"{file}: 'Tr'")
