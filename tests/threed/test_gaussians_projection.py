"""Projection and spherical harmonics: equal to gsplat's own torch code, values by hand, orthonormality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from threed.splat_bed import cameras, scene
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.gaussians import harmonics
from fewstep.threed.gaussians.parameters import GaussianParameters, Gaussians
from fewstep.threed.gaussians.projection import covariances, project, rotation_matrices


@pytest.mark.parametrize("spread", [0.3, 6.0])  # all in view; some beside the image and behind the camera
def test_projection_is_gsplats(spread):
    cloud = scene(300)
    views, intrinsics = cameras(3, 40, 30)
    covars = covariances(cloud.quaternions, cloud.scales)
    assert_close(covars, _quat_scale_to_covar_preci(cloud.quaternions, cloud.scales, compute_preci=False)[0])
    leaves = [(cloud.means * spread).requires_grad_(), covars.clone().requires_grad_()]
    ours = project(*leaves, views, intrinsics, 40, 30)
    radii, *theirs = _fully_fused_projection(*leaves, views, intrinsics, 40, 30, calc_compensations=True)
    assert torch.equal(ours.radii.int(), radii)
    assert (spread < 1) == bool(ours.visible.all())
    mine = [each[ours.visible] for each in (ours.means2d, ours.depths, ours.conics, ours.compensations)]
    true = [each[ours.visible] for each in theirs]
    for one, other in zip(mine, true, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)
        of_ours, of_theirs = (
            torch.autograd.grad(each.square().sum(), leaves, retain_graph=True, allow_unused=True)
            for each in (one, other)
        )
        for gradient, expected in zip(of_ours, of_theirs, strict=True):
            assert (gradient is None) == (expected is None)
            if gradient is not None:
                assert_close(gradient, expected, rtol=1e-8, atol=1e-8)


def test_a_ball_on_the_axis():
    means = torch.tensor([[0.0, 0, 4]], dtype=torch.float64)
    covars = 0.05**2 * torch.eye(3, dtype=torch.float64)[None]
    intrinsics = torch.tensor([[[100.0, 0, 16], [0, 100, 16], [0, 0, 1]]], dtype=torch.float64)
    seen = project(means, covars, torch.eye(4, dtype=torch.float64)[None], intrinsics, 32, 32)
    conic = 1 / ((100 * 0.05 / 4) ** 2 + 0.3)
    assert_close(seen.conics[0, 0], torch.tensor([conic, 0, conic], dtype=torch.float64))
    assert conic == pytest.approx(0.5369128, abs=1e-7)
    assert seen.compensations.item() == pytest.approx(0.8389262, abs=1e-7)
    assert seen.radii.tolist() == [[[5, 5]]]
    assert seen.means2d.tolist() == [[[16, 16]]]


def test_rotations_turn_as_quaternions_do():
    turn = torch.tensor([math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)], dtype=torch.float64)  # 90 degrees about z
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert_close(rotation_matrices(7 * turn), expected)
    found = rotation_matrices(scene(20).quaternions)
    assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    assert_close(torch.linalg.det(found), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_gsplats(degree):
    draw = torch.Generator().manual_seed(2)
    directions = torch.randn(50, 3, generator=draw, dtype=torch.float64)
    coefficients = torch.randn(50, 16, 3, generator=draw, dtype=torch.float64)
    ours = harmonics.evaluate(degree, directions, coefficients)
    # theirs are rounded to some ten digits
    assert_close(ours, _spherical_harmonics(degree, directions, coefficients), rtol=1e-8, atol=1e-8)


def test_harmonics_are_orthonormal():
    heights, weights = np.polynomial.legendre.leggauss(8)
    around = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    z = torch.from_numpy(heights)[:, None].expand(8, 16)
    side = (1 - z * z).sqrt()
    directions = torch.stack([side * around.cos(), side * around.sin(), z], dim=-1)
    values = harmonics.basis(3, directions).reshape(-1, 16)
    area = (torch.from_numpy(weights)[:, None] * (2 * math.pi / 16)).expand(8, 16).reshape(-1)
    assert_close(values.T @ (area[:, None] * values), torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_colours_and_band_0():
    rgb = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(harmonics.to_rgb(harmonics.from_rgb(rgb)), rgb)
    seen = harmonics.evaluate(0, torch.ones(5, 3, dtype=torch.float64), harmonics.from_rgb(rgb)[:, None]) + 0.5
    assert_close(seen, rgb)


def test_parameters_hold_the_cloud_and_its_activations():
    cloud = scene(6, degree=2)
    model = GaussianParameters(cloud)
    for name in cloud.__dataclass_fields__:
        assert torch.equal(getattr(model(), name), getattr(cloud, name)), name
    assert set(model.params) == {"means", "scales", "quats", "opacities", "sh0", "shN"}
    ball = Gaussians.isotropic(cloud.means, 0.2, 0.3, torch.full((6, 3), 0.7, dtype=torch.float64), degree=1)
    assert_close(ball.scales, torch.full((6, 3), 0.2, dtype=torch.float64))
    assert_close(ball.opacities, torch.full((6,), 0.3, dtype=torch.float64))
    assert (ball.degree, len(ball)) == (1, 6)
    assert_close(cloud.rotations.norm(dim=-1), torch.ones(6, dtype=torch.float64))


def test_bad_input():
    cloud = scene(4)
    with pytest.raises(UserError, match=r"opacity_logits must have shape \(4,\), got \(4, 1\)"):
        Gaussians(cloud.means, cloud.log_scales, cloud.quaternions, cloud.opacity_logits[:, None], cloud.harmonics)
    with pytest.raises(UserError, match="2 spherical harmonics"):
        Gaussians(
            cloud.means, cloud.log_scales, cloud.quaternions, cloud.opacity_logits, cloud.harmonics.repeat(1, 2, 1)
        )
    with pytest.raises(UserError, match="degree 4"):
        harmonics.coefficient_count(4)
    with pytest.raises(UserError, match="scale 0"):
        Gaussians.isotropic(cloud.means, 0)
