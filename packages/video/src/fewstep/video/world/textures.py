"""Textures that fill a picture and drift: sums of waves of whole wave numbers, so that they wrap without a seam."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

HIGHEST = 7  # wave number along a side
WAVES = 2 * HIGHEST + 1
# least, most and typical wave number of each texture
BANDS = ((1.0, 2.5, 1.8), (3.0, 6.0, 4.5))


def cover(
    waves: Float[Tensor, "b k"],
    kind: Int[Tensor, " b"],
    offset: Float[Tensor, "b f 2"],
    height: int,
    width: int,
) -> Float[Tensor, "b f h w"]:
    """Return the share of each pixel that lies in a texture's spots.

    ``waves``: uniform numbers in [0, 1), an amplitude and a phase for each wave. ``kind``: place in TEXTURES.
    ``offset``: (x, y) by which it has drifted, in pixels.
    """
    k = torch.arange(-HIGHEST, HIGHEST + 1, dtype=torch.float64)
    length = torch.hypot(k[:, None], k)
    least, most, typical = torch.tensor(BANDS, dtype=torch.float64)[kind].T[..., None, None]
    amplitude, phase = waves.reshape(-1, 2, WAVES, WAVES).unbind(1)
    amplitude = (amplitude + 0.5) * ((length >= least) & (length <= most))
    amplitude = amplitude / (amplitude.square().sum((1, 2), keepdim=True) / 2).sqrt()  # a field of unit variance
    table = torch.polar(amplitude, math.tau * phase)[:, None].to(torch.complex64)
    columns = torch.arange(width, dtype=torch.float64) + 0.5 - offset[..., :1]
    rows = torch.arange(height, dtype=torch.float64) + 0.5 - offset[..., 1:]
    across = _wave(math.tau / width * k[:, None] * columns[..., None, :])
    down = _wave(math.tau / height * rows[..., None] * k)
    first = down @ table  # real part of first @ across, without the imaginary one
    field: Tensor = first.real @ across.real - first.imag @ across.imag
    slope = math.tau * typical / min(height, width)  # of the field, a pixel
    return field.div_(2 * slope[..., None].float()).add_(0.5).clamp_(0, 1)


def _wave(angle: Tensor) -> Tensor:
    return torch.complex(angle.cos().float(), angle.sin().float())
