"""Clouds read and written by the suffix of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.lidar.clouds.cloud import Cloud
from fewstep.lidar.clouds.layout import SUFFIXES
from fewstep.lidar.clouds.npy import npy_bytes, read_npy
from fewstep.lidar.clouds.pcd import pcd_bytes, read_pcd
from fewstep.lidar.clouds.ply import ply_bytes, read_ply
from fewstep.lidar.clouds.rows import read_rows, rows_bytes

MAX_BYTES = 4 * 2**30


def read_cloud(path: str | Path, fields: Sequence[str] | None = None, *, drop_invalid: bool = False) -> Cloud:
    """Return the cloud in a file (:data:`SUFFIXES`).

    ``fields``: the columns of a file that does not name its own, as ``("x", "y", "z", "ring:uint16")``. Points with a
    coordinate that is NaN or infinite are dropped when ``drop_invalid``. Raises UserError naming the file, what is
    wrong and what to do; nothing larger than the file is allocated before its header is checked against its size.
    """
    file = Path(path).expanduser()
    suffix = _suffix(file)
    data = read_bytes(file)
    check(
        fields is None or suffix in (".bin", ".npy"), f"{file}: a {suffix} names its own columns; leave the fields out"
    )
    if suffix == ".bin":
        cloud = read_rows(file, data, fields)
    elif suffix == ".npy":
        cloud = read_npy(file, data, fields)
    else:
        cloud = (read_ply if suffix == ".ply" else read_pcd)(file, data)
    valid = np.asarray(np.isfinite(cloud.xyz).all(axis=1))
    if valid.all():
        return cloud
    bad = int((~valid).sum())
    check(
        drop_invalid,
        f"{file}: {bad} of {len(cloud)} points have a NaN or infinite coordinate; --drop-invalid (drop_invalid=True) "
        "leaves them out",
    )
    check(bad < len(cloud), f"{file}: no point with finite coordinates; leave it out")
    return cloud.take(valid)


def read_bytes(file: Path) -> bytes:
    """Return what is in a file of at most :data:`MAX_BYTES`; UserError when it cannot be read or is empty."""
    try:
        check(not file.is_dir(), f"{file}: is a folder; give a file")
        size = file.stat().st_size
        check(file.is_file(), f"{file}: is no regular file; give a file")
        check(size <= MAX_BYTES, f"{file}: {size / 2**30:.1f} GiB are more than {MAX_BYTES // 2**30}; split the cloud")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read ({reason}); give a file of a cloud") from error
    check(len(data) > 0, f"{file}: is empty; copy it again")
    return data


def write_cloud(path: str | Path, cloud: Cloud) -> None:
    """Write a cloud by suffix, whole or not at all; folders on the way are made.

    ``.ply`` and ``.pcd``: binary, float32 coordinates and all fields. ``.npy``: coordinates as they are, records where
    there are fields. ``.bin``: float32 x, y, z, remission; ``.pcd.bin``: x, y, z, intensity, ring. Raises UserError.
    """
    file = Path(path).expanduser()
    suffix = _suffix(file)
    if suffix == ".bin":
        data = rows_bytes(file, cloud)
    elif suffix == ".npy":
        data = npy_bytes(cloud)
    else:
        data = (ply_bytes if suffix == ".ply" else pcd_bytes)(cloud, str(file))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda aside: aside.write_bytes(data))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error}); give another place") from error


def _suffix(file: Path) -> str:
    suffix = file.suffix.lower()
    check(suffix in SUFFIXES, f"{file}: '{suffix}' is no format of clouds; these are {', '.join(SUFFIXES)}")
    return suffix
