"""Gaussians as ``.ply`` in the layout of the INRIA code: binary, little endian, properties found by their names.

Every count in a header is held against the size of the file before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.threed.gaussians.checked import check_values
from fewstep.threed.gaussians.harmonics import coefficient_count
from fewstep.threed.gaussians.parameters import Gaussians

HEADER_LIMIT = 2**16
TYPES = {
    "char": "<i1", "uchar": "<u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4",
    "double": "<f8", "int8": "<i1", "uint8": "<u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4",
    "float32": "<f4", "float64": "<f8",
}  # fmt: skip
POSITIONS = ("x", "y", "z")
NORMALS = ("nx", "ny", "nz")
COLOURS = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALES = ("scale_0", "scale_1", "scale_2")
ROTATIONS = ("rot_0", "rot_1", "rot_2", "rot_3")
REST = re.compile(r"f_rest_(0|[1-9]\d{0,3})")


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[tuple[str, str], ...]

    @property
    def row(self) -> np.dtype[np.void]:
        return np.dtype(list(self.properties))


def read_ply(path: Path) -> Gaussians:
    """Return the Gaussians of a file, in float32; UserError when it is not a whole file of them."""
    check(path.is_file(), f"{path}: no such file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(min(size, HEADER_LIMIT))
    start, elements = _header(path, head)
    for element in elements:
        needed = start + element.count * element.row.itemsize
        check(
            needed <= size,
            f"{path}: the header promises {element.count} of '{element.name}', which end at byte {needed}, but the "
            f"file has {size} bytes: write or download it again",
        )
        if element.name == "vertex":
            return _gaussians(path, element, start)
        start = needed
    raise UserError(f"{path}: no element 'vertex' in the header; give a file of Gaussians")


def write_ply(path: Path, gaussians: Gaussians, *, normals: bool = True) -> None:
    """Write float32 in INRIA's order; ``normals``: with its three zeros for a normal, which other writers leave out."""
    count = len(gaussians)
    rest = gaussians.harmonics[:, 1:].transpose(1, 2).flatten(1)  # all of red, then green, then blue
    columns = [gaussians.means, gaussians.harmonics[:, 0], rest, gaussians.opacity_logits[:, None]]
    columns += [gaussians.log_scales, gaussians.quaternions]
    if normals:
        columns.insert(1, torch.zeros_like(gaussians.means))
    names = (*POSITIONS, *(NORMALS if normals else ()), *COLOURS, *_rest_names(rest.shape[1]), "opacity", *SCALES)
    names += ROTATIONS
    table = torch.cat(columns, dim=1).detach().cpu().float().numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    data = "\n".join(header).encode("ascii") + table.tobytes()
    write_whole(path, lambda aside: aside.write_bytes(data))


def _header(path: Path, head: bytes) -> tuple[int, list[_Element]]:
    """Return where the data begins, and the elements; UserError for what is no header of a binary .ply."""
    check(head.startswith((b"ply\n", b"ply\r\n")), f"{path}: not a .ply file (it does not begin with 'ply')")
    end = re.search(rb"\nend_header\r?\n", head)
    if end is None:
        raise UserError(f"{path}: no 'end_header' in the first {len(head)} bytes: write or download the file again")
    lines = head[: end.start()].decode("ascii", errors="replace").splitlines()[1:]
    form = "format binary_little_endian 1.0"
    check(form in lines, f"{path}: must say '{form}'; convert the file to it")
    elements: list[_Element] = []
    for line in lines:
        match line.split():
            case ["element", name, count]:
                fits = re.fullmatch(r"\d{1,18}", count)
                check(fits is not None, f"{path}: cannot have {count[:40]} of '{name[:40]}'")
                elements.append(_Element(name, int(count), ()))
            case ["property", kind, name] if elements and kind in TYPES:
                last = elements.pop()
                known = [each for each, _ in last.properties]
                check(name not in known, f"{path}: property '{name[:40]}' is there twice")
                elements.append(_Element(last.name, last.count, (*last.properties, (name, TYPES[kind]))))
            case ["property", "list", *_] if any(each.name == "vertex" for each in elements[:-1]):
                break  # the faces of a mesh behind what we read
            case ["format" | "comment" | "obj_info", *_] | []:
                continue
            case _:
                raise UserError(f"{path}: cannot read the header's line '{line[:60]}'; give a file of Gaussians")
    return end.end(), [each for each in elements if each.properties or each.name == "vertex"]


def _gaussians(path: Path, element: _Element, start: int) -> Gaussians:
    names = [name for name, _ in element.properties]
    wanted = (*POSITIONS, *COLOURS, "opacity", *SCALES, *ROTATIONS)
    missing = [name for name in wanted if name not in names]
    check(not missing, f"{path}: no property {', '.join(missing)}; give a file of Gaussians, not of points or a mesh")
    count = sum(REST.fullmatch(name) is not None for name in names)
    degrees = {3 * (coefficient_count(degree) - 1): degree for degree in range(4)}
    check(count in degrees, f"{path}: {count} properties f_rest_*: must be {', '.join(map(str, degrees))}")
    rest = _rest_names(count)
    lost = [name for name in rest if name not in names]
    check(not lost, f"{path}: {count} properties f_rest_*, but no {', '.join(lost[:3])}: number them from 0")
    table = np.fromfile(path, dtype=element.row, count=element.count, offset=start)

    def columns(wanted: Sequence[str]) -> torch.Tensor:
        taken: NDArray[np.float32] = np.empty((len(table), len(wanted)), dtype=np.float32)
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused as such
            for index, name in enumerate(wanted):
                taken[:, index] = table[name]
        return torch.from_numpy(taken)

    bands = columns(rest).reshape(len(table), 3, count // 3).transpose(1, 2)
    harmonics = torch.cat([columns(COLOURS)[:, None], bands], dim=1)
    opacity = columns(("opacity",))[:, 0]
    found = Gaussians(columns(POSITIONS), columns(SCALES), columns(ROTATIONS), opacity, harmonics)
    check_values(path, found)
    return found


def _rest_names(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(count))
