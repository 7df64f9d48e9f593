"""Distances of surfaces: parallel planes, concentric spheres, solids and their meshes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.metrics.surfaces import chamfer_distance, f_score, normal_consistency
from fewstep.threed.shapes import build, draw, extract_mesh, read, sample_surface


def grid(z: float, count: int = 20) -> torch.Tensor:
    axis = torch.linspace(0, 1, count, dtype=torch.float64)
    flat = torch.cartesian_prod(axis, axis)
    return torch.cat((flat, torch.full((len(flat), 1), z, dtype=torch.float64)), 1)[None]


def test_parallel_planes_are_as_far_as_they_are_apart():
    for z in (0.0, 0.01, 0.3):
        assert float(chamfer_distance(grid(0), grid(z))) == pytest.approx(z, abs=1e-5)


def test_f_score_is_harmonic_and_a_step():
    a, b = grid(0), grid(0.1)
    assert float(f_score(a, b, within=0.11)) == 1
    assert float(f_score(a, b, within=0.09)) == 0
    half = torch.cat((a, a + torch.tensor([0.0, 0, 5])), 1)  # precision 1/2, recall 1
    assert float(f_score(half, a, within=0.01)) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="positive"):
        f_score(a, b, within=0)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 180])
def test_normal_consistency_is_the_cosine_of_the_tilt(degrees):
    points, angle = grid(0), math.radians(degrees)
    up = torch.tensor([0.0, 0, 2]).double().expand_as(points)
    tilted = torch.tensor([math.sin(angle), 0, math.cos(angle)]).double().expand_as(points)
    assert float(normal_consistency(points, up, points, tilted)) == pytest.approx(abs(math.cos(angle)))
    assert float(normal_consistency(points, up, points, tilted, oriented=True)) == pytest.approx(math.cos(angle))


def test_samples_of_one_surface_come_closer_as_one_over_the_root():
    solid = draw(0, 0)
    few, many = (
        chamfer_distance(*(sample_surface(solid, n, seed).points[None] for seed in (0, 1))) for n in (1000, 4000)
    )
    assert 1.7 < float(few / many) < 2.3


def test_a_mesh_is_its_solid_and_another_solid_is_not():
    solid, other = build(read("a red cone on a blue box")), build(read("a red sphere"))
    a, b = sample_surface(solid, 4000), sample_surface(other, 4000)
    mesh = extract_mesh(solid, 64)
    assert float(solid.distance(mesh.vertices).abs().max()) < 0.02
    assert float(chamfer_distance(mesh.vertices[None], a.points[None])) < 0.02
    assert float(chamfer_distance(b.points[None], a.points[None])) > 0.1
    same = sample_surface(solid, 4000, seed=1)
    alike = normal_consistency(same.points[None], same.normals[None], a.points[None], a.normals[None])
    apart = normal_consistency(b.points[None], b.normals[None], a.points[None], a.normals[None])
    assert float(alike) > 0.93 > float(apart) + 0.1


def test_batches_are_compared_pair_by_pair():
    a, b = torch.cat((grid(0), grid(1))), torch.cat((grid(0.1), grid(1.3)))
    assert_close(chamfer_distance(a, b), torch.tensor([0.1, 0.3]).double(), atol=1e-5, rtol=0)
    assert_close(f_score(a, b, within=0.2), torch.tensor([1.0, 0.0]).double())
    with pytest.raises(UserError, match="pair by pair"):
        f_score(a, b[:1], within=1)


def test_bad_normals_are_refused():
    a = grid(0)
    with pytest.raises(UserError, match="normal is 0"):
        normal_consistency(a, 0 * a, a, a + 1)
    with pytest.raises(UserError, match="normals"):
        normal_consistency(a, a[:, :5] + 1, a, a + 1)
