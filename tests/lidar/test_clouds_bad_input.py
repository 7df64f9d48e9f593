"""What is no cloud is refused in one line; nothing else ever comes of a file."""

from __future__ import annotations

import io
import os
import random
import struct
import tracemalloc

import numpy as np
import pytest
from lidar.cloud_bed import POINTS, lzf_literals, pcd, ply, random_cloud, refused, vertices

from fewstep.core.errors import UserError
from fewstep.lidar.clouds import Cloud, read_cloud, write_cloud

XYZ = "property double x\nproperty double y\nproperty double z"
LITTLE = "format binary_little_endian 1.0\n"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text.encode()


def test_rows_that_do_not_fill_the_file_and_layouts_that_would(tmp_path):
    refused(tmp_path / "a.bin", bytes(60), "60 bytes", "x,y,z,remission", "3 or 5 float32 would fit")
    refused(tmp_path / "a.bin", bytes(61), "copy it again")
    refused(tmp_path / "a.pcd.bin", bytes(64), "x,y,z,intensity,ring", "rows of 4")
    refused(tmp_path / "a.bin", bytes(64), "17 bytes", fields=("x", "y", "z", "i:uint8", "t:int32"))


@pytest.mark.parametrize("suffix", [".bin", ".ply", ".pcd", ".npy"])
def test_an_empty_file(tmp_path, suffix):
    refused(tmp_path / f"a{suffix}", b"", "is empty")


@pytest.mark.parametrize("suffix", [".bin", ".ply", ".pcd", ".npy"])
def test_points_that_are_not_finite_are_counted(tmp_path, suffix):
    cloud = random_cloud()
    cloud.xyz[[3, 7], [0, 2]] = np.nan, -np.inf
    write_cloud(tmp_path / f"a{suffix}", cloud)
    refused(tmp_path / f"a{suffix}", None, "2 of 40 points", "drop_invalid")
    cloud.xyz[:] = np.nan
    write_cloud(tmp_path / f"a{suffix}", cloud)
    refused(tmp_path / f"a{suffix}", None, "no point with finite coordinates", drop_invalid=True)


def test_what_cannot_be_opened(tmp_path):
    refused(tmp_path / "a.bin", None, "cannot be read")
    refused(tmp_path / "a.xyz", b"1 2 3", "'.xyz' is no format", ".bin, .ply, .pcd, .npy")
    (tmp_path / "d.ply").mkdir()
    refused(tmp_path / "d.ply", None, "is a folder")
    os.mkfifo(tmp_path / "p.bin")
    refused(tmp_path / "p.bin", None, "no regular file")
    refused(tmp_path / "a.ply", ply(LITTLE), "leave the fields out", fields=("x", "y", "z"))
    with pytest.raises(UserError, match="cannot be read"):
        read_cloud("a\0.bin")
    if os.geteuid() != 0:
        (tmp_path / "s.bin").write_bytes(bytes(16))
        (tmp_path / "s.bin").chmod(0)
        refused(tmp_path / "s.bin", None, "cannot be read")


