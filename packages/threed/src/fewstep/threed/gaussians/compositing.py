"""Splats over pixels, front to back, in tiles: exact, with gradients written out, and memory bounded by one block.

The rules are gsplat's: an alpha is capped at ``CAP``, one below ``FAINTEST`` is nothing, and a pixel is finished by the
splat that would take its transmittance to ``OPAQUE`` or below, which itself is left out.

A splat's alpha is exp of a polynomial of the second degree in the pixel's coordinates, so a block of splats on a tile is
one matrix product, and so is what the gradient of every coefficient adds up to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.threed.gaussians.tiles import FAINTEST, Tile, Tiles

CAP = 0.999
OPAQUE = 1e-4
BLOCK = 256  # splats of a tile at a time


def composite(
    means2d: Float[Tensor, "n 2"],
    conics: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    features: Float[Tensor, "n d"],
    over: Tiles,
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    """Return what the splats add up to and their alpha, without a background; gradients to all four inputs."""
    image, alpha = _Composite.apply(means2d, conics, opacities, features, over)  # type: ignore[no-untyped-call]
    return image, alpha


@dataclass(frozen=True)
class _Block:
    """Splats start..stop (m) on the unfinished pixels (p) of a tile; ``rows`` are these pixels, None: all of them."""

    start: int
    stop: int
    rows: Tensor | None
    basis: Tensor  # "6 p"
    alpha: Tensor  # "p m", 0 where the splat is left out
    clear: Tensor  # "p m", 1 - alpha
    before: Tensor  # "p m", transmittance in front of the splat
    after: Tensor  # " p", transmittance behind the last one
    free: Tensor | None  # "p m", where the alpha is not capped; None: nowhere


def _blocks(tile: Tile, basis: Tensor, coefficients: Tensor, capped: Tensor) -> Iterator[_Block]:
    """Give the blocks of a tile from near to far, until every pixel is finished."""
    left = basis.new_ones(basis.shape[1])
    rows: Tensor | None = None
    below = _below(FAINTEST, basis.dtype)
    for start in range(tile.start, tile.stop, BLOCK):
        stop = min(start + BLOCK, tile.stop)
        raw = torch.exp(basis.T @ coefficients[start:stop].T)
        alpha = F.threshold(raw, below, 0)
        free = None
        if bool(capped[start:stop].any()):
            free = raw <= CAP
            alpha = alpha.clamp_max(CAP)
        # one column more than splats, so that "before" and "after" are views of one running product
        running = raw.new_empty(raw.shape[0], raw.shape[1] + 1)
        running[:, 0] = left
        clear = running[:, 1:] = 1 - alpha
        running = torch.cumprod(running, dim=1)
        left = after = running[:, -1]
        finished = bool(left.min() <= OPAQUE)
        if finished:
            # the product only falls, so all behind the splat that finishes a pixel are left out with it
            alpha = alpha * (running[:, 1:] > OPAQUE)
            clear = 1 - alpha
            after = running[:, 0] * clear.prod(dim=1)
        yield _Block(start, stop, rows, basis, alpha, clear, running[:, :-1], after, free)
        if finished:
            going = (left > OPAQUE).nonzero()[:, 0]
            if len(going) == 0:
                return
            rows = going if rows is None else rows[going]
            basis, left = basis[:, going], left[going]


def _below(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` below ``value``: what is above it is ``value`` or more."""
    exact = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(exact, torch.zeros_like(exact)))


def _basis(width: int, height: int, size: int, like: Tensor) -> Tensor:
    """Return 1, x, y, xx, xy, yy of the pixels of a tile, row by row, "6 p"; 0 is ``size // 2`` from its corner."""
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5 - size // 2
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5 - size // 2
    y, x = (each.flatten() for each in torch.meshgrid(y, x, indexing="ij"))
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


def _coefficients(means2d: Tensor, conics: Tensor, opacities: Tensor, over: Tiles) -> Tensor:
    """Return log(alpha) of the splats of all tiles as polynomials in the coordinates of their tiles, "m 6"."""
    # in double, for what is far away cancels
    (x, y), (a, b, c) = (means2d[over.ids].double() - over.centres).unbind(-1), conics[over.ids].double().unbind(-1)
    constant = opacities[over.ids].double().log() - 0.5 * (a * x * x + c * y * y) - b * x * y
    return torch.stack([constant, a * x + b * y, b * x + c * y, -0.5 * a, -b, -0.5 * c], dim=-1).to(means2d.dtype)


