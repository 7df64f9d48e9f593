"""The rasteriser: equal to brute force in values and gradients, the laws of compositing, what is not there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.splat_bed import brute_force, cameras, scene
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.gaussians import compositing
from fewstep.threed.gaussians.compositing import composite
from fewstep.threed.gaussians.parameters import GaussianParameters, Gaussians
from fewstep.threed.gaussians.projection import covariances, project
from fewstep.threed.gaussians.rasterise import rasterization, view_colors
from fewstep.threed.gaussians.render import render
from fewstep.threed.gaussians.tiles import tiles


def splats(n: int, width: int, height: int, seed: int = 0, size: float = 0.15) -> list[Tensor]:
    """Means, conics, opacities, features of two channels, depths of a projected scene."""
    cloud = scene(n, seed=seed, size=size)
    seen = project(cloud.means, covariances(cloud.quaternions, cloud.scales), *cameras(1, width, height), width, height)
    ids = seen.visible[0]
    parts = [seen.means2d[0], seen.conics[0], cloud.opacities, cloud.harmonics[:, 0, :2], seen.depths[0]]
    return [part[ids] for part in parts]


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize(
    ("n", "width", "height", "tile", "block"),
    [(40, 37, 29, 16, 2048), (40, 37, 29, 8, 3), (300, 24, 20, 16, 7), (5, 3, 50, 16, 1)],
)
def test_tiles_change_nothing(monkeypatch, n, width, height, tile, block):
    monkeypatch.setattr(compositing, "BLOCK", block)
    inputs = splats(n, width, height)
    leaves = [each.clone().requires_grad_() for each in inputs[:4]]
    over = tiles(*leaves[:3], inputs[4], width, height, tile)
    ours = composite(*leaves, over)
    truth = brute_force(*leaves, inputs[4], width, height)
    for mine, true in zip(ours, truth, strict=True):
        assert_close(mine, true, rtol=1e-10, atol=1e-12)
    loss = [
        (image * weights(*image.shape)).sum() + (alpha * weights(*alpha.shape)).sum() for image, alpha in (ours, truth)
    ]
    for mine, true in zip(*(torch.autograd.grad(each, leaves) for each in loss), strict=True):
        assert_close(mine, true, rtol=1e-8, atol=1e-9)


def test_opaque_stacks_finish_a_pixel_as_brute_force_does(monkeypatch):
    monkeypatch.setattr(compositing, "BLOCK", 4)
    means2d, conics, opacities, features, depths = splats(60, 16, 16, size=0.5)
    opacities = opacities.clamp_min(0.6)
    opacities[::3] = 1.0  # capped, so without a gradient
    leaves = [each.clone().requires_grad_() for each in (means2d, conics, opacities, features)]
    ours = composite(*leaves, tiles(*leaves[:3], depths, 16, 16))
    truth = brute_force(*leaves, depths, 16, 16)
    assert_close(ours[0], truth[0], rtol=1e-10, atol=1e-12)
    assert (truth[1] > 1 - 2e-4).any(), "no pixel was finished"
    mine, true = (torch.autograd.grad((each[0] * weights(16, 16, 2)).sum(), leaves) for each in (ours, truth))
    for one, other in zip(mine, true, strict=True):
        assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_gradients_of_everything_by_finite_differences():
    cloud = scene(3, degree=1, seed=3, size=0.4)
    views, intrinsics = cameras(2, 6, 6)

    def run(means, log_scales, quaternions, logits, harmonics, behind, moved):
        made = Gaussians(means, log_scales, quaternions, logits, harmonics)
        image, alpha, _ = render(made, moved, intrinsics, 6, 6, background=behind, render_mode="RGB+ED")
        return image[..., :3], image[..., 3] * (alpha[..., 0] > 0.05), alpha

    parts = [cloud.means, cloud.log_scales, cloud.quaternions, cloud.opacity_logits + 1, cloud.harmonics]
    inputs = [each.clone().requires_grad_() for each in (*parts, weights(2, 3).abs(), views)]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def one(at: float = 0.0, z: float = 4.0, opacity: float = 0.7, rgb: tuple[float, float, float] = (1, 0.5, 0.25)):
    means = torch.tensor([[at, at, z]], dtype=torch.float64)
    return Gaussians.isotropic(means, 0.1, opacity, torch.tensor([rgb], dtype=torch.float64))


def centred(size: int = 33) -> tuple[Tensor, Tensor, int, int]:
    intrinsics = torch.tensor([[[60.0, 0, size / 2], [0, 60, size / 2], [0, 0, 1]]], dtype=torch.float64)
    return torch.eye(4, dtype=torch.float64)[None], intrinsics, size, size


def test_alpha_on_the_centre_is_the_opacity():
    image, alpha, _ = render(one(), *centred(), render_mode="RGB+D")
    assert_close(alpha[0, 16, 16, 0].item(), 0.7)
    assert_close(image[0, 16, 16], 0.7 * torch.tensor([1, 0.5, 0.25, 4], dtype=torch.float64))
    assert_close(render(one(), *centred(), render_mode="ED")[0][0, 16, 16].item(), 4.0)


@pytest.mark.parametrize("swap", [False, True])
def test_the_near_one_covers_the_far_one(swap):
    near, far = one(z=3.0, opacity=0.6, rgb=(1, 0, 0)), one(z=5.0, opacity=0.5, rgb=(0, 1, 0))
    pair = (far, near) if swap else (near, far)
    fields = ("means", "log_scales", "quaternions", "opacity_logits", "harmonics")
    both = Gaussians(*(torch.cat([getattr(each, field) for each in pair]) for field in fields))
    behind = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    image, alpha, _ = render(both, *centred(), background=behind)
    assert_close(image[0, 16, 16], torch.tensor([0.6, 0.4 * 0.5, 0.4 * 0.5], dtype=torch.float64))
    assert_close(alpha[0, 16, 16, 0].item(), 0.8)


def test_order_of_the_input_changes_nothing():
    cloud = scene(50, degree=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    mixed = Gaussians(*(getattr(cloud, name)[order] for name in cloud.__dataclass_fields__))
    view = (*cameras(2, 20, 20), 20, 20)
    assert_close(render(cloud, *view)[0], render(mixed, *view)[0])


def test_antialiasing_dims_by_the_compensation():
    cloud, view = one(), centred()
    parts = (cloud.means, cloud.quaternions, cloud.scales, cloud.opacities, cloud.harmonics[:, 0], *view)
    variance = (60 * 0.1 / 4) ** 2
    alpha = rasterization(*parts, rasterize_mode="antialiased")[1]
    assert_close(alpha[0, 16, 16, 0].item(), 0.7 * variance / (variance + 0.3))


def test_nothing_visible_gives_the_background_and_zero_gradients():
    behind_camera = replace(one(), means=torch.tensor([[0.0, 0, -4]], dtype=torch.float64))
    on_the_eye = replace(one(), means=torch.zeros(1, 3, dtype=torch.float64))
    beside = one(at=500.0)
    faint = one(opacity=0.003)
    sky = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    for cloud in (behind_camera, on_the_eye, beside, faint):
        model = GaussianParameters(cloud)
        image, alpha, _ = render(model(), *centred(), background=sky, render_mode="RGB+ED")
        assert_close(image[0, ..., :3], sky.expand(33, 33, 3))
        assert alpha.abs().max() == 0
        image.sum().backward()
        for name, value in model.params.items():
            assert torch.equal(value.grad, torch.zeros_like(value)), name


def test_no_gaussians_at_all():
    image, alpha, meta = render(scene(0), *cameras(2, 9, 7), 9, 7)
    assert (image.shape, alpha.shape) == ((2, 7, 9, 3), (2, 7, 9, 1))
    assert image.abs().max() == 0
    assert meta["n_cameras"] == 2


def test_single_precision_follows_double():
    cloud, view = scene(200, degree=3), cameras(1, 32, 32)
    single = Gaussians(*(getattr(cloud, name).float() for name in cloud.__dataclass_fields__))
    image = render(single, *(each.float() for each in view), 32, 32)[0]
    assert_close(image.double(), render(cloud, *view, 32, 32)[0], rtol=0, atol=5e-3)  # a 1/255 may fall either way
    assert (image.double() - render(cloud, *view, 32, 32)[0]).abs().mean() < 1e-5


def test_colours_per_camera_and_any_number_of_channels():
    cloud, view = scene(10), (*cameras(2, 12, 10), 12, 10)
    parts = (cloud.means, cloud.quaternions, cloud.scales, cloud.opacities)
    features = weights(2, 10, 5)
    both = rasterization(*parts, features, *view)[0]
    for camera in range(2):
        alone = rasterization(*parts, features[camera], *(each[camera : camera + 1] for each in view[:2]), 12, 10)[0]
        assert_close(both[camera], alone[0])
    assert view_colors(0, cloud.means, cloud.harmonics, view[0]).min() >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"render_mode": "N"}, "render_mode 'N'"),
        ({"backend": "gsplat"}, "needs a CUDA device"),
        ({"backend": "opengl"}, "backend 'opengl'"),
        ({"degree": 2}, "needs 9 spherical harmonics"),
        ({"background": torch.zeros(3)}, "backgrounds: must have shape"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(UserError, match=message) as caught:
        render(one(), *centred(), **change)
    assert "\n" not in str(caught.value)
