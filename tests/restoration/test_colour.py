"""Colour fixes: nothing changes between equal pictures, and each takes over exactly what it says."""

from __future__ import annotations

import pytest
import torch
from kornia.color import rgb_to_lab
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration.colour import FIXES, LEVELS, adain, fix_colour, lab, low_frequencies, unchanged, wavelet


def picture(seed: int, channels: int = 3, height: int = 40, width: int = 37) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand((2, channels, height, width), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FIXES)
@pytest.mark.parametrize("shape", [(3, 40, 37), (1, 40, 37), (3, 1, 1), (3, 1, 9)])
def test_nothing_changes_between_equal_pictures(name, shape):
    x = picture(0, *shape)
    assert_close(fix_colour(x, x, name), x, atol=1e-5 if name == "lab" else 1e-9, rtol=0)


@pytest.mark.parametrize("name", sorted(FIXES.keys() - {"none"}))
def test_a_tint_is_taken_away(name):
    x = picture(0)
    tinted = x * torch.tensor([1.1, 1.0, 0.8], dtype=x.dtype).view(3, 1, 1)
    before, after = ((y - x).mean(dim=(2, 3)).abs().max() for y in (tinted, fix_colour(tinted, x, name)))
    assert after < before / (2 if name == "lab" else 100)


def test_none_changes_nothing():
    assert torch.equal(unchanged(picture(0), picture(1)), picture(0))


def test_wavelet_takes_the_constant_of_the_reference_and_drops_that_of_the_picture():
    x, y = picture(0), picture(1)
    assert_close(wavelet(x + 0.2, y), wavelet(x, y))
    assert_close(wavelet(x, y + 0.2), wavelet(x, y) + 0.2)


def test_wavelet_low_frequencies_are_those_of_the_reference_and_details_those_of_the_picture():
    at = torch.arange(256, dtype=torch.float64)
    slow, fast = torch.cos(2 * torch.pi * at / 256), torch.cos(torch.pi * at)
    x = (0.1 * fast + 0.3 * slow).expand(1, 1, 64, -1)
    y = (0.2 * fast - 0.3 * slow).expand(1, 1, 64, -1)
    inside = slice(2**LEVELS, -(2**LEVELS))
    # the blurs multiply a frequency f by the product of cos(pi f 2^k)^2, at f = 1/2 by zero
    gain = torch.cos(torch.pi / 256 * 2.0 ** torch.arange(LEVELS)).square().prod()
    expected = 0.1 * fast + 0.3 * slow * (1 - gain) - 0.3 * slow * gain
    assert_close(wavelet(x, y)[0, 0, 0, inside], expected[inside])
    assert gain > 0.9


def test_low_frequencies_of_a_point_are_a_kernel_of_weight_one():
    point = torch.zeros(1, 1, 127, 127, dtype=torch.float64)
    point[..., 63, 63] = 1
    kernel = low_frequencies(point)
    assert_close(kernel.sum(), torch.ones((), dtype=torch.float64))
    assert_close(kernel, kernel.flip(2).transpose(2, 3))
    # variances add: half a square of the gap for each level
    variance = (kernel[0, 0].sum(dim=0) * (torch.arange(127) - 63) ** 2).sum()
    assert_close(variance, torch.tensor(sum(4.0**k for k in range(LEVELS)) / 2, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 3])
def test_adain_transfers_mean_and_deviation_exactly(channels):
    x, y = picture(0, channels), picture(1, channels) ** 2
    found, wanted = (torch.std_mean(z, dim=(2, 3)) for z in (adain(x, y), y))
    assert_close(found, wanted)
    assert_close(adain(3 * x + 0.1, y), adain(x, y))


def test_adain_of_a_flat_picture_is_the_mean_of_the_reference():
    y = picture(1)
    found = adain(torch.full_like(y, 0.5), y)
    assert_close(found, y.mean(dim=(2, 3), keepdim=True).expand_as(y))


def test_lab_keeps_the_lightness_and_takes_low_frequencies_of_a_and_b():
    x, y = picture(0), picture(1) * torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64).view(3, 1, 1)
    ours, theirs, found = rgb_to_lab(x), rgb_to_lab(y), rgb_to_lab(lab(x, y))
    assert_close(found[:, :1], ours[:, :1], atol=1e-3, rtol=0)
    assert_close(found[:, 1:], wavelet(ours[:, 1:], theirs[:, 1:]), atol=1e-3, rtol=0)


def test_lab_does_not_clamp():
    x = picture(0) + 0.4
    assert x.max() > 1
    assert_close(lab(x, x), x, atol=1e-5, rtol=0)


def test_lab_leaves_gray_alone():
    assert torch.equal(lab(picture(0, 1), picture(1, 1)), picture(0, 1))


def test_unknown_fixes_and_other_sizes_are_refused():
    with pytest.raises(UserError, match="did you mean 'wavelet'"):
        fix_colour(picture(0), picture(1), "wavelets")
    with pytest.raises(ValueError, match="reference of shape"):
        fix_colour(picture(0), picture(1, 3, 40, 38), "none")
