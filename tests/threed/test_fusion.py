"""Fused meshes: exact pictures give the solid back, silhouettes carve alone, and clouds end where they are seen to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import trimesh
from threed.scene_bed import around
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.fusion import FusedDepths, all_around, fuse
from fewstep.threed.fields.mesh_rendering import render_mesh
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.gaussians.geometry import FRONT, front_views, views
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.metrics.pictures import silhouette_iou
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.shapes import Solid, build, read, render
from fewstep.threed.views import Views


def exact(solid: Solid, camera: Camera) -> Views:
    seen = render(solid, camera.world_to_camera, camera.intrinsics, camera.width, camera.height)
    return Views(seen.rgb, seen.alpha, seen.depth * seen.alpha, seen.normal * seen.alpha)


def fused(solid: Solid, **settings: float) -> Mesh:
    return fuse(lambda camera: exact(solid, camera), resolution=56, bound=0.62, radius=0.75, **settings)


def iou(mesh: Mesh, solid: Solid) -> Tensor:
    ring = around(5, 64)
    truth = render(solid, ring.world_to_camera, ring.intrinsics, 64, 64).alpha
    return silhouette_iou(render_mesh(mesh, ring, samples=4).alpha, truth)


@pytest.mark.parametrize("text", ["a red sphere", "a red box", "a red torus", "a red cone"])
def test_exact_pictures_give_the_solid_back(text):
    solid = build(read(text))
    mesh = fused(solid)
    off = solid.distance(mesh.vertices)
    assert float(iou(mesh, solid).min()) > 0.96
    assert float(off.abs().mean()) < 0.006
    assert float(off.abs().max()) < 0.04  # a cell's diagonal
    assert int(mesh.colours.mean(0).argmax()) == 0
    shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    assert shape.is_watertight
    assert shape.euler_number == (0 if "torus" in text else 2)  # the hole stays, and none is made


def test_silhouettes_carve_where_depths_say_nothing():
    """Depths far in front are no evidence: what is left is the hull, which a sphere and its outlines agree on."""
    solid = build(read("a red sphere"))

    def look(camera: Camera) -> Views:
        seen = exact(solid, camera)
        return replace(seen, depth=0.5 * seen.depth)

    mesh = fuse(look, resolution=48, bound=0.62, radius=0.75)
    assert float(iou(mesh, solid).min()) > 0.96
    assert float(solid.distance(mesh.vertices).min()) > -0.02


def test_depths_carve_what_no_silhouette_does():
    """A torus that lies on a box: from no side can its hole be seen through, yet it is empty."""
    solid = build(read("a red torus on a blue box"))
    camera = all_around(80, 1.1)
    seen = exact(solid, camera)
    torus = torch.tensor(solid.parts[0].centre)
    hole = torus + torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.05, 0.0, 0.05]])
    assert float(solid.distance(hole).min()) > 0.02
    assert float(FusedDepths(seen, camera, 0.08).distance(hole).min()) > 0
    blind = replace(seen, depth=0.5 * seen.depth)
    assert float(FusedDepths(blind, camera, 0.08).distance(hole[1:]).max()) < 0


def test_the_edge_of_a_silhouette_is_finer_than_a_pixel():
    """A ball's hull, of few large pixels, grows with the ball and not by pixels."""
    camera, found = all_around(24, 0.75), []
    ray = torch.stack([torch.linspace(0.3, 0.6, 301), torch.zeros(301), torch.zeros(301)], dim=1)
    for radius in (0.40, 0.41, 0.42, 0.43):
        part = replace(build(read("a red sphere")).parts[0], sizes=(radius,), centre=(0.0, 0.0, 0.0))
        solid = replace(build(read("a red sphere")), parts=(part,))
        outside = FusedDepths(exact(solid, camera), camera, 0.08).distance(ray) > 0
        found.append(float(ray[int(outside.int().argmax()), 0]) - radius)
    assert max(map(abs, found)) < 0.01  # a pixel is 0.065 wide


def ahead(depth: float, size: int = 33) -> Camera:
    return orbit(*(torch.tensor([v]) for v in (0.0, 0.0, depth, 30.0)), size, size)


@pytest.mark.parametrize("opacity", [0.6, 0.9])
def test_a_lone_gaussian_is_as_deep_as_it_is_wide(opacity):
    """Along its ray a third is stopped where ``o exp(-t^2 / 2)`` is, as beside its mean; whatever its other axes."""
    cloud = Gaussians.isotropic(torch.zeros(1, 3), 0.1, opacity)
    flat = replace(cloud, log_scales=torch.tensor([[0.3, 0.2, 0.1]]).log())
    expected = 3.0 - 0.1 * math.sqrt(2 * math.log(opacity / FRONT))
    for each in (cloud, flat):
        _, alpha, depth, _ = front_views(each, ahead(3.0))
        assert abs(float(depth[0, 0, 16, 16] / alpha[0, 0, 16, 16]) - expected) < 0.01


def test_what_shines_through_does_not_move_the_front():
    front = torch.tensor([[0.0, 0.0, 0.3]])
    alone = Gaussians.isotropic(front, 0.1, 0.8)
    backed = Gaussians.isotropic(torch.cat([front, front - torch.tensor([[0.0, 0.0, 0.6]])]), 0.1, 0.8)
    at = [depth[0, 0, 16, 16] / alpha[0, 0, 16, 16] for _, alpha, depth, _ in map(look_ahead, (alone, backed))]
    assert abs(float(at[0] - at[1])) < 0.02
    _, alpha, depth, _ = views(backed, ahead(3.0))
    assert float(depth[0, 0, 16, 16] / alpha[0, 0, 16, 16]) > 2.75  # the mean is not where the surface is


def look_ahead(cloud: Gaussians) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return front_views(cloud, ahead(3.0))


def test_fronts_are_what_is_seen_otherwise():
    scene = GaussianScene.ball(60, 0.5, 1, seed=0)
    camera = around(3, 16)
    with torch.no_grad():
        seen, fronts = views(scene.gaussians(), camera, 0.3), front_views(scene.gaussians(), camera, 0.3)
    for index in (0, 1, 3):
        torch.testing.assert_close(fronts[index], seen[index])


def test_a_mesh_of_a_cloud_has_the_silhouettes_of_the_cloud():
    """Splats of a ball's surface, half transparent as trained ones are: no view is smaller than what they cover."""
    direction = Rng.for_batch(0, 0, 700).normal("direction", (3,))
    cloud = Gaussians.isotropic(0.4 * direction / direction.norm(dim=1, keepdim=True), 0.04, 0.6)
    mesh, ring = GaussianScene(cloud).mesh(56), around(5, 64)
    covered = (views(cloud, ring)[1] > 0.5).float()
    assert float(silhouette_iou(render_mesh(mesh, ring, samples=4).alpha, covered).min()) > 0.9
    # the splats' means lie on a ball of 0.4, and none covers anything past two standard deviations
    assert float(mesh.vertices.norm(dim=1).min()) > 0.4
    assert float(mesh.vertices.norm(dim=1).max()) < 0.49
