"""Losses between pictures that need no weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fewstep.core.errors import check
from fewstep.core.losses.distances import l1
from fewstep.core.tensors import precise


def laplacian_bands(images: Float[Tensor, "b c h w"], levels: int) -> list[Float[Tensor, "b c n m"]]:
    """Return what each of ``levels`` octaves adds to the coarser one, the finest first; any size.

    A band is a picture less its 2x2 means, bilinearly enlarged: zero for constants, and for ramps away from edges. They
    are fewer where nothing is left to halve. The coarsest picture is not returned: its colours are no detail.
    """
    check(levels >= 1, f"laplacian_bands: levels must be at least 1, got {levels}")
    x, bands = precise(images), list[Tensor]()
    while len(bands) < levels and max(x.shape[-2:]) > 1:
        coarse = functional.avg_pool2d(x, 2, ceil_mode=True)
        bands.append(x - functional.interpolate(coarse, tuple(x.shape[-2:]), mode="bilinear", align_corners=False))
        x = coarse
    return bands


def detail_loss(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], levels: int = 4) -> Float[Tensor, " b"]:
    """Return the mean absolute difference of the bands, summed over ``levels`` octaves: plain L1 blind to offsets.

    It is no perceptual distance: it asks for edges and texture in their places, at every size alike.
    """
    parts = zip(laplacian_bands(x, levels), laplacian_bands(y, levels), strict=True)
    total = precise(x).new_zeros(len(x))
    for one, other in parts:
        total = total + l1(one, other)
    return total
