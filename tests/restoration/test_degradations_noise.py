"""Noise has the moments it claims; JPEG does to pictures what a JPEG file does."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import gaussian_noise, jpeg, poisson_noise
from fewstep.restoration.degradations.jpeg import quality_factor, tables

LEVEL = 1 / 255


def rng(batch: int) -> Rng:
    return Rng.for_batch(5, 2, batch)


def test_gaussian_noise_has_its_deviation_per_sample():
    images = torch.full((2, 3, 128, 128), 0.5)
    sigma = torch.tensor([5 / 255, 30 / 255])
    noise = gaussian_noise(images, sigma, rng(2), torch.tensor([False, True])) - images
    assert_close(noise.std((1, 2, 3)), sigma, rtol=0.02, atol=0)
    assert (noise.mean((1, 2, 3)).abs() < 0.02 * sigma).all()
    assert_close(noise[1], noise[1, :1].expand(3, -1, -1))  # gray
    colour = np.corrcoef(noise[0].flatten(1).numpy())
    assert np.abs(colour - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(noise[0, 0].ravel(), noise[1, 0].ravel())[0, 1]) < 0.03  # no field shared by the batch


def bands(*values: int) -> torch.Tensor:
    """Flat bands of 8-bit values, of which three or four make Poisson's n 4."""
    return torch.tensor(values).repeat_interleave(64).div(255).view(1, 1, -1, 1).expand(1, 3, -1, 128)


@pytest.mark.parametrize("values", [(20, 100, 200), (20, 100, 200, 240)])
def test_poisson_noise_has_mean_0_and_variance_scale_squared_x_over_n(values):
    images, scale = bands(*values), torch.tensor([1.7])
    noise = (poisson_noise(images, scale, rng(1)) - images).view(3, len(values), 64 * 128)
    x = images[0, 0, ::64, 0]
    assert_close(noise.transpose(0, 1).flatten(1).var(1), 1.7**2 * x / 4, rtol=0.05, atol=0)
    assert noise.mean((0, 2)).abs().max() < 0.02
    assert np.abs(np.corrcoef(noise[:, 2].numpy()) - np.eye(3)).max() < 0.05


def test_gray_poisson_noise_is_the_lumas_own():
    images = bands(20, 100, 200) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    noise = poisson_noise(images, torch.ones(1), rng(1), torch.tensor([True])) - images
    assert_close(noise, noise[:, :1].expand(-1, 3, -1, -1))
    luma = (0.299 + 0.587 * 0.5 + 0.114 * 0.25) * torch.tensor([20, 100, 200]) / 255
    assert_close(noise[0, 0].view(3, -1).var(1), luma / 4, rtol=0.05, atol=0)


def test_no_strength_is_no_noise():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert_close(gaussian_noise(images, torch.zeros(2), rng(2)), images)
    assert_close(poisson_noise(images, torch.zeros(2), rng(2)), images)


