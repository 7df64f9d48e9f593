"""PSNR and SSIM on luma against closed forms and scikit-image."""

from __future__ import annotations

from math import inf, log10

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.restoration.metrics import luma, protocol, psnr_y, ssim_y


def picture(seed: int, channels: int = 3, height: int = 30, width: int = 27) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 246, (2, channels, height, width), generator=generator).double() / 255


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_white_is_235_black_is_16_and_gray_is_as_rgb():
    ends = luma(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert_close(ends.flatten(), double(16, 235))
    gray = picture(0, 1)
    assert_close(luma(gray), luma(gray.expand(-1, 3, -1, -1)))


def test_luma_of_the_primaries_is_that_of_bt601():
    found = luma(torch.eye(3).view(1, 3, 1, 3))
    assert_close(found.flatten(), double(81.481, 144.553, 40.966))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("offset", [1, 10])
def test_psnr_of_a_constant_offset_in_closed_form(channels, offset):
    """Luma shrinks an offset by 219/255, which is 1.321921 dB."""
    x = picture(0, channels)
    expected = 20 * log10(255 / offset) + 1.321921
    assert_close(psnr_y(x, x + offset / 255), double(expected, expected), atol=1e-6, rtol=0)


def test_psnr_of_ten_steps_by_number():
    x = picture(0)
    assert_close(psnr_y(x, x + 10 / 255)[0].item(), 29.4527, atol=5e-5, rtol=0)


def test_equal_pictures_are_infinitely_good_and_entirely_similar():
    for x in (picture(0), torch.zeros(1, 3, 20, 20)):
        assert psnr_y(x, x).tolist() == [inf] * len(x)
        assert_close(ssim_y(x, x), torch.ones(len(x), dtype=torch.float64), atol=1e-9, rtol=0)


def test_both_are_symmetric_and_go_picture_by_picture():
    x, y = picture(0), picture(1)
    for metric in (psnr_y, ssim_y):
        assert_close(metric(x, y), metric(y, x))
        assert_close(metric(x, y), torch.cat([metric(x[:1], y[:1]), metric(x[1:], y[1:])]))


def test_ssim_of_constants_in_closed_form():
    x, y = (torch.full((1, 1, 16, 16), value / 255) for value in (100, 120))
    a, b, c = 16 + 219 * 100 / 255, 16 + 219 * 120 / 255, 2.55**2
    assert_close(ssim_y(x, y), double((2 * a * b + c) / (a * a + b * b + c)), atol=1e-9, rtol=0)


def test_ssim_is_that_of_scikit_image():
    x = picture(0)
    y = (x + 0.2 * picture(1)).clamp(0, 1)
    for ours, a, b in zip(ssim_y(x, y), luma(x), luma(y), strict=True):
        theirs = structural_similarity(
            a[0].numpy(), b[0].numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert np.isclose(ours.item(), theirs, atol=1e-9)


def test_pictures_are_rounded_to_8_bits_and_clamped():
    x = picture(0)
    assert psnr_y(x, x + 0.4 / 255).tolist() == [inf, inf]
    assert psnr_y(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 1.7)).tolist() == [inf]


def test_what_the_crop_cuts_does_not_count():
    x = picture(0)
    y = x.clone()
    y[:, :, :4], y[:, :, -4:], y[..., :4], y[..., -4:] = 0, 0, 1, 1
    assert psnr_y(x, y, crop=4).tolist() == [inf, inf]
    assert_close(ssim_y(x, y, crop=4), double(1, 1))
    assert (psnr_y(x, y, crop=3) < 60).all()
    assert_close(psnr_y(x, y, crop=3), psnr_y(x[..., 3:-3, 3:-3], y[..., 3:-3, 3:-3]))


def test_the_protocol_tells_the_crop():
    assert "no border cut" in protocol(0)
    assert "4 pixels cut" in protocol(4)


def test_pictures_that_cannot_be_compared_are_refused():
    x = picture(0)
    with pytest.raises(UserError, match="cannot be compared"):
        psnr_y(x, x[..., 1:])
    with pytest.raises(UserError, match="at least 11 pixels"):
        ssim_y(x, x, crop=9)
    with pytest.raises(UserError, match="at least 1 pixels"):
        psnr_y(x, x, crop=14)
    with pytest.raises(UserError, match="crop"):
        psnr_y(x, x, crop=-1)
