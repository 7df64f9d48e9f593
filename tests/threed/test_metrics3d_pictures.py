"""Silhouettes, PSNR and the Janus measures: closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from threed.shapes_bed import cameras
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.threed.metrics.janus import facing, likeness
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.shapes import build, read, render


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def square(left: int, side: int = 8) -> torch.Tensor:
    alpha = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    alpha[..., 4 : 4 + side, left : left + side] = 1
    return alpha


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 6 / 10), (4, 4 / 12), (8, 0.0), (20, 0.0)])
def test_iou_of_shifted_squares(shift, expected):
    assert float(silhouette_iou(square(2), square(2 + shift))) == pytest.approx(expected)


def test_iou_is_soft_symmetric_and_one_for_nothing():
    a, b = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1)
    assert_close(silhouette_iou(a, b), silhouette_iou(b, a))
    assert_close(silhouette_iou(a, 0.25 * a), torch.full((3,), 0.25).double())
    assert_close(silhouette_iou(0 * a, 0 * a), torch.ones(3).double())
    assert_close(silhouette_iou(a, 0 * a), torch.zeros(3).double())
    with pytest.raises(UserError, match="equal"):
        silhouette_iou(a, b[:1])


def test_psnr_of_a_constant_difference_and_of_equal_pictures():
    image = noise(2, 3, 8, 8) / 2
    assert_close(psnr(image, image + 0.1), torch.full((2,), 20.0).double())
    assert torch.isinf(psnr(image, image)).all()


def test_a_background_of_the_same_colour_raises_psnr_by_its_share():
    alpha = square(2, 8)
    truth = torch.ones(1, 3, 32, 32, dtype=torch.float64)
    image = truth - 0.1 * alpha
    assert float(psnr(image, truth, alpha)) == pytest.approx(20)
    assert float(psnr(image, truth)) == pytest.approx(20 + 10 * math.log10(32**2 / 8**2))
    assert_close(psnr(image, truth, torch.full_like(alpha, 0.3)), psnr(image, truth))
    with pytest.raises(UserError, match="shows none"):
        psnr(image, truth, 0 * alpha)
    with pytest.raises(UserError, match="one per pixel"):
        psnr(image, truth, truth)


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_janus_measures_of_views_mixed_with_their_opposites(mix):
    truth = noise(6, 3, 8, 8)
    ring = (1 - mix) * truth + mix * truth.roll(3, 0)
    assert_close(facing(ring, truth), torch.full((3,), 1 - 2 * mix).double())
    assert_close(likeness(ring, truth), torch.full((3,), 1 - abs(1 - 2 * mix)).double())


def test_what_is_alike_on_all_sides_cancels_and_noise_leaves_facing_alone():
    truth, tint = noise(4, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    assert_close(likeness(truth + tint, truth), torch.zeros(2).double(), atol=1e-12, rtol=0)
    noisy = truth + 0.5 * torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert_close(facing(noisy, truth), torch.ones(2).double(), atol=0.1, rtol=0)
    assert likeness(noisy, truth).max() < -0.3


def test_a_solid_with_two_fronts_is_told_from_one_seen_from_behind():
    truth = render(build(read("a red sphere beside a blue box")), *cameras([0, 90, 180, 270], 24), 24, 24).rgb
    two_faced = truth[[0, 1, 0, 1]]
    turned = truth.roll(2, 0)
    assert_close(likeness(two_faced, truth), torch.ones(2).double())
    assert_close(facing(two_faced, truth), torch.zeros(2).double())
    assert_close(likeness(turned, truth), torch.zeros(2).double())
    assert_close(facing(turned, truth), -torch.ones(2).double())


def test_rings_that_cannot_be_compared_are_refused():
    ring = noise(4, 3, 8, 8)
    for bad, truth, words in (
        (ring[:3], ring[:3], "even"),
        (ring[:2], ring, "equal"),
        (ring, ring[:1].expand(4, -1, -1, -1), "opposite"),
    ):
        with pytest.raises(UserError, match=words):
            likeness(bad, truth)
