"""Clouds come back from every format as they were written."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from lidar.cloud_bed import POINTS, REAL_SCAN, lzf_literals, pcd, ply, random_cloud, vertices

from fewstep.core.errors import UserError
from fewstep.lidar.clouds import Cloud, read_cloud, write_cloud
from fewstep.lidar.clouds.layout import row_type
from fewstep.lidar.clouds.lzf import decompress


def same(a: Cloud, b: Cloud) -> None:
    np.testing.assert_array_equal(a.xyz, b.xyz)
    assert a.xyz.dtype == b.xyz.dtype
    assert list(a.fields) == list(b.fields)
    for name, column in a.fields.items():
        assert column.dtype == b.fields[name].dtype
        np.testing.assert_array_equal(column, b.fields[name])


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".npy"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"remission": "f4"}, {"remission": "f8", "ring": "u2", "label": "u4", "a": "i1", "b": "i2", "c": "u1"}],
)
def test_a_cloud_comes_back_with_its_fields(tmp_path, suffix, fields):
    cloud = random_cloud(**fields)
    write_cloud(tmp_path / f"a{suffix}", cloud)
    same(read_cloud(tmp_path / f"a{suffix}"), cloud)
    assert [each.name for each in tmp_path.iterdir()] == [f"a{suffix}"]


def test_rows_have_the_columns_of_their_suffix(tmp_path):
    cloud = random_cloud(remission="f4", ring="f4", other="f4")
    write_cloud(tmp_path / "a.bin", cloud)
    write_cloud(tmp_path / "a.pcd.bin", cloud)
    assert (tmp_path / "a.bin").stat().st_size == 16 * len(cloud)
    assert (tmp_path / "a.pcd.bin").stat().st_size == 20 * len(cloud)
    same(read_cloud(tmp_path / "a.bin"), Cloud(cloud.xyz, {"remission": cloud.fields["remission"]}))
    nuscenes = {"intensity": cloud.fields["remission"], "ring": cloud.fields["ring"]}
    same(read_cloud(tmp_path / "a.pcd.bin"), Cloud(cloud.xyz, nuscenes))
    write_cloud(tmp_path / "bare.bin", Cloud(cloud.xyz))
    assert (read_cloud(tmp_path / "bare.bin").fields["remission"] == 0).all()


def test_declared_rows_of_mixed_types_in_any_order(tmp_path):
    fields = ("intensity:uint8", "x", "y", "z:float64", "ring:uint16")
    (tmp_path / "a.bin").write_bytes(
        b"".join(struct.pack("<BffdH", 200 + i, *row, 7 * i) for i, row in enumerate(POINTS))
    )
    cloud = read_cloud(tmp_path / "a.bin", fields)
    np.testing.assert_array_equal(cloud.xyz, POINTS)
    assert cloud.xyz.dtype == np.float64
    assert cloud.fields["intensity"].tolist() == [200, 201, 202]
    assert cloud.fields["ring"].tolist() == [0, 7, 14]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("x", "y"), "x, y and z"),
        (("x", "y", "z", "i:uint7"), "uint8"),
        (("x", "y", "z", "x"), "twice"),
        (("x", "y", "z", ""), "without a name"),
    ],
)
def test_a_wrong_list_of_fields_is_refused(fields, says):
    with pytest.raises(UserError, match=says):
        row_type(fields)


@pytest.mark.parametrize("kind", ["float", "double", "float32", "float64"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_of_every_form_and_width(tmp_path, form, kind):
    order, code = {"binary_big_endian": ">"}.get(form, "<"), "d" if kind in ("double", "float64") else "f"
    lines = "\n".join(f"property {kind} {axis}" for axis in "xyz")
    text = "\n".join(" ".join(map(str, row)) for row in POINTS).encode()
    body = text if form == "ascii" else vertices(order, code)
    (tmp_path / "a.ply").write_bytes(ply(f"format {form} 1.0\ncomment of ours\nelement vertex 3\n{lines}", body))
    cloud = read_cloud(tmp_path / "a.ply")
    same(cloud, Cloud(POINTS.astype(np.float64 if code == "d" else np.float32)))
    assert cloud.xyz.dtype.isnative


HEADER = """format {form} 1.0
obj_info by hand
element camera 2
property float32 f
property list uint8 int16 sizes
property uchar last
element nothing 4
element vertex 3
property uchar red
property float z
property int label
property float x
property float y
element face 1
property list uchar int vertex_indices"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_with_other_elements_lists_and_any_order_of_properties(tmp_path, form, newline):
    if form == "ascii":
        rows = [f"{9 + i} {z} {-i} {x} {y}" for i, (x, y, z) in enumerate(POINTS)]
        body = newline.join(["0.5 3 1 2 3 7", "0.25 0 8", *rows, "3 0 1 2"]).encode()
    else:
        end = ">" if form == "binary_big_endian" else "<"
        body = struct.pack(f"{end}fB3hB", 0.5, 3, 1, 2, 3, 7) + struct.pack(f"{end}fBB", 0.25, 0, 8)
        for i, (x, y, z) in enumerate(POINTS):
            body += struct.pack(f"{end}Bfiff", 9 + i, z, -i, x, y)
        body += struct.pack(f"{end}B3i", 3, 0, 1, 2)
    header = ply(HEADER.format(form=form)).replace(b"\n", newline.encode())
    (tmp_path / "a.ply").write_bytes(header + body)
    cloud = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.xyz, POINTS)
    assert cloud.fields["red"].tolist() == [9, 10, 11]
    assert cloud.fields["label"].tolist() == [0, -1, -2]
    assert cloud.fields["label"].dtype == np.int32


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_ply_whose_vertices_have_lists(tmp_path, form):
    lines = "property float x\nproperty list uchar float extra\nproperty float y\nproperty float z"
    if form == "ascii":
        body = b"".join(f"{x} {i} {'5 ' * i}{y} {z}\n".encode() for i, (x, y, z) in enumerate(POINTS))
    else:
        body = b"".join(struct.pack(f"<fB{i}fff", x, i, *[5.0] * i, y, z) for i, (x, y, z) in enumerate(POINTS))
    (tmp_path / "a.ply").write_bytes(ply(f"format {form} 1.0\nelement vertex 3\n{lines}", body))
    same(read_cloud(tmp_path / "a.ply"), Cloud(POINTS.astype(np.float32)))