def picture(height: int, width: int) -> torch.Tensor:
    """A gray picture of soft waves with one edge, rounded to 8 bit."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    plane = 0.5 + 0.2 * torch.sin(x / 5) * torch.cos(y / 7) + 0.2 * (x > 2 * y)
    return (plane * 255).round().div(255).expand(1, 3, height, width)


def q(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pillow(image: torch.Tensor, quality: int) -> torch.Tensor:
    """The picture (8-bit levels) a JPEG file of it gives back."""
    file = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=2)
    return torch.from_numpy(np.asarray(Image.open(file)).copy()).double().permute(2, 0, 1)[None]


@pytest.mark.parametrize("quality", [10, 50, 75, 100])
def test_tables_are_those_pillow_writes(quality):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg", quality=quality)
    written = Image.open(file).quantization
    for index, table in enumerate(tables(q(quality))):
        assert table.flatten().tolist() == list(written[index])


@pytest.mark.parametrize("quality", [10, 30, 60, 95, 100])
@pytest.mark.parametrize("tint", [(0, 0, 0), (20, -10, 30)])
def test_jpeg_is_what_pillow_writes_and_reads(quality, tint):
    # chroma constant, nothing to interpolate; no tint leaves 8 bit
    image = (picture(48, 64) * 204).round() / 255 + torch.tensor(tint).view(1, 3, 1, 1) / 255
    apart = ((jpeg(image, q(quality)) * 255).round() - pillow(image, quality)).abs()
    # a coefficient half-way between two steps may go either way; a file rounds Y, Cb and Cr to 8 bit first, too
    near, mean = (0.8, 0.85) if any(tint) else (0.95, 0.25)
    assert (apart <= 1).double().mean() > near
    assert apart.mean() < mean


@pytest.mark.parametrize("quality", [10, 30, 80])
def test_jpegs_chroma_is_pillows_over_blocks_of_4_pixels(quality):
    y, x = torch.meshgrid(torch.arange(48).double(), torch.arange(64).double(), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin(x / a + y / b) for a, b in ((9, 13), (17, 11), (12, 23))]
    image = (torch.stack(waves) * 255).round().div(255)[None]
    apart = jpeg(image, q(quality)) * 255 - pillow(image, quality)  # libjpeg interpolates chroma between the blocks
    assert F.avg_pool2d(apart, 2).abs().mean() < 1.25
    assert F.avg_pool2d(apart, 2).abs().mean() < 0.5 * apart.abs().mean()


def test_jpeg_leaves_the_middle_gray_alone_and_100_nearly_everything():
    gray = torch.full((3, 3, 20, 37), 128 / 255, dtype=torch.float64)
    assert_close(jpeg(gray, q(5, 50, 95)), gray)
    other = torch.full((1, 3, 16, 16), 127.5 / 255, dtype=torch.float64)
    assert (jpeg(other, q(50)) - other).abs().max() > 0.4 * LEVEL
    noisy = torch.rand(1, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = noisy.mul(0.8).add(0.1).expand(1, 3, 32, 32)
    error = jpeg(noisy, q(100)) - noisy  # every coefficient rounded to whole numbers: deviation 1 / sqrt(12)
    assert float(error.pow(2).mean().sqrt() / LEVEL) == pytest.approx(math.sqrt(1 / 12), rel=0.05)


def test_jpegs_error_and_blocks_grow_as_quality_falls():
    image = picture(64, 64)
    qualities = (95.0, 60.0, 30.0, 10.0)
    out = jpeg(image.expand(4, -1, -1, -1), q(*qualities))
    errors = (out - image).pow(2).mean((1, 2, 3)).tolist()
    assert errors == sorted(errors)
    jump = (out - image).diff(dim=-1).abs().mean((1, 2))
    seam = torch.arange(63) % 8 == 7
    blocks = (jump[:, seam].mean(1) - jump[:, ~seam].mean(1)).tolist()
    assert blocks == sorted(blocks)
    assert blocks[-1] > 4 * max(blocks[0], 1e-4)
    for index, quality in enumerate(qualities):  # a batch is its samples
        assert_close(jpeg(image, q(quality))[0], out[index])


def test_jpeg_keeps_any_size_and_the_range():
    for size in ((1, 1), (5, 31), (16, 17)):
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)).round()
        out = jpeg(image, torch.tensor([20.0]))
        assert out.shape == image.shape
        assert out.min() >= 0
        assert out.max() <= 1
        assert out.dtype == image.dtype
    assert_close(quality_factor(q(30, 50, 95)), q(5 / 3, 1, 0.1))


IMAGES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian_noise(IMAGES, torch.tensor([0.1, -0.1]), rng(2)), "sigma: must not be negative"),
        (lambda: gaussian_noise(IMAGES, torch.tensor([0.1]), rng(2)), "one value per image"),
        (lambda: gaussian_noise(IMAGES, torch.zeros(2), rng(3)), "random numbers for 3 samples"),
        (lambda: poisson_noise(IMAGES, torch.tensor([0.1, float("nan")]), rng(2)), "scale: must not be negative"),
        (lambda: poisson_noise(IMAGES[:, :1], torch.ones(2), rng(2), torch.ones(2).bool()), "needs 3 channels"),
        (lambda: jpeg(IMAGES, torch.tensor([0.0, 50.0])), "quality: must be in 1..100"),
        (lambda: jpeg(IMAGES, torch.tensor([50.0, 101.0])), "quality: must be in 1..100"),
        (lambda: jpeg(IMAGES, torch.tensor([50.0])), "one per image"),
        (lambda: jpeg(IMAGES[:, :1], torch.tensor([50.0, 50.0])), "must have 3 channels"),
    ],
)
def test_bad_strengths_are_refused(call, match):
    with pytest.raises(UserError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
