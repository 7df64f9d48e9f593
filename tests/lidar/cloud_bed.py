"""Clouds, and files of them written by hand, for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from fewstep.core.errors import UserError
from fewstep.lidar.clouds import Cloud, read_cloud

_NAME = Path("shared") / "data" / "kitti_scan_000123.ply"
_BESIDE = [folder / _NAME for folder in Path(__file__).resolve().parents[3:]]  # the repository, or a worktree of it
REAL_SCAN = next((file for file in _BESIDE if file.exists()), _BESIDE[0])

POINTS = np.array([[1.5, -2.25, 0.125], [40.0, 3.0, -1.75], [-7.5, 11.0, 2.0]])


def random_cloud(count: int = 40, seed: int = 0, **fields: str) -> Cloud:
    """Points within tens of metres; ``fields`` names columns and their types."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal(size=(count, 3), scale=20).astype(np.float32)
    return Cloud(xyz, {name: rng.integers(0, 100, count).astype(kind) for name, kind in fields.items()})


def ply(header: str, body: bytes = b"") -> bytes:
    """A ``.ply`` of header lines between the first and the last."""
    return "\n".join(["ply", *header.strip().splitlines(), "end_header\n"]).encode() + body


def vertices(order: str = "<", kind: str = "d", points: np.ndarray = POINTS) -> bytes:
    """Rows of coordinates in an order and a struct type."""
    return b"".join(struct.pack(f"{order}3{kind}", *row) for row in points)


def pcd(data: str, body: bytes, *, points: int = 3, width: int | None = None, **lines: str) -> bytes:
    """A ``.pcd`` of float32 x, y, z; ``lines`` replaces header lines or, when empty, leaves them out."""
    header = {
        "VERSION": "0.7",
        "FIELDS": "x y z",
        "SIZE": "4 4 4",
        "TYPE": "F F F",
        "COUNT": "1 1 1",
        "WIDTH": str(points if width is None else width),
        "HEIGHT": "1",
        "POINTS": str(points),
        **lines,
        "DATA": data,
    }
    return ("# made by hand\n" + "".join(f"{key} {text}\n" for key, text in header.items() if text)).encode() + body


def lzf_literals(plain: bytes) -> bytes:
    """LZF data that compress nothing."""
    pieces = [plain[start : start + 32] for start in range(0, len(plain), 32)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


def refused(path: Path, data: bytes | None, *parts: str, **options: object) -> str:
    """Check that a file is refused in one line that names it and says ``parts``; return the line."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_cloud(path, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    for part in parts:
        assert part in line, line
    return line
