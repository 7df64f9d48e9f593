"""``.npy``: a plain array "n 3" or "n k", or a structured one with x, y and z. Never one of objects."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from fewstep.core.errors import UserError, check
from fewstep.lidar.clouds.cloud import Cloud
from fewstep.lidar.clouds.layout import KITTI, MAX_COLUMNS, cloud_of, columns_of, row_type

_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
# what numpy's own reading of a damaged header ends in
_DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def read_npy(path: Path, data: bytes, fields: Sequence[str] | None = None) -> Cloud:
    """Return the cloud of a ``.npy``: columns x, y, z, remission, ``column_4``, ..., or as ``fields`` name them."""
    array = read_array(path, data)
    if array.dtype.names is not None:
        check(fields is None, f"{path}: its columns have names of their own; leave the fields out")
        check(array.ndim == 1, f"{path}: records of shape {array.shape}; give one per point")
        return cloud_of(columns_of(array), str(path))
    check(
        array.ndim == 2 and 3 <= array.shape[1] <= MAX_COLUMNS,
        f"{path}: an array of shape {array.shape}; give one of shape (n, 3), or (n, k) with x, y, z first",
    )
    width = array.shape[1]
    names: tuple[str, ...] = (*KITTI, *(f"column_{number}" for number in range(len(KITTI), width)))[:width]
    if fields is not None:
        names = row_type(fields).names or ()
        check(len(names) == width, f"{path}: {width} columns, but fields name {len(names)}; name every column")
    return cloud_of({name: array[:, number] for number, name in enumerate(names)}, str(path))


def read_array(path: Path, data: bytes) -> npt.NDArray[Any]:
    """Return the array of real numbers in a ``.npy``, a read-only view; UserError before anything is allocated."""
    file = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers Python 2 wrote
            version = npy_format.read_magic(file)
            shape, by_columns, kind = _HEADERS[version](file)
    except _DAMAGED as error:
        raise UserError(f"{path}: not a readable .npy; write it with numpy.save") from error
    parts = [kind[name] for name in kind.names] if kind.names else [kind]
    check(
        all(part.kind in "fiu" and part.itemsize <= 8 and part.shape == () for part in parts),
        f"{path}: holds {kind}, which is not real numbers; save float32 coordinates",
    )
    check(all(side >= 0 for side in shape), f"{path}: a shape of {shape}; write it with numpy.save")
    size = math.prod(shape) * kind.itemsize
    held = len(data) - file.tell()
    check(size <= held, f"{path}: its header promises {size} bytes, but {held} follow: copy it again")
    check(size > 0, f"{path}: no point in it; leave it out")
    array = np.frombuffer(data, kind, math.prod(shape), file.tell())
    return array.reshape(shape, order="F" if by_columns else "C")


def npy_bytes(cloud: Cloud) -> bytes:
    """Return the content of a ``.npy``: "n 3", or records where the cloud has fields."""
    file = io.BytesIO()
    if not cloud.fields:
        np.save(file, cloud.xyz, allow_pickle=False)
        return file.getvalue()
    kinds: list[tuple[str, Any]] = [(axis, cloud.xyz.dtype) for axis in "xyz"]
    records = np.empty(len(cloud), kinds + [(name, column.dtype) for name, column in cloud.fields.items()])
    for number, axis in enumerate("xyz"):
        records[axis] = cloud.xyz[:, number]
    for name, column in cloud.fields.items():
        records[name] = column
    np.save(file, records, allow_pickle=False)
    return file.getvalue()
