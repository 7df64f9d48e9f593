"""``.bin``: rows of numbers without a header, little-endian. KITTI's have four columns, nuScenes' ``.pcd.bin`` five."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.core.errors import UserError
from fewstep.lidar.clouds.cloud import Cloud
from fewstep.lidar.clouds.layout import AXES, KITTI, NUSCENES, cloud_of, columns_of, row_type


def layout_of(path: Path) -> tuple[str, ...]:
    """Return the columns a file has when nothing else is said: float32 x, y, z and what the suffix adds."""
    return NUSCENES if path.name.lower().endswith(".pcd.bin") else KITTI


def read_rows(path: Path, data: bytes, fields: Sequence[str] | None = None) -> Cloud:
    """Return the cloud of a ``.bin``; UserError when its size is no multiple of a row's."""
    names = tuple(fields) if fields is not None else layout_of(path)
    row = row_type(names)
    if len(data) % row.itemsize:
        fitting = [str(n) for n in range(3, 9) if len(data) % (4 * n) == 0]
        advice = f"rows of {' or '.join(fitting)} float32 would fit: declare fields" if fitting else "copy it again"
        raise UserError(
            f"{path}: {len(data)} bytes are not a whole number of rows of {row.itemsize} bytes ({','.join(names)}); "
            f"{advice}"
        )
    return cloud_of(columns_of(np.frombuffer(data, row)), str(path))


def rows_bytes(path: Path, cloud: Cloud) -> bytes:
    """Return the content of a ``.bin``: float32 in the suffix's own columns, 0 where the cloud has no such field.

    Other fields are left out; ``remission`` and ``intensity`` are the same column.
    """
    names = layout_of(path)
    rows = np.zeros((len(cloud), len(names)), "<f4")
    rows[:, : len(AXES)] = cloud.xyz
    for number, name in enumerate(names):
        for given in ("remission", "intensity") if name in ("remission", "intensity") else (name,):
            if given in cloud.fields:
                rows[:, number] = cloud.fields[given]
    return rows.tobytes()
