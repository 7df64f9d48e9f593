"""Resizing: the plain interpolations of the degradation pipelines, and MATLAB's antialiased bicubic `imresize`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import check
from fewstep.restoration.degradations.images import check_images

Interpolation = Literal["area", "bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")


def resize(
    images: Float[Tensor, "b c h w"], size: tuple[int, int], interpolation: Interpolation
) -> Float[Tensor, "b c n m"]:
    """Return ``images`` at ``size`` by torch's interpolation without antialiasing (bicubic: a = -0.75, may overshoot).

    The same size gives the images back. UserError for an unknown interpolation or an empty size.
    """
    check_images(images)
    check(interpolation in INTERPOLATIONS, f"interpolation '{interpolation}': valid: {', '.join(INTERPOLATIONS)}")
    check(min(size) >= 1, f"resize: the size must be at least 1x1, got {size}")
    if size == tuple(images.shape[-2:]):
        return images
    if interpolation == "area":
        return F.interpolate(images, size, mode="area")
    return F.interpolate(images, size, mode=interpolation, align_corners=False, antialias=False)


def _cubic(x: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Keys' cubic with a = -0.5, the one that reproduces quadratics."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)  # the same few sizes, sample after sample; kept tensors are plain ones of the CPU
@torch.inference_mode(False)
def cubic_taps(length: int, out: int, scale: float) -> tuple[Float[Tensor, "n p"], Int[Tensor, "n p"]]:
    """Return weights (float64, rows of sum 1) and input positions of each of ``out`` samples of a side of ``length``.

    Below ``scale`` 1 the cubic is stretched by 1 / scale (antialiasing); beyond the edges the side is mirrored with its
    edge pixels repeated (MATLAB's symmetric padding).
    """
    stretch = max(1 / scale, 1.0)
    centre = (torch.arange(out, dtype=torch.float64, device="cpu") + 0.5) / scale - 0.5
    first = torch.floor(centre - 2 * stretch).long()
    taps = first[:, None] + torch.arange(math.ceil(4 * stretch) + 2, device="cpu")
    weights = _cubic((centre[:, None] - taps) / stretch)
    mirrored = taps.remainder(2 * length)
    mirrored = torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    return weights / weights.sum(1, keepdim=True), mirrored


def _along(images: Tensor, axis: int, out: int, scale: float) -> Tensor:
    weights, taps = cubic_taps(images.shape[axis], out, scale)
    weights, taps = weights.to(images), taps.to(images.device)
    shape = [1, 1, 1, 1]
    shape[axis] = out
    result = images.new_zeros(())
    for column in (
        torch.nonzero(weights.any(0)).flatten().tolist()
    ):  # tap by tap: a few images of memory, never out x taps
        result = result + images.index_select(axis, taps[:, column]) * weights[:, column].view(shape)
    return result


def imresize(images: Float[Tensor, "b c h w"], scale: float) -> Float[Tensor, "b c n m"]:
    """Return MATLAB's `imresize(images, scale)`: bicubic, a = -0.5, antialiased, ceil(side * scale) pixels a side.

    Nothing is rounded or clipped. UserError unless ``scale`` is positive and finite.
    """
    check_images(images)
    check(0 < scale < math.inf, f"scale: must be positive, got {scale}")
    for axis in (2, 3):
        # 1e-9: 3 * (1 / 3) must not become 2 by rounding
        images = _along(images, axis, max(math.ceil(images.shape[axis] * scale - 1e-9), 1), scale)
    return images
