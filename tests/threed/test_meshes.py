"""Meshes: a sphere to second order, and files that read back upright, outward and in their colours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.cameras import orbit
from fewstep.threed.fields.export import FORMATS, export_mesh
from fewstep.threed.fields.meshes import Mesh, extract_mesh, keep_large_parts, refine_vertices, sample_grid

F64 = torch.float64


def sphere(points, radius=0.5):
    return points.norm(dim=-1) - radius


def error(mesh):
    return sphere(mesh.vertices).abs().max().item()


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def test_a_sphere_is_met_to_second_order():
    errors = [error(extract_mesh(sphere, n, dtype=F64)) for n in (32, 64, 128)]
    assert errors[0] / errors[1] >= 3.5
    assert errors[1] / errors[2] >= 3.5
    assert errors == pytest.approx([9.2e-4, 2.4e-4, 6.1e-5], rel=0.1)


def test_a_sphere_is_closed_faces_outward_and_has_its_volume():
    mesh = extract_mesh(sphere, 64, dtype=F64)
    exact = 4 / 3 * math.pi / 8
    assert abs(mesh.volume() / exact - 1) < 0.01
    assert mesh.volume() == pytest.approx(as_trimesh(mesh).volume)
    assert as_trimesh(mesh).is_watertight
    assert as_trimesh(mesh).euler_number == 2


def test_the_grid_is_read_along_x_then_y_then_z_whatever_the_block(monkeypatch):
    def field(p):
        return p[..., 0] + 10 * p[..., 1] + 100 * p[..., 2]

    whole = sample_grid(field, 5, dtype=F64)
    monkeypatch.setattr("fewstep.threed.fields.meshes.BLOCK", 7)
    assert torch.equal(sample_grid(field, 5, dtype=F64), whole)
    assert whole[4, 0, 2].item() == pytest.approx(1 - 10 + 0)


def test_a_mesh_lies_where_its_field_does():
    centre = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
    mesh = extract_mesh(lambda p: sphere(p - centre, 0.3), 48, dtype=F64)
    assert_close((mesh.vertices.amax(0) + mesh.vertices.amin(0)) / 2, centre, atol=1e-3, rtol=0)


def test_a_density_is_a_field_turned_around():
    mesh = extract_mesh(lambda p: -(10 - 20 * p.norm(dim=-1)), 32, level=-4.0, dtype=F64)
    assert_close(mesh.vertices.norm(dim=-1).mean(), torch.tensor(0.3, dtype=F64), atol=2e-3, rtol=0)
    assert mesh.volume() > 0


def test_newton_steps_put_vertices_on_the_surface():
    def squashed(p):
        return (p * p).sum(-1) - 0.25

    mesh = extract_mesh(squashed, 16, dtype=F64)
    errors = [error(mesh), *(error(refine_vertices(squashed, mesh, steps=n)) for n in (1, 2))]
    assert errors[1] < 2 * errors[0] ** 2 + 1e-12
    assert errors[2] < 2 * errors[1] ** 2 + 1e-12


def test_refined_vertices_move_with_the_surface():
    radius = torch.tensor(0.5, dtype=F64, requires_grad=True)
    mesh = extract_mesh(sphere, 12, dtype=F64)
    moved = refine_vertices(lambda p: sphere(p, radius), mesh, trainable=True)
    (slope,) = torch.autograd.grad(moved.vertices.norm(dim=-1).mean(), radius)
    assert slope.item() == pytest.approx(1.0)
    assert not refine_vertices(lambda p: sphere(p, radius), mesh).vertices.requires_grad


def test_small_parts_go_and_what_stays_is_unchanged():
    def two(p):
        return torch.minimum(sphere(p, 0.5), sphere(p - 0.8, 0.06))

    mesh = extract_mesh(two, 64, dtype=F64).coloured(lambda p: p.abs())
    kept = keep_large_parts(mesh, 0.1)
    assert len(kept.vertices) < len(mesh.vertices)
    assert kept.vertices.norm(dim=-1).max() < 0.51
    assert as_trimesh(kept).is_watertight
    assert_close(kept.colours, kept.vertices.abs())
    assert len(keep_large_parts(mesh, 0.0).faces) == len(mesh.faces)


def pin():
    """A ball with a tip on top: what is up can be told; red left, green above."""

    def field(p):
        tip = (p - p.new_tensor([0.0, 0.6, 0.0])).norm(dim=-1) - 0.2
        return torch.minimum(sphere(p), tip)

    mesh = extract_mesh(field, 24, dtype=F64)
    return mesh.coloured(lambda p: torch.stack([p[:, 0] < 0, p[:, 1] > 0.5, p[:, 2] > 0], -1).to(p))


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_read_back_upright_outward_and_in_colour(tmp_path, suffix):
    mesh, path = pin(), tmp_path / f"pin{suffix}"
    export_mesh(mesh, path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    read = trimesh.load(path, force="mesh", process=False)
    vertices = torch.from_numpy(np.array(read.vertices, dtype=np.float64))
    assert_close(vertices, mesh.vertices, atol=1e-6, rtol=0)
    assert read.faces.tolist() == mesh.faces.tolist()
    assert read.visual.vertex_colors[:, :3].tolist() == (mesh.colours * 255).tolist()
    camera = orbit(*(torch.tensor([v], dtype=F64) for v in (30.0, 20.0, 3.0, 45.0)), 64, 64)
    pixels, depths = camera.project(vertices)
    tip, base = vertices[:, 1].argmax(), vertices[:, 1].argmin()
    assert pixels[0, tip, 1] < 32 < pixels[0, base, 1], "the tip is above the middle of the image"
    assert (depths > 0).all()
    assert Mesh(vertices, torch.from_numpy(np.array(read.faces)).long()).volume() > 0


def nowhere(p):
    return torch.full_like(p[..., 0], 1.0)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda folder: extract_mesh(nowhere, 8), "stays above 0"),
        (lambda folder: extract_mesh(lambda p: -nowhere(p), 8), "stays below 0"),
        (lambda folder: extract_mesh(lambda p: sphere(p) * math.nan, 8), "not finite"),
        (lambda folder: extract_mesh(sphere, 1), "2 to 1024"),
        (lambda folder: extract_mesh(sphere, 10**6), "2 to 1024"),
        (lambda folder: export_mesh(pin(), folder / "pin.stl"), "ends in one"),
        (lambda folder: export_mesh(pin(), folder / "no" / "pin.ply"), "folder is not there"),
        (lambda folder: export_mesh(Mesh(torch.zeros(0, 3), torch.zeros(0, 3).long()), folder / "a.ply"), "triangles"),
        (
            lambda folder: export_mesh(Mesh(torch.full((3, 3), math.inf), torch.arange(3)[None]), folder / "a.ply"),
            "a.ply",
        ),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(tmp_path, mistake, words):
    with pytest.raises(UserError, match=words) as caught:
        mistake(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
