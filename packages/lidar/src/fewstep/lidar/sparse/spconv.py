"""Sparse convolutions by spconv's kernels that gather, multiply and scatter in one, on this package's kernel maps.

What they do not compute (other dtypes, gradients of weights) plain torch does, so results differ by rounding only.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fewstep.core.errors import UserError
from fewstep.lidar.sparse.ops import convolve, product
from fewstep.lidar.sparse.sites import Pairs

ALIGNED = 8  # channels must be multiples of it in half precision


class SpconvBackend:
    """spconv's native algorithm: float32, on a GPU float16 as well (which it also adds up in); the rest by torch."""

    name = "spconv"

    def __init__(self) -> None:
        try:
            from spconv.core import ConvAlgo
            from spconv.pytorch import ops
        except ImportError as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"backend spconv: spconv cannot be imported ({line}); `pip install spconv-cu126` (or the one for your "
                "CUDA version), or leave domain.backend at torch"
            ) from error
        self._ops, self._native = ops, ConvAlgo.Native
        # tables live as long as the maps they were made of: the key is the first tensor of `reads`
        self._tables: Any = WeakIdKeyDictionary()

    def convolve(self, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return the convolution, differentiable twice."""
        return convolve(x, weight, pairs, self._product)

    def _product(self, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        if not (self._computes(x, weight) and pairs.products):
            return product(x, weight, pairs)
        table, counts = self._table(pairs)
        kernel = weight.permute(2, 0, 1).contiguous()  # "co k ci"
        same = pairs.center is not None  # the centre's rows are not gathered then
        with torch.no_grad():
            out: Tensor = self._ops.indice_conv(
                x.contiguous(), kernel, table, counts, pairs.rows_out, False, same, self._native
            )
        return out

    def _computes(self, x: Tensor, weight: Tensor) -> bool:
        if x.dtype == torch.float16:
            return x.is_cuda and all(width % ALIGNED == 0 for width in weight.shape[1:])
        return x.dtype == torch.float32

    def _table(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return rows read and added to as int32 "2 k p", filled up with -1, and how many there are for each k."""
        first, other = pairs.reads[0], pairs.adds[0]
        kept = self._tables.get(first)
        if kept is not None and kept[0]() is other:
            return kept[1], kept[2]
        counts = [0 if k == pairs.center else len(rows) for k, rows in enumerate(pairs.reads)]
        table = first.new_full((2, len(counts), max(1, *counts)), -1, dtype=torch.int32)
        for k, count in enumerate(counts):
            table[0, k, :count], table[1, k, :count] = pairs.reads[k][:count], pairs.adds[k][:count]
        numbers = torch.tensor(counts, dtype=torch.int32, device=first.device)
        self._tables[first] = (weakref.ref(other), table, numbers)
        return table, numbers
