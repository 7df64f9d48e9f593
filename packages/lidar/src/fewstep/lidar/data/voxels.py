"""The voxels of SemanticKITTI's semantic completion: another task than completing points, read but not mixed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check
from fewstep.lidar.clouds.files import read_bytes

GRID = (256, 256, 32)
SIZE = 0.2  # metres
ORIGIN = (0.0, -25.6, -2.0)


@dataclass(frozen=True)
class Voxels:
    """Grids "256 256 32" over x 0 to 51.2, y -25.6 to 25.6, z -2 to 4.4 m; ``labels`` and ``invalid`` where known."""

    occupied: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.uint16] | None
    invalid: npt.NDArray[np.bool_] | None


def read_voxels(path: str | Path) -> Voxels:
    """Return a ``voxels/NNNNNN.bin`` (a bit per voxel) with its ``.label`` and ``.invalid``; UserError by size."""
    file = Path(path).expanduser()
    label, invalid = file.with_suffix(".label"), file.with_suffix(".invalid")
    labels = np.frombuffer(_read(label, 16), "<u2").reshape(GRID).astype(np.uint16) if label.exists() else None
    return Voxels(_bits(file), labels, _bits(invalid) if invalid.exists() else None)


def _bits(file: Path) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(_read(file, 1), np.uint8)).reshape(GRID).astype(bool)


def _read(file: Path, bits: int) -> bytes:
    data = read_bytes(file)
    size = GRID[0] * GRID[1] * GRID[2] * bits // 8
    check(len(data) == size, f"{file}: {len(data)} bytes; a grid of 256x256x32 has {size}: copy it again")
    return data