def test_ply_that_promises_more_than_it_holds(tmp_path):
    head = f"{LITTLE}element vertex %d\n{XYZ}"
    refused(tmp_path / "a.ply", ply(head % 4, vertices()), "promises 4 of 'vertex'", "96 bytes", "72 follow")
    refused(tmp_path / "a.ply", ply(head % 10**14, vertices()), "promises")
    refused(tmp_path / "a.ply", ply(head % 10**30, vertices()), "not a count")
    text = ply(f"format ascii 1.0\nelement vertex 4\n{XYZ}", b"1 2 3 4 5 6 7 8 9 10")
    refused(tmp_path / "a.ply", text, "12 numbers", "10 follow")
    before = f"{LITTLE}element face %d\nproperty list uchar int i\nelement vertex 3\n{XYZ}"
    refused(tmp_path / "a.ply", ply(before % 10**14, vertices()), "promises")
    refused(tmp_path / "a.ply", ply(before % 1, b"\x03\0\0\0"), "ends before")
    refused(tmp_path / "a.ply", ply(before.replace("uchar int", "int int") % 1, b"\xff\xff\xff\xff"), "list of -1")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PLY\n", "not a .ply"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\n", "no end"),
        (b"ply\n" + b"comment a long one\n" * 10_000 + b"end_header\n", "no end"),
        (ply(f"element vertex 3\n{XYZ}", vertices()), "no format line"),
        (ply("format binary_middle_endian 1.0", vertices()), "no such format"),
        (ply(f"{LITTLE}element vertex three\n{XYZ}", vertices()), "'element vertex three': not a count"),
        (ply(f"{LITTLE}element vertex -3\n{XYZ}", vertices()), "not a count"),
        (ply(f"{LITTLE}element vertex 0\n{XYZ}"), "no point in it"),
        (ply(f"{LITTLE}element face 0"), "no element 'vertex'"),
        (ply(f"{LITTLE}element vertex 3\nproperty double x\nproperty double y", vertices()), "no column z"),
        (ply(f"{LITTLE}element vertex 3\nproperty vector x", vertices()), "no type 'vector'"),
        (ply(f"{LITTLE}property double x", vertices()), "not understood"),
        (ply(f"{LITTLE}element vertex 3\n{XYZ}\nproperty double x", vertices()), "second property"),
        (ply(f"{LITTLE}element vertex 3\nproperty list float int x", vertices()), "whole number"),
        (ply(f"{LITTLE}element vertex 3\nproperty list uchar int", vertices()), "not understood"),
        (ply(f"{LITTLE}hello", vertices()), "'hello'"),
        (ply(f"format ascii 1.0\nelement vertex 1\n{XYZ}", b"1 2 three"), "more than numbers"),
        (ply(f"format ascii 1.0\nelement vertex 1\n{XYZ}", "1 2 3 é".encode()), "more than numbers"),
        (ply(f"format ascii 1.0\nelement vertex 1\n{XYZ}\nproperty uchar c", b"1 2 3 256"), "does not fit"),
        (ply(f"format ascii 1.0\nelement vertex 1\n{XYZ}\nproperty uchar c", b"1 2 3 nan"), "does not fit"),
    ],
)
def test_ply_that_is_malformed(tmp_path, data, says):
    refused(tmp_path / "a.ply", data, says)


BODY = vertices(kind="f")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello", "no 'DATA' line"),
        (b"x 1\n" * 40_000, "no 'DATA' line"),
        (pcd("binary", BODY, FIELDS=""), "no FIELDS line"),
        (pcd("binary", BODY, SIZE="4 4"), "differ in length"),
        (pcd("binary", BODY, SIZE="4 4 3"), "not known"),
        (pcd("binary", BODY, TYPE="F F G"), "not known"),
        (pcd("binary", BODY, COUNT="1 1 0"), "COUNT 0"),
        (pcd("binary", BODY, COUNT="1 1 99999999"), "COUNT 99999999"),
        (pcd("binary", BODY, FIELDS="x y y"), "of one name"),
        (pcd("binary", BODY, FIELDS="x y w"), "no column z"),
        (pcd("binary", BODY, WIDTH="-3"), "no counts"),
        (pcd("binary", BODY, HEIGHT="2"), "not so many POINTS"),
        (pcd("binary", BODY, points=0), "no point in it"),
        (pcd("zip", BODY), "DATA zip"),
        (pcd("binary", BODY, points=4), "promises 48 bytes, but 36 follow"),
        (pcd("binary", BODY, points=10**14), "promises"),
        (pcd("ascii", b"1 2 3 4 5 6 7 8"), "promises"),
        (pcd("ascii", b"1 2 3 4 5 6 7 8 9.000 x"), "more than numbers"),
        (pcd("ascii", b"1.0 2.0 3.0 4.0 5.0 6.0"), "9 numbers, but 6 follow"),
        (pcd("binary_compressed", b"1234"), "promises"),
        (pcd("binary_compressed", struct.pack("<II", 999, 36)), "999 bytes, but 0 follow"),
        (pcd("binary_compressed", struct.pack("<II", 1, 40) + b"\0"), "its data 40"),
        (pcd("binary_compressed", struct.pack("<II", 4, 36) + b"\x02abc"), "damaged"),
        (pcd("binary_compressed", struct.pack("<II", 4, 12 * 10**8) + b"\x02abc", points=10**8), "damaged"),
    ],
)
def test_pcd_that_is_malformed(tmp_path, data, says):
    refused(tmp_path / "a.pcd", data, says)


