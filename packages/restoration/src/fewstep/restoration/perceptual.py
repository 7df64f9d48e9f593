"""Perceptual distances that need no weights: of gradients, and of how much detail there is at each scale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fewstep.restoration.metrics import BLACK, PEAK, border, luma_pair

WHITE = 235.0  # of the luma of metrics
CONSTANT = 170.0  # c of arXiv 1308.3052, for gray levels of 0 to 255
POOL, PREWITT = 2, 3
LEAST_GMSD = POOL * PREWITT  # pixels a side: one gradient
OCTAVES = 4
LEAST_SPECTRUM = 2 ** (OCTAVES + 1)  # pixels a side: the lowest octave has a frequency on both axes
ROUNDING = 1 / 12  # variance of rounding to whole gray levels: the least noise a picture of 8 bits can have


def gmsd_protocol(crop: int) -> str:
    """Return in one sentence how :func:`gmsd` measures."""
    return (
        f"GMSD (arXiv 1308.3052) on gray levels of 0 to 255 (BT.601, of pictures rounded to 8 bits), {border(crop)}; "
        f"means of {POOL}x{POOL} pixels, Prewitt gradients at valid positions, c {CONSTANT:g}, deviation over the map; "
        "0 is equal, lower is better"
    )


def spectrum_protocol(crop: int) -> str:
    """Return in one sentence how :func:`spectral_distance` measures."""
    return (
        f"spectrum: mean absolute difference in dB of the power in {OCTAVES} octaves of spatial frequency (from 1/4 "
        f"cycle per pixel up, and the {OCTAVES - 1} octaves below), gray levels as for GMSD under a Hann window, above "
        f"the noise of rounding to 8 bits, {border(crop)}; blur and noise both count, 0 is equal energy at every scale"
    )


def gmsd(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0) -> Float[Tensor, "b"]:
    """Return the gradient magnitude similarity deviation of each picture (Xue et al. 2014, arXiv 1308.3052).

    0 for equal pictures, and for all whose gradients are alike everywhere: lower is better. Raises UserError for
    pictures of different shapes, and for those smaller than one gradient after ``crop``.
    """
    ours, theirs = (_gradients(gray) for gray in _grays(x, reference, crop, LEAST_GMSD))
    similarity = (2 * ours * theirs + CONSTANT) / (ours.square() + theirs.square() + CONSTANT)
    return similarity.std(dim=(1, 2, 3), correction=0)


def _gradients(gray: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 k l"]:
    """Return gradient magnitudes at half the size."""
    small = functional.avg_pool2d(gray, POOL)
    across = small.new_tensor([1.0, 0.0, -1.0]).expand(PREWITT, PREWITT) / PREWITT
    both = functional.conv2d(small, torch.stack([across, across.T])[:, None])
    return both.square().sum(dim=1, keepdim=True).sqrt()


def spectral_distance(
    x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0
) -> Float[Tensor, "b"]:
    """Return the mean over octaves of the absolute :func:`spectral_levels` in dB, 0 for equal energies (ours).

    It does not see where detail is, only how much: read it beside a distance that does.
    """
    return spectral_levels(x, reference, crop=crop).abs().mean(dim=1)


def spectral_levels(
    x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, crop: int = 0
) -> Float[Tensor, "b k"]:
    """Return the power of ``x`` over that of ``reference`` in dB by octave, from coarse to fine.

    Negative is blurred, positive noisy or too sharp. Raises UserError for pictures of different shapes, and for those
    without the lowest octave after ``crop``.
    """
    ours, theirs = (_octave_powers(gray) for gray in _grays(x, reference, crop, LEAST_SPECTRUM))
    return 10 * torch.log10((ours + ROUNDING) / (theirs + ROUNDING))


def _octave_powers(gray: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k"]:
    """Return the mean power density per octave, from coarse to fine, in squares of gray levels.

    White noise has its variance in every octave.
    """
    height, width = gray.shape[2:]
    down, across = (torch.hann_window(n, periodic=False, dtype=gray.dtype) for n in (height, width))
    window = (down[:, None] * across).to(gray.device)
    flat = gray[:, 0] - ((gray[:, 0] * window).sum(dim=(1, 2), keepdim=True) / window.sum())
    power = torch.fft.rfft2(flat * window).abs().square() / window.square().sum()
    rows, columns = torch.fft.fftfreq(height, dtype=gray.dtype), torch.fft.rfftfreq(width, dtype=gray.dtype)
    # half of the spectrum of real values: all but the columns that are their own mirror images stand for two
    share = torch.full((width // 2 + 1,), 2.0, dtype=gray.dtype)
    share[0] = 1
    share[-1] -= 1 - width % 2
    radius = torch.hypot(rows[:, None], columns).to(gray.device)
    share = share.to(gray.device).expand_as(radius)
    levels = []
    for octave in reversed(range(OCTAVES)):
        low = 2.0 ** -(octave + 2)
        inside = (radius >= low) & ((radius < 2 * low) | (octave == 0))  # the finest holds the corners too
        levels.append((power[:, inside] * share[inside]).sum(dim=1) / share[inside].sum())
    return torch.stack(levels, dim=1)


def _grays(x: Tensor, reference: Tensor, crop: int, least: int) -> tuple[Tensor, Tensor]:
    """Return the gray levels in [0, 255] of both pictures without their borders."""
    ours, theirs = ((y - BLACK) * (PEAK / (WHITE - BLACK)) for y in luma_pair(x, reference, crop, least))
    return ours, theirs
