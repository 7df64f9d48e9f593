"""Pictures enlarged by a restorer: tiles, colours, alpha, gray and 16 bits, in memory that the result mostly fills.

The result is made from top to bottom and rounded at once to the integers of its file; besides them there is one band
of tiles in float32. Colours are fixed as on the whole picture. AdaIN alone needs statistics of everything first: until
then the result is held in 16 bits over the range -0.5 to 1.5, in the same memory that its integers take afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check, nearest
from fewstep.restoration.bands import Plan, enlarged_rows, fixed_rows, restored_rows
from fewstep.restoration.colour import FIXES, FLAT
from fewstep.restoration.pictures.picture import DTYPES, Picture, Raster, quantized
from fewstep.restoration.tiling import Tiles, free_bytes, is_out_of_memory, side_within

log = logging.getLogger(__name__)

SCALES = (2, 3, 4, 8)
OVERLAP = 64  # of tiles whose results depend on the whole tile
LEAST = 16  # pixels of a side below which tiles are no longer halved
HOST_BUDGET = 23 * 2**26  # of the host's memory, however much is free: tiles beyond its caches are slower
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LOWEST, SPAN = -0.5, 2.0  # of the values that wait for AdaIN's statistics


class Restores(Protocol):
    """What enlarges a tile."""

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the magnifications it was made for."""

    def multiple(self, scale: int) -> int:
        """Return what starts and sides of tiles must be multiples of; the last tile may be shorter."""

    def reach(self, scale: int) -> int:
        """Return how many pixels of the input a result depends on in each direction, 0 for all of them."""

    def bytes_per_pixel(self, scale: int) -> float:
        """Return the memory at the peak for a pixel of the input."""

    def __call__(
        self, lq: Float[Tensor, "b 3 h w"], scale: int, *, top: int = 0, left: int = 0
    ) -> Float[Tensor, "b 3 k l"]:
        """Return a tile at (top, left) of its picture, enlarged; both in [0, 1], the result not clamped."""


@dataclass(frozen=True, kw_only=True)
class UpscaleConfig:
    """How pictures are enlarged; UserError for what no picture can be enlarged with.

    ``tile``: largest side of tiles in pixels of the input, 0 for the whole picture at once, None for what memory
    allows. ``overlap``: of tiles, None for twice the reach of the restorer, which leaves no seams, or where that is
    unknown or more than half a tile 64 pixels, over which results are blended.
    """

    scale: int = 4
    tile: int | None = None
    overlap: int | None = None
    colour_fix: str = "wavelet"

    def __post_init__(self) -> None:
        """Raise UserError for an unknown scale or fix and for negative sizes."""
        check(self.scale in SCALES, f"scale {self.scale}: valid are {', '.join(map(str, SCALES))}")
        check(self.tile is None or self.tile >= 0, f"tile: must be at least 0, got {self.tile}")
        check(self.overlap is None or self.overlap >= 0, f"overlap: must be at least 0, got {self.overlap}")
        check(self.colour_fix in FIXES, f"colour fix '{self.colour_fix}': {nearest(self.colour_fix, FIXES)}")


@dataclass(frozen=True, kw_only=True)
class Upscaled:
    """A result, and the number and largest side of the tiles it was made of."""

    raster: Raster
    tiles: int
    side: int


