"""``.ply``: ascii and binary of either byte order. The element ``vertex`` is the cloud; others are stepped over."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import UserError, check, nearest
from fewstep.lidar.clouds.cloud import Cloud, Column
from fewstep.lidar.clouds.layout import MAX_COLUMNS, cloud_of, columns_of, count_in

MAX_HEADER = 2**16
_FORMATS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_NAMES = {
    "i1": "char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
    "f4": "float",
    "f8": "double",
}
_SIZED = {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES = {name: kind for kind, name in _NAMES.items()} | _SIZED | {"float32": "f4", "float64": "f8"}


@dataclass(frozen=True)
class Property:
    """A number of an element, or a list of numbers when ``length`` is the type of its length."""

    name: str
    kind: str
    length: str = ""


@dataclass
class Element:
    """A table of the file: ``count`` rows of the same properties."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def has_lists(self) -> bool:
        """Return whether rows differ in length."""
        return any(each.length for each in self.properties)


@dataclass(frozen=True)
class Header:
    """``order``: of bytes, "=" for text. ``start``: where the data begin."""

    order: str
    elements: list[Element]
    start: int

    @property
    def text(self) -> bool:
        """Return whether the data are written as text."""
        return self.order == "="


def read_ply(path: Path, data: bytes) -> Cloud:
    """Return the vertices of a ``.ply``, every number of theirs a field; UserError before anything is allocated."""
    header = read_header(path, data)
    body: bytes | npt.NDArray[np.float64] = data
    at = header.start
    if header.text:
        body, at = _numbers(path, data[at:]), 0
    for element in header.elements:
        _check_holds(path, element, len(body) - at, header.text)
        if element.name != "vertex":
            at = _skip(path, body, at, element, header.order)
            continue
        check(element.count > 0, f"{path}: no point in it; leave it out")
        return cloud_of(_columns(path, body, at, element, header.order), str(path))
    raise UserError(f"{path}: no element 'vertex'; give a .ply of points")