class _Composite(torch.autograd.Function):
    """Compositing whose backward pass goes through the blocks again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, over: Tiles
    ) -> tuple[Tensor, Tensor]:
        image = features.new_zeros(over.height, over.width, features.shape[1])
        clear = features.new_ones(over.height, over.width, 1)
        coefficients = _coefficients(means2d, conics, opacities, over)
        colours, capped = features[over.ids].T.contiguous(), (opacities > CAP)[over.ids]
        bases = _Bases(over.size, features)
        for tile in over:
            basis = bases(tile)
            total = features.new_zeros(features.shape[1], basis.shape[1])
            left = features.new_ones(basis.shape[1])
            for block in _blocks(tile, basis, coefficients, capped):
                seen = colours[:, block.start : block.stop] @ (block.alpha * block.before).T
                if block.rows is None:
                    total += seen
                    left = block.after
                else:
                    total[:, block.rows] += seen
                    left[block.rows] = block.after
            rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
            image[rows, columns] = total.T.view_as(image[rows, columns])
            clear[rows, columns] = left.view_as(clear[rows, columns])
        ctx.save_for_backward(means2d, conics, opacities, features, image, clear)
        ctx.over = over
        return image, 1 - clear

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, image_grad: Tensor, alpha_grad: Tensor) -> tuple[Tensor | None, ...]:
        means2d, conics, opacities, features, image, clear = ctx.saved_tensors
        over: Tiles = ctx.over
        coefficients = _coefficients(means2d, conics, opacities, over)
        colours, capped = features[over.ids].T.contiguous(), (opacities > CAP)[over.ids]
        bases = _Bases(over.size, features)
        # what a pixel's gradient loses to all splats behind: their light, and the change of the alpha
        behind = (image * image_grad).sum(dim=-1) - clear[..., 0] * alpha_grad[..., 0]
        by_coefficient, by_colour = (each.new_zeros(each.shape) for each in (coefficients.T, colours))
        for tile in over:
            rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
            towards = image_grad[rows, columns].flatten(0, 1).T
            rest = behind[rows, columns].flatten()
            for block in _blocks(tile, bases(tile), coefficients, capped):
                own = slice(block.start, block.stop)
                there = towards if block.rows is None else towards[:, block.rows]
                left = rest if block.rows is None else rest[block.rows]
                by_coefficient[:, own], by_colour[:, own], left = _backward(block, colours[:, own], there, left)
                if block.rows is None:
                    rest = left
                else:
                    rest[block.rows] = left
        grads = _by_splat(by_coefficient.T, means2d, conics, opacities, over)
        return (*grads, torch.zeros_like(features).index_add_(0, over.ids, by_colour.T), None)


class _Bases:
    """The basis of every shape of tile, made once."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._size, self._like = size, like
        self._made: dict[tuple[int, int], Tensor] = {}

    def __call__(self, tile: Tile) -> Tensor:
        shape = (tile.right - tile.left, tile.bottom - tile.top)
        if shape not in self._made:
            self._made[shape] = _basis(*shape, self._size, self._like)
        return self._made[shape]


def _backward(block: _Block, colours: Tensor, towards: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a block's coefficients ("6 m") and colours ("d m"), and what ``rest`` has left."""
    weight = block.alpha * block.before
    by_colour = towards @ weight
    light = (towards.T @ colours).mul_(weight)
    remaining = rest[:, None] - light.cumsum(dim=1)
    # C = ... + T a f + (1 - a) * (all behind): dC/dlog a = T a f - a behind / (1 - a)
    by_exponent = light.sub_((block.alpha / block.clear).mul_(remaining))
    if block.free is not None:
        by_exponent = by_exponent * block.free
    return block.basis @ by_exponent, by_colour, remaining[:, -1]


def _by_splat(
    grads: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, over: Tiles
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of means, conics and opacities from those of coefficients, "m 6"."""
    (x, y), (a, b, c) = (means2d[over.ids] - over.centres).unbind(-1), conics[over.ids].unbind(-1)
    one, by_x, by_y, by_xx, by_xy, by_yy = grads.unbind(-1)
    dx, dy = by_x - x * one, by_y - y * one  # moments about the mean
    by_mean = torch.stack([a * dx + b * dy, b * dx + c * dy], dim=-1)
    xx = by_xx - 2 * x * by_x + x * x * one
    xy = by_xy - x * by_y - y * by_x + x * y * one
    yy = by_yy - 2 * y * by_y + y * y * one
    by_conic = torch.stack([-0.5 * xx, -xy, -0.5 * yy], dim=-1)

    def summed(like: Tensor, values: Tensor) -> Tensor:
        return torch.zeros_like(like).index_add_(0, over.ids, values)

    return summed(means2d, by_mean), summed(conics, by_conic), summed(opacities, one / opacities[over.ids])
