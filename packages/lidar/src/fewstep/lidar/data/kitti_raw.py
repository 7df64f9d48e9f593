"""KITTI raw: a folder per drive, with ``velodyne_points/data`` and the inertial unit's ``oxts/data``."""

from __future__ import annotations

import math
from collections.abc import Sequence as Listed
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.clouds import Cloud, read_cloud
from fewstep.lidar.data.folder import naturally
from fewstep.lidar.data.poses import Pose, calibrated, euler, inverse, numbers_in, read_calibration, read_text, rigid

EARTH_M = 6378137.0
SCANS = Path("velodyne_points") / "data"
CALIBRATION = "calib_imu_to_velo.txt"


def find_drives(path: Path) -> dict[str, Path]:
    """Return the drives at a path: itself, below a date, or below a root of dates."""
    if (path / SCANS).is_dir():
        return {path.resolve().name: path}
    found = [each.parents[1] for depth in ("*", "*/*") for each in sorted(path.glob(f"{depth}/{SCANS.as_posix()}"))]
    return {each.name: each for each in found}


class KittiRaw:
    """One drive; there are no labels. Poses are the inertial unit's, by a Mercator projection at the first scan."""

    def __init__(self, name: str, folder: Path, fields: Listed[str] | None = None) -> None:
        self.name, self.folder, self.fields = name, folder, fields
        self.files = sorted((folder / SCANS).glob("*.bin"), key=naturally)
        check(bool(self.files), f"{folder / SCANS}: no .bin there; give a drive with scans")

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
        """Return None."""
        return None

    def pose(self, index: int) -> Pose:
        """Return where the LiDAR was in the frame of scan 0; UserError when a scan has no file in ``oxts/data``."""
        return self._start @ self._in_world(index)

    def _in_world(self, index: int) -> Pose:
        return mercator(self._measured(index), self._scale) @ inverse(self._imu_to_lidar)

    def _measured(self, index: int) -> npt.NDArray[np.float64]:
        file = self.folder / "oxts" / "data" / f"{self.stem(index)}.txt"
        words = read_text(file, "the pose of a scan").split()
        check(len(words) >= 6, f"{file}: {len(words)} numbers; latitude, longitude, altitude and 3 angles are needed")
        values = numbers_in(words[:6], str(file))
        check(abs(float(values[0])) < 90, f"{file}: a latitude of {values[0]:g} degrees; copy it again")
        return values

    @cached_property
    def _scale(self) -> float:
        return math.cos(math.radians(self._measured(0)[0]))

    @cached_property
    def _start(self) -> Pose:
        return inverse(self._in_world(0))

    @cached_property
    def _imu_to_lidar(self) -> Pose:
        for place in (self.folder, *self.folder.resolve().parents[:2]):
            file = place / CALIBRATION
            if file.is_file():
                found = read_calibration(file)
                rotation = calibrated(found, "R", 9, file).reshape(3, 3)
                shift = calibrated(found, "T", 3, file).reshape(3, 1)
                return rigid(np.hstack([rotation, shift]), f"{file}: 'R'")
        return np.eye(4)


def mercator(measured: npt.NDArray[np.float64], scale: float) -> Pose:
    """Return the pose of (latitude, longitude in degrees, altitude in metres, roll, pitch, yaw in radians).

    ``scale``: the cosine of the latitude where distances are true (KITTI's development kit: that of the first scan).
    """
    latitude, longitude, altitude, roll, pitch, yaw = (float(value) for value in measured)
    pose = np.eye(4)
    pose[:3, :3] = euler(roll, pitch, yaw)
    north = math.log(math.tan(math.pi * (90 + latitude) / 360))
    pose[:3, 3] = scale * EARTH_M * math.radians(longitude), scale * EARTH_M * north, altitude
    return pose