def read_header(path: Path, data: bytes) -> Header:
    """Return what a header declares; UserError naming the line that is malformed."""
    check(data[:4] in (b"ply\n", b"ply\r"), f"{path}: not a .ply (it does not begin with 'ply'); name it by its format")
    order = ""
    elements: list[Element] = []
    start = 0
    while True:
        stop = data.find(b"\n", start, MAX_HEADER)
        check(stop >= 0, f"{path}: its header has no end (no 'end_header' line): copy it again")
        line, start = data[start:stop].decode("latin-1").strip(), stop + 1
        words = line.split()
        where = f"{path}: header line '{line[:60]}'"
        if line == "end_header":
            check(order != "", f"{path}: its header has no format line: write it again")
            return Header(order, elements, start)
        if not words or words[0] in ("ply", "comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3:
            if words[1] not in _FORMATS:
                raise UserError(f"{where}: no such format: {nearest(words[1], _FORMATS)}")
            order = _FORMATS[words[1]]
        elif words[0] == "element" and len(words) == 3:
            count = count_in(words[2])
            if count is None:
                raise UserError(f"{where}: not a count; write the file again")
            elements.append(Element(words[1], count))
        elif words[0] == "property" and elements:
            _add(elements[-1], words[1:], where)
        else:
            raise UserError(f"{where}: not understood; write the file again")


def _add(element: Element, words: list[str], where: str) -> None:
    listed = len(words) == 4 and words[0] == "list"
    check(listed or len(words) == 2, f"{where}: not understood; write the file again")
    for kind in words[1:3] if listed else words[:1]:
        if kind not in _TYPES:
            raise UserError(f"{where}: no type '{kind}': {nearest(kind, _TYPES)}")
    check(
        words[-1] not in [each.name for each in element.properties] and len(element.properties) < MAX_COLUMNS,
        f"{where}: a second property of that name, or more than {MAX_COLUMNS}; write the file again",
    )
    if listed:
        check(_TYPES[words[1]][0] != "f", f"{where}: the length of a list is a whole number; write the file again")
        element.properties.append(Property(words[3], _TYPES[words[2]], _TYPES[words[1]]))
    else:
        element.properties.append(Property(words[1], _TYPES[words[0]]))


def _numbers(path: Path, text: bytes) -> npt.NDArray[np.float64]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of a word that is no number
            return np.fromstring(text.decode("ascii"), np.float64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise UserError(f"{path}: its text holds more than numbers; write the file again") from error


def _check_holds(path: Path, element: Element, held: int, text: bool) -> None:
    row = sum(1 if text else np.dtype(each.length or each.kind).itemsize for each in element.properties)
    check(
        element.count * row <= held,
        f"{path}: its header promises {element.count} of '{element.name}', at least {element.count * row} "
        f"{'numbers' if text else 'bytes'}, but {held} follow: copy it again",
    )


def _skip(path: Path, body: bytes | npt.NDArray[np.float64], at: int, element: Element, order: str) -> int:
    if not element.properties:
        return at
    if not element.has_lists:
        width = 1 if order == "=" else 0
        return at + element.count * sum(width or np.dtype(each.kind).itemsize for each in element.properties)
    return _walk(path, body, at, element, order)[1]


def _columns(
    path: Path, body: bytes | npt.NDArray[np.float64], at: int, element: Element, order: str
) -> dict[str, Column]:
    if element.has_lists:
        return _walk(path, body, at, element, order)[0]
    names = [each.name for each in element.properties]
    if isinstance(body, bytes):
        row = np.dtype([(each.name, order + each.kind) for each in element.properties])
        return columns_of(np.frombuffer(body, row, element.count, at))
    table = body[at : at + element.count * len(names)].reshape(element.count, len(names))
    return {each.name: _cast(path, table[:, number], each.kind) for number, each in enumerate(element.properties)}


def _walk(
    path: Path, body: bytes | npt.NDArray[np.float64], at: int, element: Element, order: str
) -> tuple[dict[str, Column], int]:
    """Go through rows of different lengths; every one has a length of a list at least, so the file bounds them."""
    cut = UserError(f"{path}: '{element.name}' ends before its {element.count} rows do: copy it again")
    kept: dict[str, list[float]] = {each.name: [] for each in element.properties if not each.length}
    steps = [(each, np.dtype((order + each.kind) if order != "=" else "f8")) for each in element.properties]
    for _ in range(element.count):
        for each, kind in steps:
            read = np.dtype(order + each.length) if each.length and order != "=" else kind
            width = read.itemsize if isinstance(body, bytes) else 1
            if at + width > len(body):
                raise cut
            value = (np.frombuffer(body, read, 1, at)[0] if isinstance(body, bytes) else body[at]).item()
            at += width
            if not each.length:
                kept[each.name].append(value)
                continue
            check(0 <= value <= len(body), f"{path}: a list of {value:g} in '{element.name}': copy it again")
            at += int(value) * (kind.itemsize if isinstance(body, bytes) else 1)
            if at > len(body):
                raise cut
    kinds = {each.name: each.kind for each in element.properties}
    return {name: _cast(path, np.array(values), kinds[name]) for name, values in kept.items()}, at


def _cast(path: Path, column: npt.NDArray[Any], kind: str) -> Column:
    if kind[0] != "f":
        bounds = np.iinfo(kind)
        fits = bool(((column >= bounds.min) & (column <= bounds.max)).all())
        check(fits, f"{path}: a number does not fit the type its header gives; write the file again")
    with np.errstate(over="ignore"):  # becomes infinite, which is told of coordinates
        return column.astype(kind)


def ply_bytes(cloud: Cloud, where: str) -> bytes:
    """Return the content of a binary little-endian ``.ply``: float32 coordinates, and every field in its own type."""
    columns: dict[str, Column] = {axis: cloud.xyz[:, number].astype("<f4") for number, axis in enumerate("xyz")}
    for name, column in cloud.fields.items():
        check(name.isascii() and name.split() == [name], f"{where}: '{name}' cannot name a property; rename the field")
        columns[name] = _storable(column, f"{where}: field '{name}'")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    lines += [f"property {_NAMES[column.dtype.str[1:]]} {name}" for name, column in columns.items()]
    rows = np.empty(len(cloud), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    return "\n".join([*lines, "end_header\n"]).encode("ascii") + rows.tobytes()


def _storable(column: Column, where: str) -> Column:
    kind = {"b": "u1", "i": "i4", "u": "u4", "f": "f4"}.get(column.dtype.kind)
    if kind is None:
        raise UserError(f"{where} is of {column.dtype}; a .ply holds numbers only")
    small = np.dtype(column.dtype.str[1:] if column.dtype.str[1:] in _NAMES else kind).newbyteorder("<")
    stored = column.astype(small)
    fits = column.dtype.kind in "fb" or bool((stored.astype(column.dtype) == column).all())
    check(fits, f"{where} has numbers beyond 32 bits, which a .ply cannot hold; leave it out")
    return stored
