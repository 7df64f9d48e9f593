"""``.pcd`` of the Point Cloud Library: ascii, binary and binary_compressed."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.clouds.cloud import Cloud, Column
from fewstep.lidar.clouds.layout import MAX_COLUMNS, cloud_of, columns_of, count_in
from fewstep.lidar.clouds.lzf import decompress

MAX_HEADER = 2**16
_KINDS = ("ascii", "binary", "binary_compressed")
_TYPES = {"F4", "F8", *(f"{sign}{size}" for sign in "IU" for size in (1, 2, 4, 8))}


@dataclass(frozen=True)
class Header:
    """``columns``: names and dtypes of the numbers of a point. ``kind``: one of ascii, binary, binary_compressed."""

    columns: list[tuple[str, str]]
    points: int
    kind: str
    start: int


def read_pcd(path: Path, data: bytes) -> Cloud:
    """Return the cloud of a ``.pcd``; UserError before anything is allocated. Columns named ``_`` are padding."""
    header = read_header(path, data)
    check(header.points > 0, f"{path}: no point in it; leave it out")
    row = np.dtype(header.columns)
    body = data[header.start :]
    if header.kind == "ascii":
        columns = _from_text(path, body, header)
    elif header.kind == "binary":
        _check_holds(path, header.points * row.itemsize, len(body))
        columns = columns_of(np.frombuffer(body, row, header.points))
    else:
        columns = _from_compressed(path, body, header, row.itemsize)
    return cloud_of({name: column for name, column in columns.items() if not name.startswith("_ ")}, str(path))


def read_header(path: Path, data: bytes) -> Header:
    """Return what a header declares; UserError naming what is missing or malformed."""
    given: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in given:
        stop = data.find(b"\n", start, MAX_HEADER)
        check(stop >= 0, f"{path}: its header has no end (no 'DATA' line): is it a .pcd? copy it again")
        line, start = data[start:stop].decode("latin-1").strip(), stop + 1
        if line and not line.startswith("#"):
            key, *values = line.split()
            given[key] = values
    for key in ("FIELDS", "SIZE", "TYPE", "WIDTH"):
        check(bool(given.get(key)), f"{path}: its header has no {key} line: is it a .pcd? write it again")
    kind = " ".join(given["DATA"])
    if kind not in _KINDS:
        raise UserError(f"{path}: header line 'DATA {kind[:40]}': {nearest(kind, _KINDS)}")
    sides = [count_in(each) for each in (given["WIDTH"] + given.get("HEIGHT", ["1"]))]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise UserError(f"{path}: WIDTH and HEIGHT in its header are no counts; write it again")
    points = sides[0] * sides[1]
    check(
        given.get("POINTS", [str(points)]) == [str(points)],
        f"{path}: its header has WIDTH {sides[0]} x HEIGHT {sides[1]}, but not so many POINTS; write it again",
    )
    return Header(_columns(path, given), points, kind, start)


def _columns(path: Path, given: dict[str, list[str]]) -> list[tuple[str, str]]:
    names, sizes, types = given["FIELDS"], given["SIZE"], given["TYPE"]
    counts = given.get("COUNT", ["1"] * len(names))
    check(
        len(names) == len(sizes) == len(types) == len(counts),
        f"{path}: FIELDS, SIZE, TYPE and COUNT of its header differ in length; write it again",
    )
    columns: list[tuple[str, str]] = []
    for name, size, kind, times in zip(names, sizes, types, counts, strict=True):
        check(
            kind + size in _TYPES, f"{path}: its field '{name[:40]}' is of TYPE {kind[:9]} SIZE {size[:9]}; not known"
        )
        number = count_in(times)
        if number is None or not 0 < number <= MAX_COLUMNS or len(columns) + number > MAX_COLUMNS:
            raise UserError(f"{path}: COUNT {times[:20]} of '{name[:40]}': at most {MAX_COLUMNS} numbers make a point")
        for each in range(number):
            # padding has the same name again and again
            own = f"_ {len(columns)}" if name == "_" else name if number == 1 else f"{name}_{each}"
            columns.append((own, f"<{kind.lower()}{size}"))
    taken = [name for name, _ in columns]
    check(len(set(taken)) == len(taken), f"{path}: two fields of one name in its header; write it again")
    return columns


def _check_holds(path: Path, size: int, held: int, unit: str = "bytes") -> None:
    check(size <= held, f"{path}: its header promises {size} {unit}, but {held} follow: copy it again")


def _from_text(path: Path, body: bytes, header: Header) -> dict[str, Column]:
    width = len(header.columns)
    _check_holds(path, 2 * header.points * width - 1, len(body))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of a word that is no number
            numbers = np.fromstring(body.decode("ascii"), np.float64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise UserError(f"{path}: its text holds more than numbers; write the file again") from error
    _check_holds(path, header.points * width, len(numbers), "numbers")
    table = numbers[: header.points * width].reshape(header.points, width)
    columns: dict[str, Column] = {}
    for number, (name, kind) in enumerate(header.columns):
        column = table[:, number]
        if kind[1] != "f":
            bounds = np.iinfo(kind)
            fits = bool(((column >= bounds.min) & (column <= bounds.max)).all())
            check(fits, f"{path}: a number does not fit the type its header gives; write the file again")
        with np.errstate(over="ignore"):  # becomes infinite, which is told of coordinates
            columns[name] = column.astype(kind)
    return columns


def _from_compressed(path: Path, body: bytes, header: Header, row: int) -> dict[str, Column]:
    _check_holds(path, 8, len(body))
    packed, size = struct.unpack("<II", body[:8])
    _check_holds(path, packed, len(body) - 8)
    check(
        size == header.points * row,
        f"{path}: its header promises {header.points * row} bytes of points, its data {size}: copy it again",
    )
    plain = decompress(body[8 : 8 + packed], size, str(path))
    columns: dict[str, Column] = {}
    at = 0
    for name, kind in header.columns:  # one column after the other
        columns[name] = np.frombuffer(plain, kind, header.points, at)
        at += columns[name].nbytes
    return columns


def pcd_bytes(cloud: Cloud, where: str) -> bytes:
    """Return the content of a binary ``.pcd``: float32 coordinates, and every field in its own type."""
    columns: dict[str, Column] = {axis: cloud.xyz[:, number].astype("<f4") for number, axis in enumerate("xyz")}
    for name, column in cloud.fields.items():
        check(
            name.isascii() and name.split() == [name] and name != "_",
            f"{where}: '{name}' cannot name a field of a .pcd; rename it",
        )
        kind = "u1" if column.dtype.kind == "b" else "f4" if column.dtype == np.float16 else column.dtype.str[1:]
        check(kind.upper() in _TYPES, f"{where}: field '{name}' is of {column.dtype}; a .pcd holds numbers only")
        columns[name] = column.astype(f"<{kind}")
    rows = np.empty(len(cloud), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(columns)}",
        f"SIZE {' '.join(str(column.dtype.itemsize) for column in columns.values())}",
        f"TYPE {' '.join(column.dtype.kind.upper() for column in columns.values())}",
        f"COUNT {' '.join('1' for _ in columns)}",
        f"WIDTH {len(cloud)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(cloud)}",
        "DATA binary\n",
    ]
    return "\n".join(lines).encode("ascii") + rows.tobytes()
