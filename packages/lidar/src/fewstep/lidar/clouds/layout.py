"""The columns of a point: declared by a user, or found in a file; and which formats there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.clouds.cloud import Cloud, Column

SUFFIXES = (".bin", ".ply", ".pcd", ".npy")
MAX_COLUMNS = 256
MAX_DIGITS = 15  # of a count in a header
AXES = ("x", "y", "z")
KITTI = ("x", "y", "z", "remission")
NUSCENES = ("x", "y", "z", "intensity", "ring")

_TYPES = ("float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def is_cloud(path: Path) -> bool:
    """Return whether a file's name is that of a cloud."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def row_type(fields: Sequence[str]) -> np.dtype[Any]:
    """Return the little-endian record of ``("x", "y", "z", "ring:uint16")``: ``name`` or ``name:dtype``, float32 else.

    UserError for a malformed list, an unknown dtype, and one without x, y, z.
    """
    listed = ",".join(fields)
    columns: list[tuple[str, str]] = []
    for each in fields:
        name, _, kind = each.partition(":")
        check(bool(name), f"fields '{listed}': a column without a name; write them as x,y,z,intensity:uint8")
        kind = kind or "float32"
        if kind not in _TYPES:
            raise UserError(f"fields '{listed}': no dtype '{kind}': {nearest(kind, _TYPES)}")
        columns.append((name, np.dtype(kind).newbyteorder("<").str))
    names = [name for name, _ in columns]
    check(len(set(names)) == len(names), f"fields '{listed}': a name is there twice; name every column once")
    check(set(AXES) <= set(names), f"fields '{listed}': x, y and z must be among them")
    check(len(names) <= MAX_COLUMNS, f"fields: {len(names)} columns are more than {MAX_COLUMNS}; name fewer")
    return np.dtype(columns)


def count_in(text: str) -> int | None:
    """Return a count written in a header, or None for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def cloud_of(columns: dict[str, Column], where: str) -> Cloud:
    """Return the cloud of columns "n" in any byte order; UserError when x, y or z is not among them."""
    missing = [axis for axis in AXES if axis not in columns]
    if missing:
        found = ", ".join(list(columns)[:8])
        raise UserError(f"{where}: no column {' or '.join(missing)} (found: {found}); a cloud needs x, y and z")
    wide = any(columns[axis].dtype.itemsize > 4 or columns[axis].dtype.kind != "f" for axis in AXES)
    kind = np.float64 if wide else np.float32
    xyz = np.stack([columns[axis].astype(kind) for axis in AXES], axis=1)
    rest = {name: column.astype(column.dtype.newbyteorder("=")) for name, column in columns.items() if name not in AXES}
    return Cloud(xyz, rest)


def columns_of(records: npt.NDArray[Any]) -> dict[str, Column]:
    """Return the columns of a structured array "n"."""
    return {name: records[name] for name in records.dtype.names or ()}