OBJECTS = npy(np.array([{"a": 1}, 2], object))
SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }          \n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello", "not a readable .npy"),
        (OBJECTS, "not real numbers"),
        (npy(np.zeros((3, 3), complex)), "not real numbers"),
        (npy(np.array(["a", "b"])), "not real numbers"),
        (npy(np.zeros(3, [("x", "f4"), ("y", "f4", (2,))])), "not real numbers"),
        (npy(np.zeros(3, [("x", "f4"), ("y", "f4")])), "no column z"),
        (npy(np.zeros((2, 2), [("x", "f4"), ("y", "f4"), ("z", "f4")])), "one per point"),
        (npy(np.zeros(9)), "shape (9,)"),
        (npy(np.zeros((4, 2))), "shape (4, 2)"),
        (npy(np.zeros((2, 300))), "shape (2, 300)"),
        (npy(np.zeros((0, 3))), "no point in it"),
        (npy(np.zeros((4, 3)))[:-1], "promises 96 bytes, but 95 follow"),
        (npy_header(SHAPE % "1000000000000, 3") + bytes(36), "promises 12000000000000 bytes"),
        (npy_header(SHAPE % "-1, 3") + bytes(36), "shape of (-1, 3)"),
        (npy_header(SHAPE % "3, 3", (9, 0)) + bytes(36), "not a readable"),
        (npy_header(SHAPE % ("(" * 5000 + ")" * 5000)) + bytes(36), "not a readable"),
        (npy_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1, 3)}\n"), "not a readable"),
    ],
)
def test_npy_that_is_malformed(tmp_path, data, says):
    refused(tmp_path / "a.npy", data, says)


def test_npy_with_another_number_of_fields(tmp_path):
    refused(tmp_path / "a.npy", npy(np.zeros((4, 5))), "5 columns, but fields name 4", fields=("x", "y", "z", "i"))


def valid_files() -> dict[str, bytes]:
    """One file of every form, small enough for a change to matter."""
    cloud = random_cloud(6, remission="f4", ring="u2")
    text = "\n".join(" ".join(map(str, row)) for row in POINTS).encode()
    lists = f"element face 2\nproperty list uchar short i\nelement vertex 3\n{XYZ}"
    columns = lzf_literals(POINTS.T.astype("<f4").tobytes())
    return {
        "a.ply": ply(f"{LITTLE}{lists}", b"\1\0\1\2\0\1\0\2" + vertices()),
        "b.ply": ply(f"format binary_big_endian 1.0\n{lists}", b"\1\0\1\2\0\1\0\2" + vertices(">")),
        "c.ply": ply(f"format ascii 1.0\n{lists}", b"1 5 2 6 7\n" + text),
        "a.pcd": pcd("binary", BODY),
        "b.pcd": pcd("ascii", text),
        "c.pcd": pcd("binary_compressed", struct.pack("<II", len(columns), 36) + columns),
        "a.npy": npy(cloud.xyz),
        "b.npy": npy(np.zeros(3, [("x", "f4"), ("y", "f8"), ("z", "f4"), ("i", "u1")])),
        "a.bin": np.hstack([cloud.xyz, cloud.xyz[:, :1]]).tobytes(),
    }


def mutations(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at : at + rng.randint(1, 8)] = b""
        elif kind == 3:
            changed[at:at] = rng.choice([b"9999999999", b"-1", b"\n", b" ", b"\0", b"e99", b"nan", b"list "])
        elif kind == 4:
            digits = [i for i, byte in enumerate(changed[:300]) if 48 <= byte < 58]
            if digits:
                changed[rng.choice(digits)] = rng.randrange(48, 58)
        else:
            other = rng.randrange(len(changed))
            changed[at : at + 4] = changed[other : other + 4]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize("name", list(valid_files()))
def test_a_damaged_file_is_read_or_refused_in_one_line_and_never_costs_memory(tmp_path, name):
    data = valid_files()[name]
    file = tmp_path / name
    file.write_bytes(data)
    assert len(read_cloud(file)) >= 3
    rng = random.Random(name)
    cases = [data[:stop] for stop in range(0, len(data), 4)] + [mutations(data, rng) for _ in range(150)]
    read = 0
    tracemalloc.start()
    try:
        for case in cases:
            file.write_bytes(case)
            try:
                cloud = read_cloud(file)
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                read += 1
                assert np.isfinite(cloud.xyz).all()
                assert isinstance(cloud, Cloud)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < read < len(cases)
    assert peak < 4 * 2**20
