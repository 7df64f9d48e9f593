"""Gradient similarity and spectral energy: closed forms, invariances, and the order in which photos get worse."""

from __future__ import annotations

from math import log10

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import data
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration.degradations import blur, gaussian_kernel, imresize, to_8_bit
from fewstep.restoration.perceptual import (
    CONSTANT,
    ROUNDING,
    gmsd,
    gmsd_protocol,
    spectral_distance,
    spectral_levels,
    spectrum_protocol,
)

BOTH = pytest.mark.parametrize("metric", [gmsd, spectral_distance])


def noise(seed: int, batch: int = 2, channels: int = 3, height: int = 48, width: int = 41) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 246, (batch, channels, height, width), generator=generator).double() / 255


def photo(name: str) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(getattr(data, name)()[:144, :176])).double() / 255
    return pixels.permute(2, 0, 1)[None] if pixels.ndim == 3 else pixels[None, None]


def gray(levels: Tensor) -> Tensor:
    return levels[None, None].double() / 255


def blurred(x: Tensor, sigma: float) -> Tensor:
    return blur(x, gaussian_kernel(15, torch.tensor([sigma], dtype=x.dtype)))


@BOTH
def test_equal_pictures_have_no_distance_and_the_parts_of_a_batch_are_apart(metric):
    x, y = noise(0), noise(1)
    assert_close(metric(x, x), torch.zeros(2, dtype=torch.float64))
    assert metric(x, y).shape == (2,)
    assert metric(x, y).dtype == torch.float64
    assert (metric(x, y) > 0).all()
    assert_close(metric(x, y), metric(y, x))
    assert_close(metric(x, y), torch.cat([metric(x[:1], y[:1]), metric(x[1:], y[1:])]))


@BOTH
def test_a_constant_added_changes_nothing(metric):
    x, y = noise(0), noise(1)
    assert_close(metric(x + 10 / 255, y), metric(x, y), atol=1e-9, rtol=0)


@BOTH
def test_turning_and_mirroring_both_pictures_changes_nothing(metric):
    x, y = noise(0, height=40, width=36), noise(1, height=40, width=36)
    for change in (lambda z: z.flip(3), lambda z: z.flip(2), lambda z: z.transpose(2, 3)):
        assert_close(metric(change(x), change(y)), metric(x, y))


@BOTH
def test_gray_is_measured_as_rgb_and_the_crop_cuts(metric):
    x, y = noise(0, channels=1, height=60, width=60), noise(1, channels=1, height=60, width=60)
    assert_close(metric(x, y), metric(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))
    inside = slice(4, -4)
    assert_close(metric(x, y, crop=4), metric(x[..., inside, inside], y[..., inside, inside]))


def test_gmsd_of_a_parabola_against_flat_in_closed_form():
    """The gradient of j^2 is 4 j, so the similarity there is c / (16 j^2 + c)."""
    j = torch.arange(15)
    parabola = (j**2).repeat_interleave(2).expand(20, -1)
    similarity = CONSTANT / (16 * j[1:-1].double() ** 2 + CONSTANT)
    expected = similarity.std(correction=0)
    for picture in (parabola, parabola.T):
        flat = torch.full_like(picture, 90)
        assert_close(gmsd(gray(picture), gray(flat)), expected[None], atol=1e-9, rtol=0)


def test_gmsd_is_that_of_an_independent_implementation():
    x, y = noise(0, channels=1, height=40, width=40), noise(1, channels=1, height=40, width=40)

    def gradients(picture: Tensor) -> np.ndarray:
        small = (255 * picture[0].numpy()).reshape(20, 2, 20, 2).mean((1, 3))
        parts = [ndimage.prewitt(small, axis=axis)[1:-1, 1:-1] / 3 for axis in (0, 1)]
        return np.hypot(*parts)

    for ours, a, b in zip(gmsd(x, y), map(gradients, x), map(gradients, y), strict=True):
        assert np.isclose(ours.item(), ((2 * a * b + 170) / (a * a + b * b + 170)).std(), atol=1e-9)


