"""From a good picture to a bad one: the pipelines of the presets.

Sizes on the way differ from sample to sample, so a pipeline takes the samples of a batch one after the other: a
sample's result depends on its own picture and on (seed, step, sample) alone, bit for bit, however batches are cut.
The stages (blur, resize, noise, jpeg) work on whole batches with one parameter per sample.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.restoration.degradations.config import (
    BicubicConfig,
    DegradationConfig,
    FaceConfig,
    NoiseConfig,
    StageConfig,
    TwoStageConfig,
)
from fewstep.restoration.degradations.draws import chance, choice, draw, draw_final_kernels, draw_kernels, each
from fewstep.restoration.degradations.images import check_images, to_8_bit
from fewstep.restoration.degradations.jitter import jitter, luma
from fewstep.restoration.degradations.jpeg import jpeg
from fewstep.restoration.degradations.kernels import blur, gaussian_kernel
from fewstep.restoration.degradations.noise import gaussian_noise, poisson_noise
from fewstep.restoration.degradations.resize import INTERPOLATIONS, imresize, resize

Image = Float[Tensor, "1 c h w"]
Size = tuple[int, int]


def _size(image: Tensor) -> Size:
    return int(image.shape[-2]), int(image.shape[-1])


def _scaled(size: Size, factor: float) -> Size:
    return max(int(size[0] * factor), 1), max(int(size[1] * factor), 1)


def _resize_randomly(image: Image, size: Size, rng: Rng) -> Image:
    return resize(image, size, INTERPOLATIONS[int(rng.integers("interpolation", len(INTERPOLATIONS))[0])])


def add_noise(images: Float[Tensor, "b c h w"], config: NoiseConfig, rng: Rng) -> Float[Tensor, "b c h w"]:
    """Return the images with Gaussian or Poisson noise, drawn for each sample, clipped to [0, 1]."""
    gray = chance(rng, "gray", config.gray)
    gaussian = chance(rng, "is gaussian", config.gaussian)  # not the stream of the noise itself
    noisy = []
    for index, one in enumerate(each(rng)):
        image, is_gray = images[index : index + 1], gray[index : index + 1]
        if bool(gaussian[index]):
            noisy.append(gaussian_noise(image, draw(one, "sigma", config.sigma) / 255, one, is_gray))
        else:
            noisy.append(poisson_noise(image, draw(one, "scale", config.poisson_scale), one, is_gray))
    return torch.cat(noisy).clamp(0, 1)


def run_stage(image: Image, config: StageConfig, rng: Rng, base: Size) -> Image:
    """Blur, resize to ``base`` times the factor drawn, add noise; one image, clipped to [0, 1]."""
    if bool(chance(rng, "blur", config.blur)):
        image = blur(image, draw_kernels(config.kernel, rng.fork("kernel")))
    direction = choice(rng, "direction", config.resize_mix)[0]
    low, high = config.resize
    bounds = ((1.0, high), (low, 1.0), (1.0, 1.0))[direction]
    image = _resize_randomly(image, _scaled(base, float(draw(rng, "factor", bounds))), rng)
    return add_noise(image, config.noise, rng.fork("noise"))


def _two_stage(image: Image, config: TwoStageConfig, rng: Rng, target: Size) -> Image:
    first, second, final = rng.fork("first"), rng.fork("second"), rng.fork("final")
    image = run_stage(image, config.first, first, _size(image))
    image = jpeg(image, draw(first, "jpeg", config.first_jpeg))
    if bool(chance(second, "used", config.second_probability)):
        image = run_stage(image, config.second, second, target)
    kernel = draw_final_kernels(config.final_sizes, config.final_sinc, final)
    quality = draw(final, "jpeg", config.final_jpeg)
    if bool(chance(final, "order", 0.5)):
        image = blur(_resize_randomly(image, target, final), kernel)
        return jpeg(image.clamp(0, 1), quality)
    image = jpeg(image, quality)
    return blur(_resize_randomly(image, target, final), kernel)


def _face(image: Image, config: FaceConfig, rng: Rng, target: Size) -> Image:
    anisotropic = bool(chance(rng, "anisotropic", config.anisotropic))
    sigma_y = draw(rng, "sigma y", config.sigma) if anisotropic else None
    angle = draw(rng, "angle", (-torch.pi, torch.pi)) if anisotropic else None
    kernel = gaussian_kernel(config.kernel_size, draw(rng, "sigma x", config.sigma), sigma_y, angle)
    size = _scaled(_size(image), 1 / float(draw(rng, "downscale", config.downscale)))
    image = resize(blur(image, kernel), size, "bilinear")
    image = gaussian_noise(image, draw(rng, "noise", config.noise) / 255, rng).clamp(0, 1)
    image = resize(jpeg(image, draw(rng, "jpeg", config.jpeg)), target, "bilinear")
    image = jitter(image, config.jitter, rng.fork("jitter"))
    return luma(image).expand_as(image) if bool(chance(rng, "gray", config.gray)) else image


def _degrade_one(image: Image, config: DegradationConfig, rng: Rng, scale: int) -> Image:
    size = _size(image)
    target = (size[0] // scale, size[1] // scale)
    if isinstance(config, BicubicConfig):
        small = imresize(image, 1 / scale)
        return to_8_bit(small) if config.round else small
    if isinstance(config, FaceConfig):
        return to_8_bit(_face(image, config, rng, size if config.back_to_size else target))
    image = to_8_bit(_two_stage(image, config, rng, target))
    return resize(image, size, "bicubic").clamp(0, 1) if config.back_to_size else image


@torch.no_grad()
def degrade(
    images: Float[Tensor, "b c h w"], config: DegradationConfig, rng: Rng, scale: int
) -> Float[Tensor, "b c n m"]:
    """Return the degraded ``images`` (RGB, in [0, 1]) at 1/scale of their size, or at their size: ``back_to_size``.

    Sample i is a function of image i and of (seed, step, id) of ``rng`` alone. UserError for sides that are no
    multiples of ``scale`` (see :func:`mod_crop`), another number of channels, a ``rng`` of another batch.
    """
    check_images(images, colour=True)
    check(scale >= 1, f"scale: must be at least 1, got {scale}")
    height, width = _size(images)
    fits = height % scale == 0 and width % scale == 0
    check(fits, f"degradation: {height}x{width} is not a multiple of the scale {scale}; crop it first")
    batch = images.shape[0]
    check(len(rng.ids) == batch, f"degradation: {batch} images, but random numbers for {len(rng.ids)} samples")
    samples = each(rng.fork("degradation"))
    return torch.cat([_degrade_one(images[i : i + 1], config, one, scale) for i, one in enumerate(samples)])
