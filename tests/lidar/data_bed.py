"""Small data sets on disk, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fewstep.core.errors import UserError
from fewstep.lidar.data.poses import euler

TURN = np.array([[0, -1, 0, 0.5], [0, 0, -1, -0.25], [1, 0, 0, 1.0], [0, 0, 0, 1]], np.float64)  # LiDAR to camera


def random_pose(seed: int, reach: float = 10.0) -> np.ndarray:
    """A rotation and a shift of up to ``reach`` metres."""
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = euler(*rng.uniform(-3, 3, 3))
    pose[:3, 3] = rng.uniform(-reach, reach, 3)
    return pose


def row(pose: np.ndarray, rows: int = 3) -> str:
    """A pose as a line of a file."""
    return " ".join(repr(float(value)) for value in pose[:rows].ravel())


def semantic_kitti(
    folder: Path,
    scans: Sequence[np.ndarray],
    *,
    labels: Sequence[np.ndarray] | None = None,
    poses: Sequence[np.ndarray] | None = None,
    transform: np.ndarray | None = None,
    first: int = 0,
) -> Path:
    """Write a sequence: scans "n 3" or "n 4", raw labels, poses of the camera, the calibration ``Tr``."""
    (folder / "velodyne").mkdir(parents=True)
    for number, scan in enumerate(scans, first):
        rows = np.zeros((len(scan), 4), "<f4")
        rows[:, : scan.shape[1]] = scan
        rows.tofile(folder / "velodyne" / f"{number:06d}.bin")
    if labels is not None:
        (folder / "labels").mkdir()
        for number, each in enumerate(labels, first):
            np.asarray(each, "<u4").tofile(folder / "labels" / f"{number:06d}.label")
    if poses is not None:
        (folder / "poses.txt").write_text("".join(row(pose) + "\n" for pose in poses))
    if transform is not None:
        (folder / "calib.txt").write_text(f"P0: {row(np.eye(4))}\nTr: {row(transform)}\n")
    return folder


def raises_line(says: str) -> object:
    """Expect a UserError of one line that says something, as a pattern."""
    return pytest.raises(UserError, match=f"^[^\n]*{says}[^\n]*$")
