"""PSNR and SSIM on luma, as tables of super-resolution state them, with the protocol in words."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check

PEAK = 255.0
WEIGHTS = (65.481, 128.553, 24.966)  # ITU-R BT.601, as MATLAB's rgb2ycbcr
BLACK = 16.0
WINDOW = 11  # pixels of the Gaussian of 1.5, which kornia fixes


def protocol(crop: int) -> str:
    """Return in one sentence how :func:`psnr_y` and :func:`ssim_y` measure."""
    return (
        f"Y of BT.601 in [16, 235] (MATLAB rgb2ycbcr, not rounded) of pictures rounded to 8 bits, {border(crop)}; "
        f"PSNR with peak 255; SSIM with an {WINDOW}x{WINDOW} Gaussian of 1.5, K 0.01 and 0.03, range 255, "
        "valid positions only"
    )


def border(crop: int) -> str:
    """Return in words what is cut from pictures before they are measured."""
    return f"{crop} pixels cut from every border" if crop else "no border cut"


def luma(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return Y in [16, 235], float64, of pictures in [0, 1] rounded to 8 bits, gray or RGB."""
    rgb = (x.double().clamp(0, 1) * PEAK).round().expand(-1, 3, -1, -1) / PEAK
    return BLACK + (rgb * rgb.new_tensor(WEIGHTS).view(3, 1, 1)).sum(dim=1, keepdim=True)


def psnr_y(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0) -> Float[Tensor, "b"]:
    """Return the peak signal-to-noise ratio of each picture in dB, infinite for equal ones.

    Raises UserError for pictures of different shapes or with nothing left after ``crop``.
    """
    ours, theirs = luma_pair(x, reference, crop, least=1)
    error = (ours - theirs).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error)


def ssim_y(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0) -> Float[Tensor, "b"]:
    """Return the structural similarity of each picture (Wang et al. 2004), 1 for equal ones.

    Raises UserError for pictures of different shapes or smaller than the window after ``crop``.
    """
    from kornia.metrics import ssim

    ours, theirs = luma_pair(x, reference, crop, least=WINDOW)
    values: Tensor = ssim(ours, theirs, WINDOW, max_val=PEAK, eps=0.0, padding="valid")
    return values.mean(dim=(1, 2, 3))


def luma_pair(x: Tensor, reference: Tensor, crop: int, least: int) -> tuple[Tensor, Tensor]:
    """Return the lumas of both pictures without ``crop`` pixels at every border.

    Raises UserError for pictures of different shapes, or with fewer than ``least`` pixels a side left.
    """
    shapes = f"pictures of {tuple(x.shape)} and {tuple(reference.shape)} (batch, channels, height, width)"
    check(x.shape == reference.shape and x.shape[1] in (1, 3), f"{shapes} cannot be compared: give equal sizes")
    check(crop >= 0, f"crop: must be at least 0, got {crop}")
    small = min(x.shape[2:]) - 2 * crop
    check(small >= least, f"{shapes} without {crop} pixels at each border: at least {least} pixels must be left")
    inside = slice(crop, -crop or None)
    ours, theirs = luma(x[..., inside, inside]), luma(reference[..., inside, inside])
    return ours, theirs
