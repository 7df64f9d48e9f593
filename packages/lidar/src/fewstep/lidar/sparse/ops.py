"""The one operation of sparse convolution: rows are gathered, multiplied by a kernel element, and added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.lidar.sparse.sites import Pairs

Weight = Float[Tensor, "k ci co"]
Product = Callable[[Tensor, Tensor, Pairs], Tensor]


HALF = (torch.float16, torch.bfloat16)


def product(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Return ``out[adds_k] += x[reads_k] weight_k`` over all k; half precision adds up in float32."""
    return (_by_blocks if x.device.type == "cpu" else _by_elements)(x, weight, pairs)


def _by_elements(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    half = x.dtype in HALF
    out = x.new_zeros(pairs.rows_out, weight.shape[2], dtype=torch.float32 if half else x.dtype)
    for k, (reads, adds) in enumerate(zip(pairs.reads, pairs.adds, strict=True)):
        if k == pairs.center:
            out = out.add_(x @ weight[k]) if half else out.addmm_(x, weight[k])
        elif len(reads):
            out.index_add_(0, adds, (x.index_select(0, reads) @ weight[k]).to(out.dtype))
    return out.to(x.dtype)


def _by_blocks(x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Products are summed row by row while a block of them is in the cache, which takes less than scattering."""
    out = x.new_empty(pairs.rows_out, weight.shape[2])
    kernel = weight.unbind(0)
    for block in pairs.blocks:
        rows = x.index_select(0, block.reads)
        made = rows.new_empty(len(rows), weight.shape[2])
        sizes = [count for _, count in block.counts]
        for (k, _), part, into in zip(block.counts, torch.split(rows, sizes), torch.split(made, sizes), strict=True):
            torch.mm(part, kernel[k], out=into)
        wide = made.float() if x.dtype in HALF else made
        total = nn.functional.embedding_bag(block.order, wide, block.firsts, mode="sum", include_last_offset=True)
        own = out[block.start : block.stop]
        if pairs.center is None:
            own.copy_(total)
        elif x.dtype in HALF:
            own.copy_(total.add_(x[block.start : block.stop] @ kernel[pairs.center]))
        else:
            torch.addmm(total, x[block.start : block.stop], kernel[pairs.center], out=own)
    return out


def _weight_gradient(x: Tensor, grad: Tensor, pairs: Pairs) -> Tensor:
    """Return ``x[reads_k]^T grad[adds_k]`` for every k, "k ci co"."""
    if x.device.type == "cpu":
        return _weight_gradient_by_blocks(x, grad, pairs)
    out = x.new_zeros(len(pairs.reads), x.shape[1], grad.shape[1])
    for k, (reads, adds) in enumerate(zip(pairs.reads, pairs.adds, strict=True)):
        if k == pairs.center:
            torch.mm(x.T, grad, out=out[k])
        elif len(reads):
            torch.mm(x.index_select(0, reads).T, grad.index_select(0, adds), out=out[k])
    return out


def _weight_gradient_by_blocks(x: Tensor, grad: Tensor, pairs: Pairs) -> Tensor:
    half = x.dtype in HALF
    out = x.new_zeros(len(pairs.reads), x.shape[1], grad.shape[1], dtype=torch.float32 if half else x.dtype)
    kernel = out.unbind(0)
    if pairs.center is not None:
        kernel[pairs.center].add_(x.T @ grad)
    for block in pairs.blocks:
        sizes = [count for _, count in block.counts]
        left = torch.split(x.index_select(0, block.reads), sizes)
        right = torch.split(grad.index_select(0, block.adds), sizes)
        for (k, _), a, b in zip(block.counts, left, right, strict=True):
            if half:
                kernel[k].add_(a.T @ b)
            else:
                kernel[k].addmm_(a.T, b)
    return out.to(x.dtype)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pairs: Pairs, by: Product) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pairs, ctx.by = pairs, by
        return by(x, weight, pairs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        to_x, to_weight = ctx.needs_input_grad[:2]
        grad = grad.contiguous()
        # both are of the same two operations, so they can be differentiated again
        return (
            convolve(grad, weight.transpose(1, 2), pairs.reverse(), ctx.by) if to_x else None,
            _Correlate.apply(x, grad, pairs, ctx.by) if to_weight else None,  # type: ignore[no-untyped-call]
            None,
            None,
        )


class _Correlate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, pairs: Pairs, by: Product) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.pairs, ctx.by = pairs, by
        return _weight_gradient(x, grad, pairs)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, grad = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        to_x, to_grad = ctx.needs_input_grad[:2]
        return (
            convolve(grad, outer.transpose(1, 2), pairs.reverse(), ctx.by) if to_x else None,
            convolve(x, outer, pairs, ctx.by) if to_grad else None,
            None,
            None,
        )


def convolve(x: Float[Tensor, "v ci"], weight: Weight, pairs: Pairs, by: Product = product) -> Float[Tensor, "w co"]:
    """Return a sparse convolution: row ``adds[k]`` of the result gets ``x[reads[k]] @ weight[k]``, summed over k.

    Differentiable twice, in any floating dtype; nothing but ``x`` and the weight is kept for the backward pass.
    ``by``: what computes this sum without gradients, here and for the gradients that are convolutions themselves.
    """
    out: Tensor = _Convolve.apply(x, weight, pairs, by)  # type: ignore[no-untyped-call]
    return out
