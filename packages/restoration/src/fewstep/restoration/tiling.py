"""A function of small pictures applied to a large one: overlapping tiles, blended with Gaussian weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check

log = logging.getLogger(__name__)

VARIANCE = 0.01  # of the window, in squares of the tile's side
FLOOR = 1e-6  # of the window's peak, so that no pixel is without weight
SHARE = 0.5  # of the free memory; the rest is for what the estimate does not know
NO_MEMORY = ("can't allocate memory", "not enough memory")  # what torch's CPU allocators say in a RuntimeError


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Sides and overlaps of square tiles in pixels of the input.

    ``overlap``: pixels shared by neighbouring tiles, at most half of ``side``. ``halo``: pixels along the inner borders
    of a tile that are given to the function and left out of its result, at most half of ``overlap``; a local function
    that reaches no farther has the result it has on the whole picture.
    """

    side: int = 512
    overlap: int = 64
    halo: int = 0

    def __post_init__(self) -> None:
        check(self.side >= 1, f"tile side: must be at least 1, got {self.side}")
        check(0 <= 2 * self.overlap <= self.side, f"tile overlap: must be 0 to {self.side // 2}, got {self.overlap}")
        check(0 <= 2 * self.halo <= self.overlap, f"tile halo: must be 0 to {self.overlap // 2}, got {self.halo}")


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Return where tiles begin along ``length`` pixels, the last one moved back to end at the border."""
    return [*range(0, max(length - side, 0), side - overlap), max(length - side, 0)]


def window(side: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "side"]:
    """Return a Gaussian around the middle of ``side`` pixels, symmetric, its peak 1."""
    at = (torch.arange(side, dtype=dtype) - (side - 1) / 2) / side
    return torch.exp(-(at**2) / (2 * VARIANCE)).clamp_min(FLOOR)


def blend_weights(length: int, tiles: Tiles, scale: int) -> list[tuple[int, Float[Tensor, "l"]]]:
    """Return for the tiles along one axis their starts and their weights after scaling, which add up to 1 everywhere.

    The sum over a grid of tiles is the product of the sums along its axes, so weights of a tile are products too.
    """
    starts = tile_starts(length, tiles.side, tiles.overlap)
    return _weights([(start, min(start + tiles.side, length)) for start in starts], length, tiles.halo, scale)


def even_weights(length: int, tiles: Tiles, scale: int, multiple: int) -> list[tuple[int, Float[Tensor, "l"]]]:
    """Return what :func:`blend_weights` does for tiles of nearly one size that begin at multiples of ``multiple``.

    They are as few as ``tiles.side`` allows and only the last one may be shorter, so that little is done twice. Side
    and overlap must be multiples too, and the side the larger.
    """
    overlap = tiles.overlap
    count = -(-(length - overlap) // (tiles.side - overlap))
    if count <= 1:
        return _weights([(0, length)], length, 0, scale)
    stride = -(-(length - overlap) // (count * multiple)) * multiple
    spans = [(start, min(start + stride + overlap, length)) for start in range(0, length - overlap, stride)]
    return _weights(spans, length, tiles.halo, scale)


def _weights(spans: list[tuple[int, int]], length: int, halo: int, scale: int) -> list[tuple[int, Float[Tensor, "l"]]]:
    weights = []
    total = torch.zeros(length * scale, dtype=torch.float64)
    for start, stop in spans:
        weight = window((stop - start) * scale)
        if start > 0:
            weight[: halo * scale] = 0
        if stop < length:
            weight[(stop - start - halo) * scale :] = 0
        weights.append(weight)
        total[start * scale : stop * scale] += weight
    return [
        (start, (weight / total[start * scale : stop * scale]).float())
        for (start, stop), weight in zip(spans, weights, strict=True)
    ]


def in_tiles(
    function: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b c h w"],
    tiles: Tiles,
    *,
    scale: int = 1,
    device: torch.device | str | None = None,
) -> Float[Tensor, "b d k l"]:
    """Return ``function`` of a picture, tile by tile, in float32 where ``x`` is; "c h w" is taken too.

    ``function``: "b c n m" to "b d n*scale m*scale", for tiles of :class:`Tiles` and smaller ones where the picture is.
    What must agree between tiles, such as noise, is given as further channels of ``x``. ``device``: where tiles are
    moved to, so that only they need its memory. When memory runs out, all is done again with tiles of half the side.
    Raises UserError when that makes tiles smaller than twice their overlap.
    """
    check(scale >= 1, f"scale: must be at least 1, got {scale}")
    if x.ndim == 3:
        return in_tiles(function, x[None], tiles, scale=scale, device=device)[0]
    while True:
        side = min(tiles.side, max(x.shape[2:]))
        try:
            return _blended(function, x, tiles, scale, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # past the handler, where the traceback no longer holds tensors of the failed attempt
        half = side // 2
        if half < max(2 * tiles.overlap, 1):
            raise UserError(
                f"out of memory with tiles of {side} pixels at an overlap of {tiles.overlap}: "
                "free memory, or choose a smaller overlap, a lower precision or a smaller model"
            )
        log.warning("out of memory with tiles of %d pixels, trying %d", side, half)
        tiles = Tiles(side=half, overlap=tiles.overlap, halo=tiles.halo)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _blended(
    function: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles, scale: int, device: torch.device | str | None
) -> Tensor:
    batch, _, height, width = x.shape
    rows, columns = blend_weights(height, tiles, scale), blend_weights(width, tiles, scale)
    result: Tensor | None = None
    for top, down in rows:
        for left, across in columns:
            h, w = len(down) // scale, len(across) // scale
            tile = x[:, :, top : top + h, left : left + w]
            y = function(tile if device is None else tile.to(device))
            if y.ndim != 4 or (len(y), *y.shape[2:]) != (batch, len(down), len(across)):
                raise ValueError(f"a tile {tuple(tile.shape)} at scale {scale} became {tuple(y.shape)}")
            if result is None:
                result = x.new_zeros((batch, y.shape[1], height * scale, width * scale), dtype=torch.float32)
            place = result[:, :, top * scale : top * scale + len(down), left * scale : left * scale + len(across)]
            place += y.to(x.device, torch.float32) * down[:, None].to(x.device) * across.to(x.device)
    if result is None:
        raise ValueError(f"a picture of shape {tuple(x.shape)} has no pixels")
    return result


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory of the device or of the host ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nobody uses."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def side_within(budget: int, bytes_per_pixel: float, *, multiple: int = 8, most: int = 2048) -> int:
    """Return the largest side, a multiple of ``multiple``, of tiles that ``budget`` bytes suffice for.

    ``bytes_per_pixel``: what the function needs at its peak for a pixel of its input. At least ``multiple`` is
    returned, at most ``most``; UserError when the budget is below even that.
    """
    side = isqrt(max(int(SHARE * budget / bytes_per_pixel), 0)) // multiple * multiple
    check(side >= multiple, f"memory budget of {budget} bytes: too small for tiles of {multiple} pixels, give more")
    return min(side, most // multiple * multiple)
