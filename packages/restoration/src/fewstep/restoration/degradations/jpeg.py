"""JPEG compression in torch: what quantisation does to the pictures of a batch, one quality each, on any device.

4:2:0 with the standard's example tables. Nothing else of the format is needed: entropy coding loses nothing. Written
out because kornia's codec only rounds softly, to carry gradients; here coefficients are rounded unless that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import check
from fewstep.restoration.degradations.images import check_images

# ITU-T T.81, tables K.1 and K.2
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: Y, Cb, Cr of R, G, B; the chroma rows sum to zero exactly, so that gray has none
YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.886 / 1.772),
    (0.701 / 1.402, -0.587 / 1.402, -0.114 / 1.402),
)


def quality_factor(quality: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return what the tables are multiplied by: 50 / q below quality 50, 2 - q / 50 from there on."""
    return torch.where(quality < 50, 50 / quality, 2 - quality / 50)


def tables(quality: Float[Tensor, " b"]) -> tuple[Float[Tensor, "b 8 8"], Float[Tensor, "b 8 8"]]:
    """Return the luma and chroma tables of each quality, whole numbers from 1 to 255 as libjpeg has them."""
    factor = quality_factor(quality)[:, None, None]
    light, chroma = ((quality.new_tensor(t) * factor + 0.5).floor().clamp(1, 255) for t in (LUMINANCE, CHROMINANCE))
    return light, chroma


def _dct(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II matrix, frequency by position."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * k[None, :] + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def soft_round(x: Tensor) -> Tensor:
    """Return the nearest whole numbers plus the cube of what is left over: at most 1/8 off, and with a gradient."""
    whole = x.round()
    return whole + (x - whole) ** 3


def _quantized(
    plane: Float[Tensor, "b c h w"], table: Float[Tensor, "b 8 8"], rounded: Callable[[Tensor], Tensor]
) -> Float[Tensor, "b c h w"]:
    """Round the plane's 8x8 DCT coefficients to multiples of the table; sides are multiples of 8."""
    batch, channels, height, width = plane.shape
    dct = _dct(plane)
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    step = table[:, None, None, None]
    coefficients = rounded(dct @ blocks @ dct.T / step) * step
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(plane.shape)


def jpeg(
    images: Float[Tensor, "b c h w"], quality: Float[Tensor, " b"], *, soft: bool = False
) -> Float[Tensor, "b c h w"]:
    """Return the RGB ``images`` as JPEG of ``quality`` 1..100 would give them back, clipped to [0, 1], same size.

    Quality may be fractional. ``soft``: coefficients are rounded by :func:`soft_round`, which lets gradients through.
    Sides that are no multiples of 16 are filled up with their edge pixels and cut again.
    UserError for a quality out of range or another number of channels.
    """
    check_images(images, colour=True)
    batch, _, height, width = images.shape
    check(quality.shape == (batch,), f"jpeg quality: one per image, got {tuple(quality.shape)} for {batch} images")
    check(bool(((quality >= 1) & (quality <= 100)).all()), "jpeg quality: must be in 1..100")
    light, chroma = (table.to(images) for table in tables(quality.double()))
    matrix = images.new_tensor(YCBCR)
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    planes = torch.einsum("dc,bchw->bdhw", matrix, padded * 255 - 128)
    rounded = soft_round if soft else torch.round
    y = _quantized(planes[:, :1], light, rounded)
    cbcr = _quantized(F.avg_pool2d(planes[:, 1:], 2), chroma, rounded)
    cbcr = cbcr.repeat_interleave(2, -1).repeat_interleave(2, -2)
    rgb = torch.einsum("dc,bchw->bdhw", torch.linalg.inv(matrix.double()).to(images), torch.cat([y, cbcr], 1))
    return ((rgb + 128) / 255)[..., :height, :width].clamp(0, 1)
