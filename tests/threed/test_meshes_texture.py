"""Baked textures: the field's colours all over the surface, over seams too, and files that read back upright."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.fields.meshes import Mesh, extract_mesh
from fewstep.threed.fields.texture import bake, look_up
from fewstep.threed.fields.texture_files import FORMATS, export_textured

METHODS = ["triangles", "xatlas"]


def colour(points):
    return (0.5 + 0.4 * torch.sin(3 * points + points.new_tensor([0.0, 1.0, 2.0]))).clamp(0, 1)


def pin():
    def field(p):
        tip = (p - p.new_tensor([0.0, 0.6, 0.0])).norm(dim=-1) - 0.2
        return torch.minimum(p.norm(dim=-1) - 0.5, tip)

    return extract_mesh(field, 14)


def baked(method, size=512):
    if method == "xatlas":
        pytest.importorskip("xatlas")
    return bake(pin(), colour, size, method=method)


def spread(faces, count=2000):
    weight = torch.distributions.Dirichlet(torch.full((3,), 0.5)).sample((count,))  # many near edges and corners
    return faces[torch.randint(len(faces), (count,))], weight[..., None]


def error(mesh):
    torch.manual_seed(0)
    corner, weight = spread(mesh.faces)
    found = look_up(mesh.texture, (weight * mesh.uv[corner]).sum(1))
    return (found - colour((weight * mesh.vertices[corner]).sum(1))).abs().max().item()


@pytest.mark.parametrize("method", METHODS)
def test_the_texture_is_the_field_on_the_surface_seams_included(method):
    mesh = baked(method)
    assert error(mesh) < 0.02
    assert mesh.uv.min() >= 0
    assert mesh.uv.max() <= 1
    whole = Mesh(mesh.vertices, mesh.faces)
    assert whole.volume() == pytest.approx(pin().volume(), rel=1e-5)
    assert (mesh.normals.norm(dim=-1) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_read_back_upright_with_their_texture(tmp_path, suffix):
    mesh, path = baked("triangles", 256), tmp_path / f"pin{suffix}"
    files = export_textured(mesh, path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert len(files) == (1 if suffix == ".glb" else 3)
    read = trimesh.load(path, force="mesh", process=False)
    material = read.visual.material
    image = material.baseColorTexture if suffix == ".glb" else material.image
    texture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    assert_close(texture, mesh.texture, atol=0.5 / 255 + 1e-6, rtol=0)
    vertices = torch.from_numpy(np.array(read.vertices)).float()
    faces, uv = torch.from_numpy(np.array(read.faces)).long(), torch.from_numpy(np.array(read.visual.uv)).float()
    assert vertices[:, 1].max() > 0.75 > 0.55 > -vertices[:, 1].min(), "the tip is up"
    assert Mesh(vertices, faces).volume() > 0
    torch.manual_seed(0)
    corner, weight = spread(faces)
    found = look_up(texture, (weight * uv[corner]).sum(1))
    assert_close(found, colour((weight * vertices[corner]).sum(1)), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda folder: bake(pin(), colour, 32, method="triangles"), "too small for"),
        (lambda folder: bake(pin(), colour, 10**6), "16 to 8192"),
        (lambda folder: bake(pin(), colour, method="paint"), "auto, xatlas, triangles"),
        (lambda folder: bake(Mesh(torch.zeros(0, 3), torch.zeros(0, 3).long()), colour), "no triangles"),
        (lambda folder: export_textured(baked("triangles"), folder / "pin.ply"), r"\.glb, \.obj"),
        (lambda folder: export_textured(baked("triangles"), folder / "no" / "pin.glb"), "folder is not there"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(tmp_path, mistake, words):
    with pytest.raises(UserError, match=words) as caught:
        mistake(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_xatlas_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr("fewstep.threed.fields.texture.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install xatlas"):
        bake(pin(), colour, method="xatlas")
    assert bake(pin(), colour, 256).uv.shape == (3 * len(pin().faces), 2)
