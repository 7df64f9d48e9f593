"""Colour, depth and normals of Gaussians in one pass."""

from __future__ import annotations

import pytest
import torch
from threed.splat_bed import cameras, scene
from torch.nn import functional as F
from torch.testing import assert_close

from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.gaussians.geometry import depth_normals, shortest_axes, views, views_and_meta
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.render import render


def camera(count: int = 2, width: int = 14, height: int = 12) -> Camera:
    return Camera(*cameras(count, width, height), width, height)


@pytest.mark.parametrize(
    "background", [0.25, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([[0.1, 0.2, 0.3], [1, 0, 1]])]
)
def test_one_pass_sees_what_separate_ones_do(background):
    cloud, eye = scene(30, degree=2), camera()
    rgb, alpha, depth, normal = views(cloud, eye, background)
    colours = torch.as_tensor(background, dtype=torch.float64).expand(2, 3)
    image, covered, _ = render(
        cloud, eye.world_to_camera, eye.intrinsics, 14, 12, background=colours, render_mode="RGB+D"
    )
    assert_close(torch.cat([rgb, depth], dim=1), image.movedim(-1, 1))
    assert_close(alpha, covered.movedim(-1, 1))
    assert normal.shape == (2, 3, 12, 14)
    assert (normal.norm(dim=1, keepdim=True) <= alpha + 1e-9).all(), "weighted by alpha, a normal is at most that long"


def plate(normal: torch.Tensor) -> Gaussians:
    """A flat Gaussian at the origin, wide across ``normal`` and thin along it (its own third axis)."""
    z = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    axis = torch.linalg.cross(z, normal)
    quaternion = torch.cat([1 + (z @ normal)[None], axis])
    one = Gaussians.isotropic(torch.zeros(1, 3, dtype=torch.float64), 0.5, 0.9)
    thin = torch.tensor([[0.5, 0.5, 0.01]], dtype=torch.float64).log()
    return Gaussians(one.means, thin, quaternion[None], one.opacity_logits, one.harmonics)


@pytest.mark.parametrize("azimuth", [0.0, 70.0, 180.0])
def test_a_plates_normal_is_its_own_and_faces_the_camera(azimuth):
    eye = orbit(torch.tensor([azimuth]), torch.tensor([20.0]), 3.0, 40.0, 17, 17).to(torch.float64)
    towards = F.normalize(eye.position[0] + torch.tensor([0.3, 0.4, -0.2], dtype=torch.float64), dim=0)
    for sign in (1, -1):
        cloud = plate(sign * towards)
        assert_close(shortest_axes(cloud, eye.position)[0, 0], towards, rtol=0, atol=1e-6)
        _, alpha, depth, normal = views(cloud, eye)
        assert_close(normal[0, :, 8, 8], towards * alpha[0, 0, 8, 8], rtol=0, atol=1e-6)
        assert_close(depth[0, 0, 8, 8] / alpha[0, 0, 8, 8], torch.tensor(3.0, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_depths_of_a_plane_give_its_normal(alpha):
    eye = orbit(torch.tensor([30.0]), torch.tensor([10.0]), 3.0, 40.0, 12, 10).to(torch.float64)
    normal = F.normalize(eye.position[0] + torch.tensor([0.5, -0.4, 0.6], dtype=torch.float64), dim=0)
    origins, directions = eye.rays()
    forward = (directions * eye.world_to_camera[:, None, None, 2, :3]).sum(-1)
    distance = -(origins @ normal) / (directions @ normal)
    covered = torch.full((1, 1, 10, 12), alpha, dtype=torch.float64)
    found = depth_normals((distance * forward)[:, None] * covered, covered, eye)
    assert_close(found, alpha * normal[None, :, None, None].expand_as(found), rtol=0, atol=1e-6)


def test_depths_of_nothing_have_no_normal_and_no_gradient():
    eye = camera(1)
    depth, alpha = (torch.zeros(1, 1, 12, 14, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = depth_normals(depth, alpha, eye)
    assert found.abs().max() == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found.sum(), (depth, alpha)))


def test_gradients_of_all_views_by_finite_differences():
    cloud = scene(3, degree=1, seed=3, size=0.4)
    eye = camera(1, 6, 6)

    def run(means, log_scales, quaternions, logits, harmonics, background):
        return views(Gaussians(means, log_scales, quaternions, logits, harmonics), eye, background)

    parts = [cloud.means, cloud.log_scales, cloud.quaternions, cloud.opacity_logits + 1, cloud.harmonics]
    inputs = [each.clone().requires_grad_() for each in (*parts, torch.rand(1, 3, dtype=torch.float64))]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_meta_is_what_densification_needs():
    _, meta = views_and_meta(scene(5), camera())
    assert meta["means2d"].shape == (2, 5, 2)
    assert meta["radii"].shape == (2, 5, 2)
    assert (meta["width"], meta["height"], meta["n_cameras"], meta["gaussian_ids"]) == (14, 12, 2, None)
