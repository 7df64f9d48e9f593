"""Unsharp masking: what Real-ESRGAN does to the good pictures it trains on (arXiv 2107.10833, section 3.4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.restoration.degradations.images import check_images
from fewstep.restoration.degradations.kernels import reflected

SIZE, SIGMA = 51, 8.0  # of the Gaussian, pixels: OpenCV's 0.3 ((51 - 1) / 2 - 1) + 0.8
THRESHOLD = 10 / 255


def _smooth(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Gaussian blur along one axis after the other, edges reflected."""
    offsets = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    weights = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).to(images)
    for axis in (2, 3):
        padded = images.index_select(axis, reflected(images.shape[axis], SIZE // 2, images.device))
        images = torch.tensordot(padded.unfold(axis, SIZE, 1), weights, dims=1)
    return images


def sharpen(images: Float[Tensor, "b c h w"], weight: float = 0.5) -> Float[Tensor, "b c h w"]:
    """Return ``images`` plus ``weight`` times what a Gaussian takes away, in [0, 1], where that is more than 10 of 255.

    The edge of those places is smoothed by the same Gaussian. UserError for a negative weight.
    """
    check_images(images)
    check(weight >= 0, f"sharpen: the weight must not be negative, got {weight}")
    detail = images - _smooth(images)
    mask = _smooth((detail.abs() > THRESHOLD).to(images))
    return images + mask * ((images + weight * detail).clamp(0, 1) - images)
