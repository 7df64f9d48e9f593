"""Sharpening, colour jitter and JPEG with gradients: what they leave alone, what they change, and by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import JitterConfig, adjust, degrade, jitter, jpeg, preset, sharpen
from fewstep.restoration.degradations.jitter import luma
from fewstep.restoration.degradations.jpeg import soft_round


def pictures(batch: int = 2, height: int = 24, width: int = 20) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3)).double()


# sharpening


def test_sharpening_leaves_faint_detail_alone():
    faint = 0.5 + (pictures() - 0.5) / 10  # nowhere 10 of 255 off its mean
    assert torch.equal(sharpen(faint), faint)
    assert torch.equal(sharpen(pictures(), 0.0), pictures())


def test_sharpening_a_dot_adds_half_of_what_the_blur_takes():
    image = torch.full((1, 3, 101, 101), 0.25, dtype=torch.float64)
    image[..., 50, 50] = 0.75
    x = torch.arange(-25, 26, dtype=torch.float64)
    g = torch.exp(-(x**2) / 128)
    middle = float((g / g.sum())[25]) ** 2  # of the Gaussian of deviation 8
    detail = 0.5 * (1 - middle)
    out = sharpen(image)
    assert_close(float(out[0, 0, 50, 50]), 0.75 + middle * 0.5 * detail)  # the mask is one pixel, smoothed
    assert_close(out, out.flip(-1))
    assert_close(out, out.transpose(-1, -2))
    assert torch.equal(out[..., :20, :20], image[..., :20, :20])


def test_sharpening_makes_edges_steeper_and_stays_in_range():
    step = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    step[..., 32:] = 0.6
    out = sharpen(step + 0.2)
    assert out[0, 0, 30, 31] < 0.2 - 1e-3
    assert out[0, 0, 30, 32] > 0.8 + 1e-3
    assert_close(out + out.flip(-1), torch.ones_like(out))
    black_and_white = sharpen(step / 0.6)
    assert black_and_white.min() >= 0
    assert black_and_white.max() <= 1
    for size in ((1, 1), (3, 70)):
        assert sharpen(pictures(1, *size)).shape[-2:] == size


# colours


@pytest.mark.parametrize(("kind", "neutral"), [("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)])
def test_the_neutral_amount_changes_nothing(kind, neutral):
    assert_close(adjust(pictures(), kind, float(neutral)), pictures())


def test_what_each_adjustment_keeps():
    x = pictures() / 2
    assert_close(adjust(x, "brightness", 1.2), 1.2 * x)
    assert_close(adjust(x, "saturation", 0.0), luma(x).expand_as(x))
    assert_close(luma(adjust(x, "saturation", 0.5)), luma(x))
    flat = adjust(x, "contrast", 0.0)
    assert_close(flat, luma(x).mean((-2, -1), keepdim=True).expand_as(x))
    assert_close(adjust(x, "contrast", 0.5).mean((1, 2, 3)) * 2, x.mean((1, 2, 3)) + flat.mean((1, 2, 3)))
    gray = luma(x).expand_as(x)
    assert_close(adjust(gray, "hue", 0.3), gray, atol=1e-5, rtol=0)
    assert_close(adjust(adjust(x, "hue", 0.2), "hue", -0.2), x, atol=1e-4, rtol=0)
    red, green = (torch.eye(3, dtype=torch.float64)[i].view(1, 3, 1, 1) for i in (0, 1))
    assert_close(adjust(red, "hue", 1 / 3), green, atol=1e-4, rtol=0)


def test_without_probability_nothing_happens_and_with_it_each_sample_its_own():
    image = pictures(1)
    assert torch.equal(jitter(image, JitterConfig(), Rng(0, 0, (0,))), image)
    shifting = JitterConfig(shift_probability=1)
    for step in range(20):
        moved = jitter(image, shifting, Rng(0, step, (0,))) - image
        assert_close(moved, moved[..., :1, :1].expand_as(moved))  # one number a channel
        assert moved.abs().max() <= 20 / 255
    both = JitterConfig(shift_probability=1, adjust_probability=1)
    made = [jitter(image, both, Rng(0, step, (0,))) for step in range(10)]
    assert len({x.numpy().tobytes() for x in made}) == 10
    assert all(x.min() >= 0 and x.max() <= 1 for x in made)


def test_jitter_comes_after_everything_else_of_a_face():
    images, plain, colourful = pictures(4, 32, 32).float(), preset("gfpgan"), preset("gfpgan-colour")
    assert replace(colourful, jitter=JitterConfig()) == plain
    made = [torch.cat([degrade(images, c, Rng.for_batch(0, s, 4), 4) for s in range(10)]) for c in (plain, colourful)]
    same = [torch.equal(a, b) for a, b in zip(*made, strict=True)]
    assert 8 <= sum(same) <= 32  # of 40, half expected: 0.7 of 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JitterConfig(shift_probability=1.5), "jitter.shift_probability"),
        (lambda: JitterConfig(adjust_probability=-1.0), "jitter.adjust_probability"),
        (lambda: JitterConfig(shift=300.0), "jitter.shift"),
        (lambda: JitterConfig(contrast=(2.0, 1.0)), "jitter.contrast"),
        (lambda: JitterConfig(hue=(-1.0, 0.0)), "jitter.hue"),
        (lambda: sharpen(pictures(), -1.0), "must not be negative"),
        (lambda: sharpen(pictures()[0]), "must have the shape"),
        (lambda: jitter(pictures()[:, :1], JitterConfig(), Rng(0, 0, (0, 1))), "3 channels"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# JPEG with gradients


def test_soft_rounding_is_near_and_exact_at_whole_numbers():
    x = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    assert (soft_round(x) - x.round()).abs().max() <= 0.125 + 1e-12
    whole = torch.arange(-5.0, 6.0)
    assert torch.equal(soft_round(whole), whole)
    inside = (torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6).requires_grad_()
    assert torch.autograd.gradcheck(soft_round, (inside,))


def test_soft_jpeg_carries_gradients_and_stays_near_the_hard_one():
    images, quality = pictures().requires_grad_(), torch.tensor([40.0, 90.0])
    (hard_gradient,) = torch.autograd.grad(jpeg(images, quality).sum(), images)
    assert hard_gradient.abs().max() == 0
    soft = jpeg(images, quality, soft=True)
    (gradient,) = torch.autograd.grad((soft**2).sum(), images)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().sum(1).min() > 0
    hard, error = jpeg(images, quality), (soft - images).detach()
    assert not torch.equal(soft, hard)
    assert (soft - hard).std() < 0.6 * error.std()
    best = torch.tensor([100.0, 100.0])
    assert (jpeg(images, best, soft=True) - jpeg(images, best)).abs().max() < 0.02
