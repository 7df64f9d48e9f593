"""Metrics of pairs of images: PSNR and SSIM through kornia, one value per image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check


def psnr(image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], *, span: float) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in dB; ``span`` is max minus min of the value range (2 for [-1, 1])."""
    from kornia.metrics import psnr as of_pair

    _check_pair(image, target)
    return torch.stack([of_pair(a, b, span) for a, b in zip(image.float(), target.float(), strict=True)])


def ssim(
    image: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b c h w"],
    *,
    low: float,
    high: float,
    window: int = 11,
) -> Float[Tensor, " b"]:
    """Return the structural similarity (Wang et al. 2004): the mean of kornia's map.

    The Gaussian window has ``window`` pixels; ``low`` and ``high`` are the ends of the value range; the stabilising
    constants are made for [0, 1], and images are brought there first. Raises UserError when the window does not fit
    the image.
    """
    from kornia.metrics import ssim as of_batch

    _check_pair(image, target)
    check(window <= min(image.shape[-2:]), f"an SSIM window of {window} pixels does not fit {tuple(image.shape[-2:])}")
    a, b = ((x.float() - low) / (high - low) for x in (image, target))
    value: Tensor = of_batch(a, b, window, max_val=1.0, padding="valid").flatten(1).mean(1)
    return value


def _check_pair(image: Tensor, target: Tensor) -> None:
    check(image.shape == target.shape, f"images of {tuple(image.shape)} against {tuple(target.shape)}")
