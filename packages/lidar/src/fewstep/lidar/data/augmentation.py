"""One motion for a scan and what it is completed to: turned, scaled and mirrored alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.data.poses import euler

TILT_STD, MAX_TILT = 0.06, 0.18  # radians per axis
SCALES = (0.95, 1.05)


@dataclass(frozen=True)
class Motion:
    """A similarity: ``linear`` "3 3" is scale times rotation, mirrored or not."""

    linear: npt.NDArray[np.float64]

    def __call__(self, xyz: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return points "n 3" after it, in their own type."""
        return np.asarray((np.asarray(xyz, np.float64) @ self.linear.T).astype(xyz.dtype))


def augment(uniform: npt.NDArray[Any], normal: npt.NDArray[Any]) -> Motion:
    """Return the motion that random numbers stand for (LiDiff's): three in [0, 1) and three normal ones.

    Yaw in [0, 2 pi), a tilt of N(0, 0.06^2) radians per axis clipped at 0.18, a scale in [0.95, 1.05], and y mirrored
    when the third number is below a half.
    """
    check(
        np.shape(uniform) == (3,) and np.shape(normal) == (3,),
        f"augment takes 3 uniform and 3 normal numbers, not {np.shape(uniform)} and {np.shape(normal)}",
    )
    yaw, scale, mirror = (float(number) for number in uniform)
    tilt = np.clip(TILT_STD * np.asarray(normal, np.float64), -MAX_TILT, MAX_TILT)
    flip = np.diag([1.0, -1.0 if mirror < 0.5 else 1.0, 1.0])
    factor = SCALES[0] + (SCALES[1] - SCALES[0]) * scale
    return Motion(factor * flip @ euler(*(float(angle) for angle in tilt)) @ euler(0.0, 0.0, 2 * math.pi * yaw))
