"""Marching tetrahedra: closed and outward surfaces, right to second order, with gradients of values and positions."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.fields import tetrahedra
from fewstep.threed.fields.meshes import extract_mesh, sample_grid
from fewstep.threed.fields.tetrahedra import extract_trainable, march_tetrahedra, with_surface

F64 = torch.float64


def ball(points, radius=0.5):
    return points.norm(dim=-1) - radius


def grid(resolution, field=ball):
    return sample_grid(field, resolution, dtype=F64)


def noise(resolution, seed=0):
    values = torch.randn(3 * (resolution,), generator=torch.Generator().manual_seed(seed), dtype=F64)
    return values


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices.detach().numpy(), mesh.faces.numpy(), process=False)


def test_a_ball_is_closed_faces_outward_and_has_its_volume():
    mesh = march_tetrahedra(grid(64))
    assert mesh.volume() == pytest.approx(4 / 3 * math.pi / 8, rel=0.01)
    assert as_trimesh(mesh).is_watertight
    assert as_trimesh(mesh).is_winding_consistent
    assert as_trimesh(mesh).euler_number == 2
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    assert (torch.linalg.cross(b - a, c - a) * a).sum(-1).min() >= 0


def test_a_ball_is_met_to_second_order():
    meshes = [march_tetrahedra(grid(n)) for n in (17, 33, 65)]
    errors = [ball(mesh.vertices).abs().max().item() for mesh in meshes]
    volumes = [4 / 3 * math.pi / 8 - mesh.volume() for mesh in meshes]
    for found in (errors, volumes):
        assert found[0] / found[1] >= 3.5
        assert found[1] / found[2] >= 3.5


def test_noise_is_closed_wherever_marching_cubes_is():
    inner = with_surface(noise(9))
    mesh = march_tetrahedra(inner)
    assert as_trimesh(mesh).is_watertight
    assert as_trimesh(mesh).is_winding_consistent
    torus = grid(33, lambda p: torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.5, p[..., 2]) - 0.2)
    assert as_trimesh(march_tetrahedra(torus)).euler_number == 0
    cut = grid(16, lambda p: p[..., 0] + 0.1)
    assert not as_trimesh(march_tetrahedra(cut)).is_watertight
    assert not as_trimesh(extract_mesh(lambda p: p[..., 0] + 0.1, 16, dtype=F64)).is_watertight


def test_planes_and_zeros_on_the_grid_are_met_exactly():
    mesh = march_tetrahedra(grid(9, lambda p: p @ p.new_tensor([0.3, -0.7, 0.5]) - 0.1))
    assert_close(mesh.vertices @ mesh.vertices.new_tensor([0.3, -0.7, 0.5]), torch.full_like(mesh.vertices[:, 0], 0.1))
    through = march_tetrahedra(grid(9, lambda p: p[..., 1]))  # points of the grid at 0 exactly
    assert through.vertices[:, 1].abs().max() == 0


def test_gradients_of_values_and_displacements_are_those_of_the_positions():
    values = with_surface(noise(4)).requires_grad_()
    moved = (0.1 * torch.stack([noise(4, seed) for seed in (1, 2, 3)], -1)).clamp(-0.4, 0.4).requires_grad_()

    def vertices(sdf, deform):
        return march_tetrahedra(sdf, deform).vertices

    assert torch.autograd.gradcheck(vertices, (values, moved), eps=1e-7, atol=1e-5)


def test_displaced_points_carry_the_surface_along():
    deform = torch.zeros(9, 9, 9, 3, dtype=F64)
    deform[..., 1] = 0.25
    still, moved = march_tetrahedra(grid(9)), march_tetrahedra(grid(9), deform)
    assert_close(moved.vertices - still.vertices, torch.tensor([0.0, 0.0625, 0.0], dtype=F64).expand_as(still.vertices))


def test_a_field_gets_the_gradient_of_its_surface_and_is_asked_for_it_there_only():
    radius = torch.tensor(0.5, dtype=F64, requires_grad=True)
    asked = []

    def field(points):
        if torch.is_grad_enabled():
            asked.append(len(points))
        return ball(points, radius)

    mesh = extract_trainable(field, 33, dtype=F64)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    (slope,) = torch.autograd.grad((a * torch.linalg.cross(b, c)).sum() / 6, radius)
    assert slope.item() == pytest.approx(4 * math.pi * 0.25, rel=0.01), "volume grows by the surface"
    assert sum(asked) < 33**3 / 5
    whole = march_tetrahedra(grid(33))
    assert torch.equal(mesh.vertices.detach(), whole.vertices)
    with torch.no_grad():
        assert not extract_trainable(field, 9, dtype=F64).vertices.requires_grad


@pytest.mark.parametrize("resolution", [8, 9])
def test_an_empty_field_gets_a_closed_surface_in_the_middle_and_its_gradient(resolution):
    values = torch.full(3 * (resolution,), 0.7, dtype=F64, requires_grad=True)
    mesh = march_tetrahedra(values, ensure_surface=True)
    assert as_trimesh(mesh).is_watertight
    assert mesh.volume() > 0
    assert mesh.vertices.abs().max() < 0.3
    (slope,) = torch.autograd.grad((mesh.vertices**2).sum(), values)
    assert (slope.abs() > 0).sum() > 8
    assert (slope <= 0).all(), "smaller values make it larger"


def test_a_full_field_is_closed_at_the_border_and_a_good_one_is_left_alone():
    full = march_tetrahedra(torch.full((8, 8, 8), -1.0), ensure_surface=True)
    assert as_trimesh(full).is_watertight
    assert 1 < full.volume() < 8
    torus = grid(17, lambda p: torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.5, p[..., 2]) - 0.2)
    assert torch.equal(with_surface(torus), torus), "the middle of a torus stays empty"


def test_the_six_tetrahedra_fill_a_cell():
    corners = tetrahedra._tetrahedra().double()
    volumes = torch.linalg.det(corners[:, 1:] - corners[:, :1]) / 6
    assert_close(volumes, torch.full((6,), 1 / 6, dtype=F64))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: march_tetrahedra(torch.ones(8, 8, 8)), "stays at or above 0.*ensure_surface"),
        (lambda: march_tetrahedra(-torch.ones(8, 8, 8)), "stays below 0"),
        (lambda: march_tetrahedra(torch.full((8, 8, 8), math.nan)), "not finite"),
        (lambda: march_tetrahedra(torch.ones(2, 2, 2)), "3 points or more"),
        (lambda: march_tetrahedra(grid(8), torch.zeros(8, 8, 3)), "like the grid"),
        (lambda: march_tetrahedra(grid(8), torch.ones(8, 8, 8, 3)), "1 cells: at most 0.5"),
        (lambda: extract_trainable(lambda p: torch.ones_like(p[..., 0]), 8), "no surface"),
    ],
)
def test_mistakes_are_said_in_one_line(mistake, words):
    with pytest.raises(UserError, match=words) as caught:
        mistake()
    assert "\n" not in str(caught.value)