def test_a_wave_of_twice_the_contrast_is_6_db_stronger_in_its_octave_only():
    """At 1/12 of a cycle per pixel, in the second octave from the coarse end."""
    at = torch.arange(144, dtype=torch.float64)
    wave = (40 * torch.sin(2 * torch.pi * at / 12)).round().expand(144, -1)
    levels = spectral_levels(gray(127 + 2 * wave), gray(127 + wave))[0]
    assert_close(levels[1], torch.tensor(20 * log10(2), dtype=torch.float64), atol=0.01, rtol=0)
    assert (levels[[0, 2, 3]] < 3).all()  # what the window and rounding leak is near the floor


def test_white_noise_on_flat_gray_has_its_variance_in_every_octave():
    generator = torch.Generator().manual_seed(0)
    steps = 127 + 10 * torch.randn(512, 512, generator=generator, dtype=torch.float64)
    flat = torch.full((512, 512), 127)
    expected = 10 * log10((100 + 2 * ROUNDING) / ROUNDING)
    levels = spectral_levels(gray(steps), gray(flat))[0]
    assert_close(levels, torch.full_like(levels, expected), atol=0.5, rtol=0)
    assert_close(levels[2:], torch.full_like(levels[2:], expected), atol=0.05, rtol=0)


def test_twice_the_contrast_is_6_db_in_every_octave():
    half = (noise(0) * 255 // 2) / 255
    levels = spectral_levels(2 * half, half)
    assert_close(levels, torch.full_like(levels, 20 * log10(2)), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "camera"])
def test_photos_get_worse_in_the_right_order(name):
    x = photo(name)
    bicubic = to_8_bit(imresize(to_8_bit(imresize(x, 1 / 4)), 4))
    double = to_8_bit(imresize(to_8_bit(imresize(x, 1 / 2)), 2))
    for metric in (gmsd, spectral_distance):
        zero, two, four = (metric(y, x).item() for y in (x, double, bicubic))
        assert zero < two < four
        blurs = [metric(blurred(x, sigma), x).item() for sigma in (0.5, 1.0, 2.0)]
        assert blurs == sorted(blurs)
        generator = torch.Generator().manual_seed(0)
        grain = torch.randn(x.shape, generator=generator, dtype=torch.float64) / 255
        noises = [metric(x + sigma * grain, x).item() for sigma in (0, 4, 8, 16)]
        assert noises == sorted(noises)
        assert noises[1] > 0


def test_levels_tell_blur_from_noise():
    x = photo("astronaut")
    assert (spectral_levels(blurred(x, 2.0), x)[0, 1:] < -0.5).all()
    generator = torch.Generator().manual_seed(0)
    grain = torch.randn(x.shape, generator=generator, dtype=torch.float64) / 255
    assert spectral_levels(x + 16 * grain, x)[0, -1] > 3


def test_protocols_tell_the_crop():
    for protocol in (gmsd_protocol, spectrum_protocol):
        assert "no border cut" in protocol(0)
        assert "4 pixels cut" in protocol(4)


@pytest.mark.parametrize(("metric", "least"), [(gmsd, 6), (spectral_distance, 32)])
def test_pictures_too_small_or_unlike_are_refused(metric, least):
    x = noise(0, height=least, width=50)
    assert metric(x, x).tolist() == [0, 0]
    with pytest.raises(UserError, match=f"at least {least} pixels"):
        metric(x[:, :, 1:], x[:, :, 1:])
    with pytest.raises(UserError, match=f"at least {least} pixels"):
        metric(x, x, crop=1)
    with pytest.raises(UserError, match="cannot be compared"):
        metric(x, x[..., 1:])
    with pytest.raises(UserError, match="crop"):
        metric(x, x, crop=-1)
