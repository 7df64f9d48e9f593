"""Products of a sparse convolution in the order that caches like: a block of results is finished before the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PRODUCTS = 1 << 14  # of a block: with 16 channels in float32, 1 MiB


class Block(NamedTuple):
    """Products that add to the rows ``start`` to ``stop`` of the result, sorted by kernel element, then by row.

    ``counts``: kernel elements, rising, and how many products each has. ``reads``, ``adds``: rows read and added to,
    int32 "p". ``order``: the products by row added to, int32 "p"; ``firsts``: where in it each row's begin, int32
    "stop - start + 1".
    """

    start: int
    stop: int
    counts: tuple[tuple[int, int], ...]
    reads: Tensor
    adds: Tensor
    order: Tensor
    firsts: Tensor

    def mirrored(self, elements: int) -> Block:
        """Return the same products, with kernel elements counted from the other end."""
        return self._replace(counts=tuple((elements - 1 - k, count) for k, count in self.counts))


def make_blocks(reads: Sequence[Tensor], adds: Sequence[Tensor], rows: int) -> list[Block]:
    """Return blocks of about :data:`PRODUCTS` products over all ``rows`` of the result; the others as in Pairs."""
    k = len(reads)
    read, add = torch.cat(list(reads)).int(), torch.cat(list(adds)).int()
    sizes = torch.tensor([len(own) for own in adds], device=add.device)
    number = max(1, -(-len(add) // PRODUCTS))
    step = max(1, -(-rows // number))
    # the element as the lower digit: a stable sort keeps the rows of an element in order
    place = torch.arange(k, device=add.device).repeat_interleave(sizes) + add // step * k
    if number > 1:
        order = place.argsort(stable=True)
        read, add = read[order], add[order]
    counts: list[list[int]] = torch.bincount(place, minlength=number * k).view(-1, k).tolist()
    by_row = add.argsort(stable=True).int()
    firsts = torch.nn.functional.pad(torch.bincount(add, minlength=rows).cumsum(0), (1, 0)).int()
    blocks, done = [], 0
    for i, start in enumerate(range(0, rows, step)):
        stop, count = min(start + step, rows), sum(counts[i])
        own = slice(done, done + count)
        filled = tuple((element, size) for element, size in enumerate(counts[i]) if size)
        ends = firsts[start : stop + 1] - done
        blocks.append(Block(start, stop, filled, read[own], add[own], by_row[own] - done, ends))
        done += count
    return blocks
