"""Poses and calibrations out of text files; what is no rotation is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError, check

Pose = npt.NDArray[np.float64]
"""A rigid motion, "4 4"."""

TOLERANCE = 1e-3  # of a rotation: of R^T R from the identity
MAX_BYTES = 256 * 2**20


def read_text(path: Path, what: str) -> str:
    """Return the text of a file of at most :data:`MAX_BYTES`; UserError saying that ``what`` cannot be read."""
    try:
        size = path.stat().st_size
        check(size <= MAX_BYTES, f"{path}: {size / 2**20:.0f} MiB are too much for {what}; give the right file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror or error}); add the file") from error
    except ValueError as error:
        raise UserError(f"{path}: {what} cannot be read (not text); give the right file") from error


def numbers_in(words: list[str], where: str) -> npt.NDArray[np.float64]:
    """Return finite numbers; UserError for a word that is none."""
    try:
        found = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise UserError(f"{where}: not numbers ({error}); write the file again") from error
    check(bool(np.isfinite(found).all()), f"{where}: a NaN or infinite number; write the file again")
    return found


def rigid(values: npt.NDArray[Any], where: str) -> Pose:
    """Return the motion of 12 or 16 numbers, row by row; UserError unless its 3x3 is a rotation."""
    pose = np.eye(4)
    pose[: values.size // 4] = values.reshape(-1, 4)
    rotation = pose[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are no rotation at all
        off = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if not off <= TOLERANCE:
        raise UserError(f"{where}: its 3x3 part is no rotation (R^T R is off by {off:.2g}); write the file again")
    check(float(np.linalg.det(rotation)) > 0, f"{where}: its 3x3 part mirrors (determinant -1); write the file again")
    check(bool((pose[3] == (0, 0, 0, 1)).all()), f"{where}: its last row is not 0 0 0 1; write the file again")
    return pose


def read_poses(path: Path) -> list[Pose]:
    """Return a pose per line of 12 or 16 numbers; UserError naming the line."""
    poses = []
    for number, line in enumerate(read_text(path, "poses").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        check(len(words) in (12, 16), f"{where}: {len(words)} numbers; a pose has 12 (3x4, row by row) or 16")
        poses.append(rigid(numbers_in(words, where), where))
    check(bool(poses), f"{path}: no pose in it; write one per scan")
    return poses


def read_calibration(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Return the numbers of every ``KEY: numbers`` line; KITTI's ``calib_time`` is none."""
    found: dict[str, npt.NDArray[np.float64]] = {}
    for number, line in enumerate(read_text(path, "calibration").splitlines(), 1):
        key, colon, values = line.partition(":")
        if colon and key.strip() != "calib_time":
            found[key.strip()] = numbers_in(values.split(), f"{path}, line {number}")
    return found


def calibrated(found: dict[str, npt.NDArray[np.float64]], key: str, count: int, path: Path) -> npt.NDArray[np.float64]:
    """Return the ``count`` numbers of a key; UserError when it is missing or has others."""
    check(key in found, f"{path}: no '{key}:' line; write the calibration again")
    check(found[key].size == count, f"{path}: '{key}' has {found[key].size} numbers, not {count}; write it again")
    return found[key]


def moved(pose: Pose, xyz: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return points "n 3" after a motion, in float64."""
    return np.asarray(np.asarray(xyz, np.float64) @ pose[:3, :3].T + pose[:3, 3])


def inverse(pose: Pose) -> Pose:
    """Return the motion back."""
    return np.asarray(np.linalg.inv(pose), np.float64)


def euler(roll: float, pitch: float, yaw: float) -> npt.NDArray[np.float64]:
    """Return the rotation "3 3" of turning about x by ``roll``, then y by ``pitch``, then z by ``yaw`` (radians)."""
    (sr, sp, sy), (cr, cp, cy) = map(math.sin, (roll, pitch, yaw)), map(math.cos, (roll, pitch, yaw))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
