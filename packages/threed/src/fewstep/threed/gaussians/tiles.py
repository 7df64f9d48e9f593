"""Which splats may show in which part of an image, from near to far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.threed.gaussians.projection import EXTENT

FAINTEST = 1 / 255
SIZES = (8, 16, 32)  # of tiles, in pixels, to choose from
TILE_COST = 6000  # what a tile costs beside its splats, in pairs of a splat and a pixel


@dataclass(frozen=True)
class Tile:
    """A part of the image: columns [left, right), rows [top, bottom); its splats are ``ids[start:stop]``."""

    left: int
    right: int
    top: int
    bottom: int
    start: int
    stop: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of an image that any splat reaches, and the splats of one tile after the other, from near to far."""

    size: int
    width: int
    height: int
    ids: Int[Tensor, " m"]
    places: Int[Tensor, " m"]  # number of the tile, row by row

    @property
    def across(self) -> int:
        """How many tiles stand side by side."""
        return -(-self.width // self.size)

    @property
    def centres(self) -> Int[Tensor, "m 2"]:
        """Where coordinates inside the tile of each of ``ids`` begin, in pixels."""
        return torch.stack([self.places % self.across, self.places // self.across], dim=-1) * self.size + self.size // 2

    @property
    def pairs(self) -> int:
        """Over how many pairs of a splat and a pixel an image is added up."""
        return sum((tile.stop - tile.start) * (tile.right - tile.left) * (tile.bottom - tile.top) for tile in self)

    def __iter__(self) -> Iterator[Tile]:
        """Give one tile after the other."""
        used, counts = torch.unique_consecutive(self.places, return_counts=True)
        start = 0
        for place, count in zip(used.tolist(), counts.tolist(), strict=True):
            left, top = place % self.across * self.size, place // self.across * self.size
            right, bottom = min(left + self.size, self.width), min(top + self.size, self.height)
            yield Tile(left, right, top, bottom, start, start + count)
            start += count


@torch.no_grad()
def tiles(
    means2d: Float[Tensor, "n 2"],
    conics: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    depths: Float[Tensor, " n"],
    width: int,
    height: int,
    tile_size: int | None = None,
) -> Tiles:
    """Return the tiles that splats reach with ``FAINTEST`` or more; equal depths keep the order of the input.

    ``tile_size`` None: the size of ``SIZES`` with the least work.
    """
    means2d, conics = means2d.double(), conics.double()
    # an ellipse o exp(-s) >= 1/255 is s <= log(255 o), at most that of an opaque one
    reach = (2 * (opacities.double() / FAINTEST).clamp_min(1e-30).log()).clamp(0, EXTENT**2) * 1.001 + 1e-3
    determinant = (conics[:, 0] * conics[:, 2] - conics[:, 1] ** 2).clamp_min(1e-30)
    half = reach[:, None].sqrt() * (conics[:, [2, 0]] / determinant[:, None]).sqrt()
    if tile_size is None:
        tile_size = _best(means2d, half, opacities >= FAINTEST, width, height)
    first, spans = _spans(means2d, half, opacities >= FAINTEST, width, height, tile_size)

    order = torch.argsort(depths, stable=True)
    counts = spans.prod(dim=-1)[order]
    ids = torch.repeat_interleave(order, counts)
    within = torch.arange(len(ids), device=ids.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    columns = spans[ids, 0]
    corner = first[ids] + torch.stack([within % columns, torch.div(within, columns, rounding_mode="floor")], dim=-1)
    met = _nearest(corner * tile_size + 0.5 - means2d[ids], tile_size - 1, conics[ids]) <= reach[ids]
    place = (corner[:, 1] * -(-width // tile_size) + corner[:, 0])[met]
    place, sorting = torch.sort(place, stable=True)  # stable: near to far inside a tile
    return Tiles(tile_size, width, height, ids[met][sorting], place)


def _spans(means2d: Tensor, half: Tensor, shown: Tensor, width: int, height: int, size: int) -> tuple[Tensor, Tensor]:
    """Return each splat's first column and row of tiles, and how many of both its box meets: "n 2" each."""
    limits = means2d.new_tensor([-(-width // size), -(-height // size)])
    # a pixel's centre is half a pixel inside its tile
    first = torch.minimum(((means2d - half - 0.5) / size).floor().clamp_min(0), limits).long()
    last = torch.minimum((((means2d + half - 0.5) / size).floor() + 1).clamp_min(0), limits).long()
    return first, (last - first).clamp_min(0) * shown[:, None]


def _best(means2d: Tensor, half: Tensor, shown: Tensor, width: int, height: int) -> int:
    """Return the size of tiles with the least work."""

    def work(size: int) -> float:
        pairs = int(_spans(means2d, half, shown, width, height, size)[1].prod(dim=-1).sum())
        return size * size * pairs + TILE_COST * -(-width // size) * -(-height // size)

    return min(SIZES, key=work)


def _nearest(corner: Tensor, side: int, conics: Tensor) -> Tensor:
    """Return the least squared distance, in standard deviations, from 0 to squares of pixel centres at ``corner``."""
    low, high = corner, corner + side
    a, b, c = conics.unbind(-1)
    best = torch.full_like(a, torch.inf)
    for axis, own, other in ((0, a, c), (1, c, a)):
        for edge in (low[:, axis], high[:, axis]):
            across = 1 - axis
            at = torch.minimum(torch.maximum(-b * edge / other, low[:, across]), high[:, across])
            best = torch.minimum(best, own * edge * edge + 2 * b * edge * at + other * at * at)
    inside = ((low <= 0) & (high >= 0)).all(dim=-1)
    return torch.where(inside, 0.0, best)
