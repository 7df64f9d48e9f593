"""Files of Gaussians: the layout, round trips, gsplat's own export, and all that is refused."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gsplat import export_splats
from threed.splat_bed import cameras, scene
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.ply import read_ply, write_ply
from fewstep.threed.gaussians.render import render
from fewstep.threed.gaussians.splat import read_splat, write_splat


def single(n: int = 7, degree: int = 3) -> Gaussians:
    return scene(n, degree, dtype=torch.float32)


def assert_same(found: Gaussians, expected: Gaussians) -> None:
    for name in expected.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def header(path: Path) -> list[str]:
    return path.read_bytes().split(b"end_header\n")[0].decode().splitlines()


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_ply_comes_back_unchanged(tmp_path, degree, normals):
    cloud = single(degree=degree)
    write_ply(tmp_path / "a.ply", cloud, normals=normals)
    assert_same(read_ply(tmp_path / "a.ply"), cloud)


def test_an_empty_cloud_comes_back(tmp_path):
    write_ply(tmp_path / "a.ply", single(0))
    assert len(read_ply(tmp_path / "a.ply")) == 0
    write_splat(tmp_path / "a.splat", single(0))
    assert len(read_splat(tmp_path / "a.splat")) == 0


def test_layout_by_arange(tmp_path):
    """Every number has its place: f_rest holds all coefficients of red, then of green, then of blue."""
    cloud = Gaussians(
        torch.tensor([[1.0, 2, 3]]),
        torch.tensor([[7.0, 8, 9]]),
        torch.tensor([[10.0, 11, 12, 13]]),
        torch.tensor([6.0]),
        torch.cat([torch.tensor([[[100.0, 101, 102]]]), torch.arange(45.0).reshape(1, 15, 3)], dim=1),
    )
    path = tmp_path / "a.ply"
    write_ply(path, cloud)
    names = [line.split()[-1] for line in header(path) if line.startswith("property float")]
    values = dict(zip(names, np.frombuffer(path.read_bytes().split(b"end_header\n")[1], "<f4"), strict=True))
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [values[f"f_rest_{i}"] for i in range(15)] == list(range(0, 45, 3))
    assert [values[f"f_rest_{i}"] for i in range(15, 45)] == [*range(1, 45, 3), *range(2, 45, 3)]
    assert [values[name] for name in names[:9]] == [1, 2, 3, 0, 0, 0, 100, 101, 102]
    assert [values[name] for name in names[54:]] == [6, 7, 8, 9, 10, 11, 12, 13]
    assert header(path)[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 1"]


def test_gsplats_export_is_read_rendered_and_written_back_byte_for_byte(tmp_path):
    cloud = single(20)
    theirs, ours = tmp_path / "gsplat.ply", tmp_path / "ours.ply"
    harmonics = cloud.harmonics.split((1, 15), dim=1)
    export_splats(
        cloud.means,
        cloud.log_scales,
        cloud.quaternions,
        cloud.opacity_logits,
        *harmonics,
        format="ply",
        save_to=str(theirs),
    )
    found = read_ply(theirs)
    assert_same(found, cloud)
    write_ply(ours, found, normals=False)
    assert ours.read_bytes() == theirs.read_bytes()
    view = (*cameras(1, 16, 16, torch.float32), 16, 16)
    image = render(found, *view)[0]
    assert torch.equal(image, render(cloud, *view)[0])
    assert image.std() > 0.01


def test_properties_are_found_by_name_whatever_their_order_and_type(tmp_path):
    cloud = single(3, degree=0)
    names = ["rot_3", "rot_2", "rot_1", "rot_0", "scale_2", "scale_1", "scale_0", "opacity"]
    names += ["f_dc_2", "f_dc_1", "f_dc_0", "z", "y", "x"]
    columns = [cloud.means, cloud.harmonics[:, 0], cloud.opacity_logits[:, None], cloud.log_scales, cloud.quaternions]
    table = torch.cat(columns, dim=1).flip(1).double().numpy()
    text = "ply\nformat binary_little_endian 1.0\ncomment by hand\nelement camera 2\nproperty uchar id\n"
    text += "element vertex 3\nproperty ushort flags\n" + "".join(f"property double {name}\n" for name in names)
    text += "element face 0\nproperty list uchar int vertex_indices\nend_header\n"
    rows = b"".join(struct.pack("<H", 9) + row.tobytes() for row in table)
    (tmp_path / "a.ply").write_bytes(text.encode() + b"\x01\x02" + rows)
    assert_same(read_ply(tmp_path / "a.ply"), cloud)


def test_a_splat_keeps_what_its_bytes_hold(tmp_path):
    cloud = single(200, degree=1)
    path, again = tmp_path / "a.splat", tmp_path / "b.splat"
    write_splat(path, cloud)
    assert path.stat().st_size == 32 * 200
    found = read_splat(path)
    order = torch.argsort(cloud.scales.prod(1) * cloud.opacities, descending=True)
    assert torch.equal(found.means, cloud.means[order])
    assert_close(found.scales, cloud.scales[order])
    assert_close(found.opacities, cloud.opacities[order], rtol=0, atol=0.6 / 255)
    assert_close(found.rotations, cloud.rotations[order], rtol=0, atol=1.1 / 128)
    shown = (0.5 + 0.28209479 * cloud.harmonics[order, 0]).clamp(0, 1)
    assert_close(0.5 + 0.28209479 * found.harmonics[:, 0], shown, rtol=0, atol=0.6 / 255)
    write_splat(again, replace(found, opacity_logits=found.opacity_logits))
    assert_close(read_splat(again).opacities.sort()[0], found.opacities.sort()[0])


def test_bytes_of_a_splat(tmp_path):
    row = struct.pack("<6f", 1, 2, 3, 0.5, 0.25, 2) + bytes([255, 0, 51, 255, 255, 128, 0, 128])
    path = tmp_path / "a.splat"
    path.write_bytes(row)
    found = read_splat(path)
    assert found.means.tolist() == [[1, 2, 3]]
    assert_close(found.scales, torch.tensor([[0.5, 0.25, 2]]))
    assert_close(0.5 + 0.28209479177 * found.harmonics[0, 0], torch.tensor([1, 0, 0.2]))
    assert_close(found.quaternions, torch.tensor([[127 / 128, 0, -1, 0]]))
    write_splat(tmp_path / "b.splat", found)
    assert (tmp_path / "b.splat").read_bytes()[12:28] == row[12:28]


def changed(cloud: Gaussians, name: str, value: float, row: int = 2) -> Gaussians:
    values = getattr(cloud, name).clone()
    values[row] = value
    return replace(cloud, **{name: values})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("log_scales", float("nan"), "the scale is not finite in 1 of 7 Gaussians, first in number 2"),
        ("log_scales", 500.0, "the scale overflows"),
        ("quaternions", 0.0, "the rotation is a zero quaternion"),
        ("means", float("inf"), "the position is not finite"),
        ("opacity_logits", float("nan"), "the opacity is not finite"),
        ("harmonics", float("nan"), "the colour is not finite"),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path, name, value, message):
    path = tmp_path / "bad.ply"
    write_ply(path, changed(single(), name, value))
    refused(read_ply, path, message)


def refused(read, path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"vertex 7\n", b"vertex 8\n", "the header promises 8 of 'vertex'"),
        (b"vertex 7\n", b"vertex 999999999999999999\n", "the header promises 999999999999999999"),
        (b"vertex 7\n", b"vertex " + b"9" * 5000 + b"\n", "cannot have 9+ of 'vertex'"),
        (b"vertex 7\n", b"vertex -7\n", "cannot have -7"),
        (b"element vertex", b"element edge", "no element 'vertex'"),
        (b"scale_1", b"scale_7", "no property scale_1"),
        (b"property float opacity\n", b"property uchar opacity_\n", "no property opacity"),
        (b"f_rest_44", b"f_rust_44", "44 properties f_rest_"),
        (b"f_rest_44", b"f_rest_99", "no f_rest_44"),
        (b"f_rest_44", b"f_rest_43", "'f_rest_43' is there twice"),
        (b"binary_little_endian", b"ascii", "must say 'format binary_little_endian 1.0'"),
        (b"float x\n", b"quad x\n", "cannot read the header's line 'property quad x'"),
        (b"float x\n", b"list uchar float x\n", "cannot read the header's line"),
        (b"end_header", b"end_haeder", "no 'end_header'"),
        (b"ply\n", b"plx\n", "not a .ply file"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, old, new, message):
    path = tmp_path / "bad.ply"
    write_ply(path, single())
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    refused(read_ply, path, message)


def test_files_cut_off_or_not_there_are_refused(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(path, single())
    path.write_bytes(path.read_bytes()[:-1])
    refused(read_ply, path, "the header promises 7")
    path.write_bytes(b"")
    refused(read_ply, path, "not a .ply file")
    refused(read_ply, tmp_path / "none.ply", "no such file")
    splat = tmp_path / "a.splat"
    write_splat(splat, single())
    splat.write_bytes(splat.read_bytes()[:-1])
    refused(read_splat, splat, "223 bytes are no multiple of 32")
    refused(read_splat, tmp_path / "none.splat", "no such file")


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (28, bytes([128] * 4), "zero quaternion"),
        (12, struct.pack("<f", 0), "the scale is not finite"),
        (12, struct.pack("<f", -1), "the scale is not finite"),
        (0, struct.pack("<f", float("nan")), "the position is not finite"),
    ],
)
def test_a_splat_of_nothing_is_refused(tmp_path, at, data, message):
    path = tmp_path / "a.splat"
    write_splat(path, single())
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    refused(read_splat, path, message)