def test_pcd_of_every_form(tmp_path):
    ascii_body = "\n".join(" ".join(map(str, row)) for row in POINTS).encode()
    by_columns = lzf_literals(POINTS.T.astype("<f4").tobytes())
    compressed = struct.pack("<II", len(by_columns), 36) + by_columns
    for data, body in (("ascii", ascii_body), ("binary", vertices(kind="f")), ("binary_compressed", compressed)):
        (tmp_path / "a.pcd").write_bytes(pcd(data, body))
        same(read_cloud(tmp_path / "a.pcd"), Cloud(POINTS.astype(np.float32)))


def test_pcd_with_padding_and_fields_of_several_numbers(tmp_path):
    body = b"".join(struct.pack("<B2xfffHdd", 5, *row, 9, 0.5, 0.25) for row in POINTS)
    made = pcd(
        "binary", body, FIELDS="a _ x y z ring pair", SIZE="1 1 4 4 4 2 8", TYPE="U U F F F U F", COUNT="1 2 1 1 1 1 2"
    )
    (tmp_path / "a.pcd").write_bytes(made)
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.xyz, POINTS.astype(np.float32))
    assert {name: column.tolist() for name, column in cloud.fields.items()} == {
        "a": [5] * 3,
        "ring": [9] * 3,
        "pair_0": [0.5] * 3,
        "pair_1": [0.25] * 3,
    }


def test_lzf_copies_and_overlaps():
    assert decompress(b"\x02abc", 3, "f") == b"abc"
    # length 3 from 3 back, then 10 from 1 back, which it writes itself (length 7 + 1 + 2, distance 1)
    assert decompress(b"\x02abc\x20\x02", 6, "f") == b"abcabc"
    assert decompress(b"\x02abc\xe0\x01\x00", 13, "f") == b"abc" + b"c" * 10
    for data in (b"\x02ab", b"\x20\x00", b"\x00a\x20\x01", b"\xe0", b"\xe0\x01", b"\x02abc", b"\x03abcd"):
        with pytest.raises(UserError, match="damaged"):
            decompress(data, 7, "f")


def test_npy_plain_of_any_width_order_and_endianness(tmp_path):
    table = np.arange(24.0).reshape(4, 6)
    for array in (table, np.asfortranarray(table), table.astype(">f8"), table.astype("<f4")):
        np.save(tmp_path / "a.npy", array)
        cloud = read_cloud(tmp_path / "a.npy")
        np.testing.assert_array_equal(cloud.xyz, table[:, :3])
        assert cloud.xyz.dtype == array.dtype.newbyteorder("=")
        assert list(cloud.fields) == ["remission", "column_4", "column_5"]
        np.testing.assert_array_equal(cloud.fields["column_5"], table[:, 5])
    named = read_cloud(tmp_path / "a.npy", ("ring", "z", "y", "x", "a", "b"))
    np.testing.assert_array_equal(named.xyz, table[:, [3, 2, 1]])


def test_points_that_are_not_finite_are_dropped_when_asked(tmp_path):
    xyz = np.array([[1, 2, 3], [np.nan, 0, 0], [4, 5, np.inf], [7, 8, 9]], np.float32)
    np.save(tmp_path / "a.npy", np.hstack([xyz, [[1], [2], [3], [4]]]).astype(np.float32))
    cloud = read_cloud(tmp_path / "a.npy", drop_invalid=True)
    np.testing.assert_array_equal(cloud.xyz, xyz[[0, 3]])
    assert cloud.fields["remission"].tolist() == [1, 4]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_cloud(tmp_path / "a.ply", Cloud(POINTS))
    before = (tmp_path / "a.ply").read_bytes()
    with pytest.raises(UserError, match="beyond 32 bits"):
        write_cloud(tmp_path / "a.ply", Cloud(POINTS, {"time": np.full(3, 2**40)}))
    assert (tmp_path / "a.ply").read_bytes() == before
    with pytest.raises(UserError, match="cannot be written"):
        write_cloud(tmp_path / "a.ply" / "b.ply", Cloud(POINTS))


def test_columns_of_another_length_are_refused():
    with pytest.raises(UserError, match="one per point"):
        Cloud(POINTS, {"ring": np.zeros(2)})
    with pytest.raises(UserError, match=r"shape \(n, 3\)"):
        Cloud(np.zeros((4, 2)))


@pytest.mark.skipif(not REAL_SCAN.exists(), reason="the shared scan is not there")
def test_the_real_scan_comes_back(tmp_path):
    scan = read_cloud(REAL_SCAN)
    assert scan.xyz.shape == (125_773, 3)
    assert scan.xyz.dtype == np.float64
    assert 60 < np.linalg.norm(scan.xyz, axis=1).max() < 130
    for suffix in (".bin", ".ply", ".pcd", ".npy"):
        write_cloud(tmp_path / f"a{suffix}", scan)
        back = read_cloud(tmp_path / f"a{suffix}").xyz
        np.testing.assert_array_equal(back, scan.xyz if suffix == ".npy" else scan.xyz.astype(np.float32))
