"""Which splats may show in which part of an image, from near to far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fewstep.threed.gaussians.projection import EXTENT

FAINTEST = 1 / 255
SIZES = (8, 16, 32)  # of tiles, in pixels, to choose from
TILE_COST = 6000  # what a tile costs beside its splats, in pairs of a splat and a pixel


@dataclass(frozen=True)
class Tiles:
    """Squares of an image that any splat reaches, and the splats of one square after the other, from near to far."""

    size: int
    width: int
    height: int
    ids: Int[Tensor, " m"]
    places: Int[Tensor, " m"]  # number of the tile, row by row

    @property
    def across(self) -> int:
        """How many tiles stand side by side; the last may reach beyond the image."""
        return -(-self.width // self.size)

    @property
    def down(self) -> int:
        """How many tiles stand one below the other."""
        return -(-self.height // self.size)

    @property
    def centres(self) -> Int[Tensor, "m 2"]:
        """Where coordinates inside the tile of each of ``ids`` begin, in pixels."""
        row = torch.div(self.places, self.across, rounding_mode="floor")
        return torch.stack([self.places - row * self.across, row], dim=-1) * self.size + self.size // 2

    @property
    def pairs(self) -> int:
        """Over how many pairs of a splat and a pixel the image is added up, were no pixel ever finished."""
        return len(self.ids) * self.size**2

    def groups(self, elements: int, block: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give tiles with about as many splats each, as (places, where their splats start, how many), longest first.

        A group has at most ``elements`` pairs of a pixel and one of its first ``block`` splats, or is a single tile.
        """
        used, counts = torch.unique_consecutive(self.places, return_counts=True)
        counts, order = torch.sort(counts, descending=True)
        starts = (torch.cumsum(counts.new_zeros(len(counts)).index_copy(0, order, counts), 0))[order] - counts
        used, lengths = used[order], counts.tolist()
        at = 0
        while at < len(lengths):
            many = max(1, elements // (self.size**2 * min(lengths[at], block)))
            own = slice(at, at + many)
            yield used[own], starts[own], counts[own]
            at += many

    def cut(self, image: Float[Tensor, "h w d"]) -> Float[Tensor, "t d p"]:
        """Return all tiles of an image, 0 beyond it."""
        high, wide = self.down * self.size, self.across * self.size
        padded = F.pad(image, (0, 0, 0, wide - self.width, 0, high - self.height))
        squares = padded.view(self.down, self.size, self.across, self.size, -1).permute(0, 2, 4, 1, 3)
        return squares.reshape(self.down * self.across, -1, self.size**2)

    def joined(self, squares: Float[Tensor, "t d p"]) -> Float[Tensor, "h w d"]:
        """Return the image that all tiles make."""
        parts = squares.view(self.down, self.across, -1, self.size, self.size).permute(0, 3, 1, 4, 2)
        whole = parts.reshape(self.down * self.size, self.across * self.size, -1)
        return whole[: self.height, : self.width].contiguous()


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
    # in a single row or column of tiles, an ellipse meets all that its box does
    unsure = (spans.amin(dim=-1) > 1)[ids].nonzero()[:, 0]
    own = ids[unsure]
    nearest = _nearest(corner[unsure] * tile_size + 0.5 - means2d[own], tile_size - 1, conics[own])
    met = torch.ones_like(ids, dtype=torch.bool).index_fill(0, unsure[nearest > reach[own]], False)
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
