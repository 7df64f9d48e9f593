"""Colours of a restored picture drawn back to those of its low-quality input.

A fix takes the restored picture and a reference of the same shape, the input resized, both "b c h w" in [0, 1] with
one or three channels, and is applied to whole pictures, never to tiles. Results are not clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import check, nearest

LEVELS = 5
REACH = 2**LEVELS - 1  # pixels beyond which wavelet and lab do not look
FLAT = 1e-6  # the least standard deviation that is stretched


def fix_colour(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], name: str) -> Float[Tensor, "b c h w"]:
    """Return ``x`` with the colours of ``reference`` by the fix of that name; UserError for unknown names."""
    check(name in FIXES, f"colour fix '{name}' is not known, {nearest(name, FIXES)}")
    if x.shape != reference.shape:
        raise ValueError(f"a picture of shape {tuple(x.shape)} and a reference of shape {tuple(reference.shape)}")
    return FIXES[name](x, reference)


def unchanged(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return ``x``."""
    del reference
    return x


def wavelet(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return the details of ``x`` on the low frequencies of ``reference`` (StableSR, arXiv 2305.07015)."""
    return x + low_frequencies(reference - x)  # blurring is linear


def adain(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return ``x`` with mean and deviation of every channel of ``reference`` (adaptive instance normalisation)."""
    deviation, mean = torch.std_mean(x, dim=(2, 3), correction=0, keepdim=True)
    wanted_deviation, wanted_mean = torch.std_mean(reference, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (wanted_deviation / deviation.clamp_min(FLAT)) + wanted_mean


def lab(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return ``x`` with its lightness, and :func:`wavelet` of its a and b in CIE Lab; gray pictures stay as they are.

    Where the new colour lies in the gamut of sRGB the lightness of ``x`` is kept exactly.
    """
    from kornia.color import lab_to_rgb, rgb_to_lab

    if x.shape[1] == 1:
        return x
    ours, theirs = rgb_to_lab(x), rgb_to_lab(reference)
    mixed = torch.cat([ours[:, :1], wavelet(ours[:, 1:], theirs[:, 1:])], dim=1)
    rgb: Tensor = lab_to_rgb(mixed, clip=False)
    return rgb


def low_frequencies(x: Float[Tensor, "b c h w"], levels: int = LEVELS) -> Float[Tensor, "b c h w"]:
    """Return ``x`` blurred ``levels`` times by [1 2 1]/4 along both axes, at spacings of 1, 2, 4, ... pixels.

    Borders are continued by their last pixel.
    """
    for level in range(levels):
        gap = 2**level
        padded = functional.pad(x, (gap, gap, gap, gap), mode="replicate")
        height, width = x.shape[2:]
        left, middle, right = (padded[..., i * gap : i * gap + width] for i in range(3))
        # in place: on large pictures new memory costs more than the sums
        across = (left + right).mul_(0.25).add_(middle, alpha=0.5)
        above, middle, below = (across[:, :, i * gap : i * gap + height] for i in range(3))
        x = (above + below).mul_(0.25).add_(middle, alpha=0.5)
    return x


FIXES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": wavelet,
    "adain": adain,
    "lab": lab,
    "none": unchanged,
}
