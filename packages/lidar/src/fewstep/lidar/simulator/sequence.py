"""Simulated drives on disk, in SemanticKITTI's layout."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewstep.core.errors import UserError, check
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
from fewstep.lidar.simulator.ground import Array
from fewstep.lidar.simulator.scanner import Scan, scan_pose, simulate_scan
from fewstep.lidar.simulator.street import make_street
from fewstep.lidar.simulator.world import World, rotation

HDL_64E = SensorConfig()
STREET = StreetConfig()
MAX_SCANS = 1_000_000  # six digits name a scan


def camera_from_lidar() -> Array:
    """Return the calibration ``Tr`` 4x4: x to the right, y down, z ahead, mounted a little askew beside the LiDAR."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ rotation(0.007, -0.011).T
    pose[:3, 3] = -0.01, -0.07, -0.28
    return pose


def _numbers(matrix: Array) -> str:
    return " ".join(f"{value:.12e}" for value in matrix[:3].ravel())


def _calibration() -> str:
    camera = np.array([[718.0, 0, 607, 0], [0, 718, 185, 0], [0, 0, 1, 0]])
    lines = []
    for number, shift in enumerate((0.0, -386.0, 45.0, -337.0)):  # focal length x baseline of KITTI's four cameras
        camera[0, 3] = shift
        lines.append(f"P{number}: {_numbers(camera)}")
    return "\n".join([*lines, f"Tr: {_numbers(camera_from_lidar())}", ""])


def drive(scans: int, seed: int, street: StreetConfig, sensor: SensorConfig) -> World:
    """Return the street of a drive of some scans, long enough for it unless ``street.length`` says how long.

    Raises UserError when the drive is longer than that.
    """
    check(1 <= scans <= MAX_SCANS, f"simulator: scans={scans} must be a whole number from 1 to {MAX_SCANS}")
    check(0 <= seed < 2**63, f"simulator: seed={seed} must be a whole number from 0 to 2^63 - 1")
    driven = street.speed * (scans - 1) / sensor.rate
    if street.length is None:
        street = replace(street, length=driven)
    check(
        driven <= (street.length or 0.0),
        f"simulator: {scans} scans at speed={street.speed} drive {driven:.0f} m, and the street's length is "
        f"{street.length} m: take fewer scans or a longer street",
    )
    return make_street(street, seed)


def simulate_sequence(
    out: Path,
    name: str,
    scans: int,
    seed: int,
    street: StreetConfig = STREET,
    sensor: SensorConfig = HDL_64E,
    progress: bool = False,
) -> Path:
    """Write a simulated drive as ``out/sequences/name`` and return that folder; it appears whole or not at all.

    Raises UserError when it exists already, cannot be written, or the drive does not fit on the street.
    """
    check(
        bool(name) and name not in (".", "..") and not set(name) & set('/\\:*?"<>|\0'),
        f"simulator: '{name}' cannot name a sequence; use letters and digits, such as 08",
    )
    folder = Path(out) / "sequences" / name
    check(not folder.exists(), f"simulator: {folder} exists already; remove it, or choose another name or folder")
    world = drive(scans, seed, street, sensor)
    aside = folder.with_name(f".{name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_sequence(aside, world, scans, seed, sensor, name if progress else None)
        aside.rename(folder)
    except OSError as error:
        raise UserError(f"simulator: {folder} cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_sequence(
    folder: Path, world: World, scans: int, seed: int, sensor: SensorConfig, shown: str | None = None
) -> None:
    """Write a drive in a world of any making into an existing folder; ``shown`` names its progress bar."""
    from tqdm import tqdm

    for part in ("velodyne", "labels"):
        (folder / part).mkdir()
    times = np.arange(scans) / sensor.rate
    for number in tqdm(range(scans), desc=shown, unit="scan", disable=shown is None):
        scan = simulate_scan(world, sensor, float(times[number]), np.random.default_rng([seed, 1, number]))
        write_scan(folder, f"{number:06d}", scan)
    tr = camera_from_lidar()
    first = np.linalg.inv(scan_pose(world, sensor, 0.0))
    back = np.linalg.inv(tr)
    poses = [tr @ first @ scan_pose(world, sensor, float(time)) @ back for time in times]
    texts = {
        "poses.txt": "".join(f"{_numbers(pose)}\n" for pose in poses),
        "times.txt": "".join(f"{time:.6e}\n" for time in times),
        "calib.txt": _calibration(),
    }
    for file, text in texts.items():
        (folder / file).write_bytes(text.encode("ascii"))


def write_scan(folder: Path, stem: str, scan: Scan) -> None:
    """Write a scan's points and labels into a sequence's folder."""
    rows = np.concatenate([scan.xyz, scan.remission[:, None]], 1).astype("<f4")
    (folder / "velodyne" / f"{stem}.bin").write_bytes(rows.tobytes())
    (folder / "labels" / f"{stem}.label").write_bytes(scan.labels.astype("<u4").tobytes())
