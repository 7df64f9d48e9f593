"""Distances of primitives against the distance to points of their surfaces; unions; surface points; meshes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.neighbours import nearest
from fewstep.threed.shapes import Solid, build, draw, extract_mesh, read, sample_surface
from fewstep.threed.shapes.primitives import PRIMITIVES
from fewstep.threed.shapes.solids import Part

KINDS = tuple(PRIMITIVES)
RED = (1.0, 0.0, 0.0)


def lone(kind: str, centre=(0.0, 0.0, 0.0)) -> Solid:
    return Solid(read(f"a red {kind}"), (Part(kind, PRIMITIVES[kind].sizes, centre, RED),))


def space(count: int, side: float = 1.0) -> torch.Tensor:
    return side * (2 * torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1)


def area_and_volume(kind: str) -> tuple[float, float]:
    s = PRIMITIVES[kind].sizes
    if kind == "sphere":
        return 4 * math.pi * s[0] ** 2, 4 / 3 * math.pi * s[0] ** 3
    if kind == "box":
        return 8 * (s[0] * s[1] + s[1] * s[2] + s[0] * s[2]), 8 * s[0] * s[1] * s[2]
    if kind == "cylinder":
        return math.tau * s[0] * (s[0] + 2 * s[1]), math.tau * s[0] ** 2 * s[1]
    if kind == "cone":
        return math.pi * s[0] * (s[0] + math.hypot(s[0], 2 * s[1])), math.pi * s[0] ** 2 * 2 * s[1] / 3
    return 4 * math.pi**2 * s[0] * s[1], 2 * math.pi**2 * s[0] * s[1] ** 2


def volume_of(mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_the_one_to_the_nearest_point_of_the_surface(kind):
    solid = lone(kind)
    at = space(400)
    surface = sample_surface(solid, 20_000).points
    found = nearest(at, surface).distances[:, 0]
    distance = solid.distance(at)
    assert (found - distance.abs()).min() > -1e-9  # no point of the surface is nearer than it says
    assert (found - distance.abs()).max() < 0.05  # and one is as near, up to how dense the points are
    assert (distance < 0).double().mean() == pytest.approx(area_and_volume(kind)[1] / 8, abs=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_normals_are_unit_and_lead_from_a_point_to_its_nearest_one(kind):
    solid, at = lone(kind), space(2000)
    at = at[solid.distance(at) > 1e-3]
    normal, distance = solid.normal(at), solid.distance(at)
    assert_close(normal.norm(dim=1), torch.ones(len(at), dtype=torch.float64))
    on = at - distance[:, None] * normal
    assert_close(solid.distance(on), torch.zeros_like(distance), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_extents_and_fronts_are_those_of_the_surface(kind):
    solid, primitive = lone(kind), PRIMITIVES[kind]
    reach = sample_surface(solid, 10_000).points.abs().amax(0)
    assert_close(reach, torch.tensor(primitive.extent(primitive.sizes)).double(), atol=0.03, rtol=0)
    front = torch.tensor([[0.0, 0.0, primitive.front(primitive.sizes)]], dtype=torch.float64)
    assert solid.distance(front).abs() < 1e-12
    assert solid.distance(front + 0.01 * torch.tensor([0.0, 0, 1])) > 0


def test_solids_stay_in_the_unit_ball_and_their_parts_are_what_colours_them():
    for index in range(25):
        solid = draw(1, index)
        found = sample_surface(solid, 500)
        assert found.points.norm(dim=1).max() <= 1
        assert solid.distance(found.points).abs().max() < 1e-9
        own = torch.tensor([part.colour for part in solid.parts], dtype=torch.float64)
        assert all(any(torch.equal(c, o) for o in own) for c in found.colours.unique(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_even_on_the_surface(kind):
    """The share of points on one side of a plane is that of the area, of two patches in closed form."""
    found = sample_surface(lone(kind), 20_000)
    s, (area, _) = PRIMITIVES[kind].sizes, area_and_volume(kind)
    if kind == "sphere":
        share, expected = found.points[:, 1] > s[0] / 2, 0.25  # Archimedes
    elif kind == "box":
        share, expected = found.normals[:, 1] > 0.9, 4 * s[0] * s[2] / area
    elif kind == "torus":
        outer = found.points[:, ::2].norm(dim=1) > s[0]
        share, expected = outer, 0.5 + s[1] / (math.pi * s[0])
    else:
        share, expected = found.normals[:, 1] < -0.9, math.pi * s[0] ** 2 / area
    assert float(share.double().mean()) == pytest.approx(expected, abs=0.015)


def test_points_are_a_function_of_the_seed():
    solid = draw(0, 5)
    assert torch.equal(sample_surface(solid, 100).points, sample_surface(solid, 200).points[:100])
    assert not torch.equal(sample_surface(solid, 100).points, sample_surface(solid, 100, seed=1).points)
    with pytest.raises(UserError, match="at least one"):
        sample_surface(solid, 0)


@pytest.mark.parametrize("index", range(4))
def test_a_mesh_is_closed_and_faces_outward(index):
    solid = draw(2, index)
    mesh = extract_mesh(solid, 48)
    ends = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    code = ends[:, 0] * len(mesh.vertices) + ends[:, 1]
    back = ends[:, 1] * len(mesh.vertices) + ends[:, 0]
    assert len(code.unique()) == len(code)  # each edge once in each direction
    assert torch.equal(code.sort().values, back.sort().values)
    inside = float((solid.distance(space(100_000)) < 0).double().mean()) * 8
    assert volume_of(mesh) == pytest.approx(inside, rel=0.05)


def test_a_mesh_of_a_sphere_is_right_at_second_order():
    solid = lone("sphere")
    true = area_and_volume("sphere")[1]
    errors = [abs(volume_of(extract_mesh(solid, n)) - true) / true for n in (24, 48)]
    assert errors[1] < 0.01
    assert errors[0] / errors[1] > 3.5
    assert extract_mesh(solid, 24).vertices.mean(0).abs().max() < 1e-3


def test_a_grid_too_coarse_for_a_mesh_is_refused():
    with pytest.raises(UserError, match="coarse"):
        extract_mesh(draw(0, 0), 4)


def test_a_union_is_the_nearest_part():
    solid = build(read("a red cone on a blue box"))
    at = space(1000)
    assert_close(solid.distance(at), torch.stack([part.distance(at) for part in solid.parts]).amin(0))
