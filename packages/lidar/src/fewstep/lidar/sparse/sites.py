"""Occupied voxels: sorted integer keys, their grids of coarser stride, and which voxels a kernel connects."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.lidar.sparse.blocks import Block, make_blocks

BITS = 18  # per axis: +-131,072 voxels, 6.5 km at 5 cm; the 9 bits above them count the batch
HALF = 1 << (BITS - 1)
MARGIN = 64  # voxels kept free at the border, so that neighbours never carry into the next field
SHIFTS = (2 * BITS, BITS, 0)
MOST = 1 << (62 - 3 * BITS)


@dataclass(frozen=True, eq=False)
class Pairs:
    """For every kernel element the rows it reads and the rows it adds to.

    ``reads[k]``, ``adds[k]``: "p_k"; no row occurs twice in one of them. ``center``: the element that reads and adds to
    every row, in kernels that are their own mirror image: the last element reads where the first adds, and so on.
    ``flipped``: made by :meth:`reverse`.
    """

    reads: tuple[Tensor, ...]
    adds: tuple[Tensor, ...]
    rows_in: int
    rows_out: int
    center: int | None = None
    flipped: bool = False
    _blocks: dict[bool, list[Block]] = field(default_factory=dict, repr=False)  # one table for both directions

    def reverse(self) -> Pairs:
        """Return the adjoint's pairs: reading and adding change places."""
        return Pairs(self.adds, self.reads, self.rows_out, self.rows_in, self.center, not self.flipped, self._blocks)

    @property
    def products(self) -> int:
        """Return the number of products of a row and a kernel element."""
        return sum(len(rows) for rows in self.reads)

    @property
    def blocks(self) -> list[Block]:
        """All products but the centre's, in blocks; made when first asked for."""
        if self.flipped not in self._blocks:
            there = self._blocks.get(not self.flipped)
            if self.center is not None and there is not None:
                made = [block.mirrored(len(self.reads)) for block in there]
            else:
                reads, adds = (
                    [own[:0] if k == self.center else own for k, own in enumerate(rows)]
                    for rows in (self.reads, self.adds)
                )
                made = make_blocks(reads, adds, self.rows_out)
            self._blocks[self.flipped] = made
        return self._blocks[self.flipped]


def pack(coords: Int[Tensor, "n 3"], sample: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return one key per voxel, ordered by sample, x, y, z; UserError for coordinates or samples out of range."""
    if len(coords):
        far = int(coords.abs().max())
        check(
            far < HALF - MARGIN,
            f"a point lies {far:,} voxels from the origin and {HALF - MARGIN:,} is the most: "
            "give points in the sensor's frame, in metres, or a coarser resolution",
        )
        check(int(sample.max()) < MOST, f"at most {MOST} clouds go through a network at once")
    moved = coords.long() + HALF
    return (sample.long() << (3 * BITS)) | (moved[:, 0] << SHIFTS[0]) | (moved[:, 1] << SHIFTS[1]) | moved[:, 2]


def _neighbour(dx: int, dy: int, dz: int, stride: int) -> int:
    return stride * ((dx << SHIFTS[0]) + (dy << SHIFTS[1]) + dz)


@dataclass(frozen=True, eq=False)
class Sites:
    """Occupied voxels of a batch of clouds on a grid of ``stride`` finest voxels: ``keys`` "v", rising, all different.

    Maps between voxels are made when first asked for, and kept as long as the sites.
    """

    keys: Int[Tensor, " v"]
    stride: int = 1
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of voxels."""
        return len(self.keys)

    @cached_property
    def coords(self) -> Int[Tensor, "v 3"]:
        """Coordinates x, y, z in finest voxels."""
        mask = (1 << BITS) - 1
        return torch.stack([((self.keys >> shift) & mask) - HALF for shift in SHIFTS], 1)

    @cached_property
    def sample(self) -> Int[Tensor, " v"]:
        """The cloud of the batch each voxel belongs to."""
        return self.keys >> (3 * BITS)

    @cached_property
    def neighbours(self) -> Pairs:
        """Pairs of the 3x3x3 kernel on these voxels; element ``(dx + 1) + 3 (dy + 1) + 9 (dz + 1)`` reads voxel c + d.

        Half of the elements are searched for; the other half are their mirror images.
        """
        reads: list[Tensor] = [self.keys[:0]] * 27
        adds = list(reads)
        last = max(len(self) - 1, 0)
        for k in range(13):
            wanted = self.keys + _neighbour(k % 3 - 1, k // 3 % 3 - 1, k // 9 - 1, self.stride)
            # wanted rises as the keys do, so the search walks through memory in order
            found = torch.searchsorted(self.keys, wanted).clamp_max_(last)
            here = (self.keys[found] == wanted).nonzero()[:, 0] if len(self) else self.keys[:0]
            reads[k], adds[k] = found[here], here
            reads[26 - k], adds[26 - k] = adds[k], reads[k]
        everyone = torch.arange(len(self), device=self.keys.device)
        reads[13] = adds[13] = everyone
        return Pairs(tuple(reads), tuple(adds), len(self), len(self), center=13)

    @cached_property
    def coarser(self) -> tuple[Sites, Pairs]:
        """The voxels of twice the stride that contain these, and the pairs of the 2x2x2 kernel from here to there.

        Element ``px + 2 py + 4 pz`` reads the voxel in that corner of its parent (0: the lower half of an axis).
        """
        low = 2 * self.stride - 1
        mask = ~((low << SHIFTS[0]) | (low << SHIFTS[1]) | low)
        keys, parent = torch.unique(self.keys & mask, return_inverse=True)
        level = self.stride.bit_length() - 1
        px, py, pz = ((self.keys >> (shift + level)) & 1 for shift in SHIFTS)
        corner = px + 2 * py + 4 * pz
        order = corner.argsort(stable=True)
        parts = torch.bincount(corner, minlength=8).tolist()
        reads, adds = torch.split(order, parts), torch.split(parent[order], parts)
        return Sites(keys, 2 * self.stride), Pairs(tuple(reads), tuple(adds), len(self), len(keys))


class Voxels(NamedTuple):
    """Points sorted into voxels: the ``sites``, and the row of every point, "p"."""

    sites: Sites
    row: Tensor

    def mean(self, values: Float[Tensor, "p c"]) -> Float[Tensor, "v c"]:
        """Return the plain mean of the values of the points in each voxel."""
        total = values.new_zeros(len(self.sites), values.shape[1]).index_add(0, self.row, values)
        count = torch.bincount(self.row, minlength=len(self.sites))
        return total / count[:, None].to(values.dtype)

    def slice(self, features: Float[Tensor, "v c"]) -> Float[Tensor, "p c"]:
        """Return for every point what its voxel has."""
        return features.index_select(0, self.row)


def voxelise(points: Float[Tensor, "p 3"], sample: Int[Tensor, " p"], resolution: float) -> Voxels:
    """Return the voxels ``round(points / resolution)`` of points in metres; no gradient goes through coordinates.

    Raises UserError for points that are not finite, or too far out to count.
    """
    with torch.no_grad():
        exact = points.detach() / resolution
        check(bool(exact.isfinite().all()), "a point that is not finite has no voxel")
        keys, row = torch.unique(pack(exact.round().clamp(-(2.0**40), 2.0**40).long(), sample), return_inverse=True)
    return Voxels(Sites(keys), row)