def upscale(
    picture: Picture,
    restorer: Restores,
    config: UpscaleConfig,
    *,
    device: torch.device | str = "cpu",
    spare: Callable[[], Restores] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Upscaled:
    """Return a picture of exactly ``scale`` times the sides, in the mode and depth of ``picture``.

    ``device``: where tiles are moved to. ``spare``: gives the restorer, in float32, that does a tile again whose result
    is not finite. ``progress``: called with the tiles done and their number. When memory runs out, all is done again
    with tiles of half the side. Raises UserError for scales the restorer was not made for, tiles it cannot work on,
    results that do not fit in memory or are not finite.
    """
    scale, place = config.scale, torch.device(device)
    known = ", ".join(map(str, restorer.scales))
    check(scale in restorer.scales, f"scale {scale}: the model was made for {known}; choose that, or another model")
    check_memory(picture.size, picture.mode, picture.bits, config)
    most, multiple = config.tile, restorer.multiple(scale)
    while True:
        tiles = tiles_for(restorer, config, picture.size, most, place)
        plan = Plan(picture.size, tiles, scale, multiple)
        try:
            raster = _upscaled(picture, _Tile(restorer, scale, place, spare, plan, progress), plan, config.colour_fix)
            return Upscaled(raster=raster, tiles=plan.count, side=plan.side)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # past the handler, where the traceback no longer holds tensors of the failed attempt
        most = plan.side // 2 // multiple * multiple
        log.warning("out of memory with tiles of %d pixels, trying %d", plan.side, most)
        least = max(2 * _overlap(restorer, config, most), multiple, LEAST)
        check(most >= least, f"out of memory with tiles of {plan.side} pixels: free memory, or choose a smaller model")
        if place.type == "cuda":
            torch.cuda.empty_cache()


def check_memory(size: tuple[int, int], mode: str, bits: int, config: UpscaleConfig) -> None:
    """Raise UserError when the result of a picture cannot be held in the memory that is free."""
    height, width = (side * config.scale for side in size)
    channels = (1 if mode.startswith("L") else 3) + mode.endswith("A")
    needed = height * width * channels * (2 if config.colour_fix == "adain" else bits // 8)
    free = free_bytes(torch.device("cpu"))
    check(
        needed < free,
        f"the result of {width}x{height} pixels takes {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free: "
        "cut the picture, or choose a smaller scale",
    )


def tiles_for(
    restorer: Restores, config: UpscaleConfig, size: tuple[int, int], most: int | None, device: torch.device
) -> Tiles:
    """Return the tiles for a picture of ``size``; ``most``: their largest side, 0 and None as in `UpscaleConfig`."""
    multiple, reach = restorer.multiple(config.scale), restorer.reach(config.scale)
    whole = _up(max(size), multiple)
    if most == 0 or max(size) <= (most or 0):
        return Tiles(side=whole, overlap=0)
    if most is None:
        free = free_bytes(device)
        budget = free if device.type == "cuda" else min(free, HOST_BUDGET)
        side = side_within(budget, restorer.bytes_per_pixel(config.scale), multiple=multiple)
        side = max(side, 2 * _overlap(restorer, config, side))
    else:
        side = _up(most, multiple)
    if side >= whole:
        return Tiles(side=whole, overlap=0)
    overlap = _overlap(restorer, config, side)
    least = 2 * overlap
    check(side >= least, f"tile {side}: too small for overlaps of {overlap} pixels; at least {least}, or less overlap")
    return Tiles(side=side, overlap=overlap, halo=reach if overlap >= 2 * reach else 0)


def _overlap(restorer: Restores, config: UpscaleConfig, side: int) -> int:
    """Return the overlap asked for, else twice the reach, else what blends well, when no more fits into the side."""
    multiple = restorer.multiple(config.scale)
    if config.overlap is not None:
        return _up(config.overlap, multiple)
    exact = _up(2 * restorer.reach(config.scale), multiple)
    if 0 < 2 * exact <= side:
        return exact
    return min(_up(OVERLAP, multiple), side // 2 // multiple * multiple)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


class _Tile:
    """A restorer as a function of tiles: gray as three equal channels, results checked, counted."""

    def __init__(
        self,
        restorer: Restores,
        scale: int,
        device: torch.device,
        spare: Callable[[], Restores] | None,
        plan: Plan,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.restorer, self.scale, self.device, self.spare = restorer, scale, device, spare
        self.progress, self.done, self.count = progress, 0, plan.count

    def __call__(self, tile: Tensor, top: int, left: int) -> Tensor:
        lq = tile.expand(-1, 3, -1, -1).to(self.device)
        y = self.restorer(lq, self.scale, top=top, left=left).float()
        if not y.isfinite().all() and self.spare is not None:
            y = self.spare()(lq, self.scale, top=top, left=left).float()
        if not y.isfinite().all():
            raise UserError(f"the model's result at row {top}, column {left} is not finite: try fp32, or another model")
        if tile.shape[1] == 1:
            y = (y * y.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.count)
        return y


@torch.inference_mode()
def _upscaled(picture: Picture, function: _Tile, plan: Plan, fix: str) -> Raster:
    x, bits, scale = picture.colours, picture.bits, plan.scale
    height, width = (side * scale for side in picture.size)
    shape = (height, width, len(x) + (picture.alpha is not None))
    rows = restored_rows(function, x, plan)
    if fix == "adain":
        values = _adain(rows, x, plan, np.empty(shape, dtype=np.uint16), bits)
    else:
        values = np.empty(shape, dtype=DTYPES[bits])
        fixed = rows if fix == "none" else fixed_rows(rows, x, plan, fix)
        _fill(values, 0, fixed, bits)
    if picture.alpha is not None:
        _fill(values, len(x), _enlarged(picture.alpha, plan), bits)
    return Raster(values=values, mode=picture.mode, exif=picture.exif, icc=picture.icc)


def _enlarged(x: Tensor, plan: Plan) -> Iterator[Tensor]:
    height = plan.size[0] * plan.scale
    for start in range(0, height, plan.step):
        yield enlarged_rows(x, plan.scale, start, min(start + plan.step, height))


def _fill(values: npt.NDArray[Any], channel: int, rows: Iterator[Tensor], bits: int) -> None:
    start = 0
    for part in rows:
        stop = start + part.shape[1]
        values[start:stop, :, channel : channel + len(part)] = quantized(part, bits)
        start = stop


def _adain(
    rows: Iterator[Tensor], x: Tensor, plan: Plan, waiting: npt.NDArray[np.uint16], bits: int
) -> npt.NDArray[Any]:
    """Return `colour.adain` of the rows in the memory of ``waiting``, whose channels beyond them stay free."""
    channels = len(x)
    ours, wanted = _Statistics(channels), _Statistics(channels)
    start = 0
    for part in rows:
        stop = start + part.shape[1]
        ours.add(part)
        wanted.add(enlarged_rows(x, plan.scale, start, stop))
        waiting[start:stop, :, :channels] = quantized((part - LOWEST) / SPAN, 16)
        start = stop
    gain = (wanted.deviation / ours.deviation.clamp_min(FLAT)).float()
    shift = (wanted.mean - gain * ours.mean).float()
    # integers of 8 bits take the first half of their own row's memory or of earlier ones: nothing unread is lost
    values = waiting if bits == 16 else waiting.reshape(-1).view(np.uint8)[: waiting.size].reshape(waiting.shape)
    for start in range(0, len(waiting), plan.step):
        part = torch.from_numpy(waiting[start : start + plan.step, :, :channels].astype(np.float32)).permute(2, 0, 1)
        part = part * (SPAN / 65535) + LOWEST
        values[start : start + plan.step, :, :channels] = quantized(
            part * gain[:, None, None] + shift[:, None, None], bits
        )
    return values


class _Statistics:
    """Mean and deviation of channels, of rows that come one after the other."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        x = rows.double()
        self.count += x[0].numel()
        self.sums += torch.stack([x.sum(dim=(1, 2)), x.square().sum(dim=(1, 2))])

    @property
    def mean(self) -> Tensor:
        return self.sums[0] / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.sums[1] / self.count - self.mean.square()).clamp_min(0).sqrt()
