"""Splats over pixels, front to back, in tiles: exact, with gradients written out, and memory bounded by one block.

The rules are gsplat's: an alpha is capped at ``CAP``, one below ``FAINTEST`` is nothing, and a pixel is finished by the
splat that would take its transmittance to ``OPAQUE`` or below, which itself is left out.

A splat's alpha is exp of a polynomial of the second degree in the pixel's coordinates, so a block of splats on a tile
is one matrix product, and so is what the gradient of every coefficient adds up to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.threed.gaussians.tiles import FAINTEST, Tiles

CAP = 0.999
OPAQUE = 1e-4
BLOCK = 256  # splats of a tile at a time
ELEMENTS = 2**17  # pairs of a splat and a pixel at a time, where tiles have few splats


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
    """Some splats of some tiles: "k p m" for tiles, pixels and splats."""

    places: Tensor  # " k", of the tiles
    index: Tensor  # "k m", where the splats are among those of all tiles, one behind the last for none
    alpha: Tensor  # "k p m", 0 where the splat is left out
    clear: Tensor  # "k p m", 1 - alpha
    before: Tensor  # "k p m", transmittance in front of the splat
    after: Tensor  # "k p", transmittance behind all of them
    free: Tensor | None  # "k p m", where the alpha is not capped; None: everywhere


def _blocks(over: Tiles, basis: Tensor, coefficients: Tensor, capped: Tensor) -> Iterator[_Block]:
    """Give the blocks of every tile from near to far, until each of its pixels is finished."""
    below = _below(FAINTEST, basis.dtype)
    for places, starts, counts in over.groups(ELEMENTS, BLOCK):
        left = through = basis.new_ones(len(places), basis.shape[1])
        for first in range(0, int(counts[0]), BLOCK):
            column = torch.arange(first, min(first + BLOCK, int(counts[0])), device=basis.device)
            index = torch.where(column < counts[:, None], starts[:, None] + column, len(over.ids))
            raw = torch.matmul(basis.T, coefficients[index].transpose(1, 2)).exp_()
            alpha, free = F.threshold(raw, below, 0), None
            if bool(capped[index].any()):
                alpha, free = alpha.clamp_max(CAP), raw <= CAP
            # one column more than splats, so that "before" and "after" are views of one running product
            running = raw.new_empty(*raw.shape[:2], raw.shape[2] + 1)
            running[..., 0] = left
            clear = running[..., 1:] = 1 - alpha
            running = torch.cumprod(running, dim=2)
            left = after = running[..., -1]
            if bool(left.min() <= OPAQUE):
                # the product only falls, so all behind the splat that finishes a pixel are left out with it
                alpha = alpha * torch.sign(F.relu(running[..., 1:] - OPAQUE))
                clear = 1 - alpha
                after = through * clear.prod(dim=2)
            yield _Block(places, index, alpha, clear, running[..., :-1], after, free)
            going = ((left > OPAQUE).any(dim=1) & (counts > first + BLOCK)).nonzero()[:, 0]
            if len(going) == 0:
                break
            places, starts, counts, left, through = (each[going] for each in (places, starts, counts, left, after))


def _below(value: float, dtype: torch.dtype) -> float:
    """Return the largest number of ``dtype`` below ``value``: what is above it is ``value`` or more."""
    exact = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(exact, torch.zeros_like(exact)))


def _basis(size: int, like: Tensor) -> Tensor:
    """Return 1, x, y, xx, xy, yy of the pixels of a tile, row by row, "6 p"; 0 is ``size // 2`` from its corner."""
    along = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 - size // 2
    y, x = (each.flatten() for each in torch.meshgrid(along, along, indexing="ij"))
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


def _coefficients(means2d: Tensor, conics: Tensor, opacities: Tensor, over: Tiles) -> Tensor:
    """Return log(alpha) of the splats of all tiles as polynomials in the coordinates of their tiles, "m+1 6".

    The last stands for no splat.
    """
    # in double, for what is far away cancels
    (x, y), (a, b, c) = (means2d[over.ids].double() - over.centres).unbind(-1), conics[over.ids].double().unbind(-1)
    constant = opacities[over.ids].double().log() - 0.5 * (a * x * x + c * y * y) - b * x * y
    found = torch.stack([constant, a * x + b * y, b * x + c * y, -0.5 * a, -b, -0.5 * c], dim=-1)
    return torch.cat([found, found.new_tensor([[-1e4, 0, 0, 0, 0, 0]])]).to(means2d.dtype)


def _prepared(
    means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, over: Tiles
) -> tuple[Iterator[_Block], Tensor, Tensor]:
    """Return the blocks, the features of the splats of all tiles ("m+1 d") and the tiles' basis."""
    basis = _basis(over.size, features)
    capped = F.pad((opacities > CAP)[over.ids], (0, 1))
    blocks = _blocks(over, basis, _coefficients(means2d, conics, opacities, over), capped)
    return blocks, F.pad(features[over.ids], (0, 0, 0, 1)), basis


class _Composite(torch.autograd.Function):
    """Compositing whose backward pass goes through the blocks again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, over: Tiles
    ) -> tuple[Tensor, Tensor]:
        blocks, colours, basis = _prepared(means2d, conics, opacities, features, over)
        total = features.new_zeros(over.across * over.down, features.shape[1], basis.shape[1])
        clear = features.new_ones(len(total), 1, basis.shape[1])
        for block in blocks:
            weight = block.alpha * block.before
            total[block.places] += torch.bmm(colours[block.index].mT, weight.mT)
            clear[block.places, 0] = block.after
        image, clear = over.joined(total), over.joined(clear)
        ctx.save_for_backward(means2d, conics, opacities, features, image, clear)
        ctx.over = over
        return image, 1 - clear

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, image_grad: Tensor, alpha_grad: Tensor) -> tuple[Tensor | None, ...]:
        means2d, conics, opacities, features, image, clear = ctx.saved_tensors
        over: Tiles = ctx.over
        blocks, colours, basis = _prepared(means2d, conics, opacities, features, over)
        # what a pixel's gradient loses to all splats behind: their light, and the change of the alpha
        behind = (image * image_grad).sum(dim=-1, keepdim=True) - clear * alpha_grad
        towards, rest = over.cut(image_grad), over.cut(behind)[:, 0]
        by_coefficient, by_colour = colours.new_zeros(len(colours), 6), torch.zeros_like(colours)
        for block in blocks:
            there = towards[block.places]
            weight = block.alpha * block.before
            by_colour[block.index] = torch.bmm(there, weight).mT
            light = torch.bmm(there.mT, colours[block.index].mT).mul_(weight)
            remaining = rest[block.places, :, None] - light.cumsum(dim=2)
            rest[block.places] = remaining[..., -1]
            # C = ... + T a f + (1 - a) * (all behind): dC/dlog a = T a f - a behind / (1 - a)
            by_exponent = light.sub_(remaining.mul_(block.alpha).div_(block.clear))
            if block.free is not None:
                by_exponent = by_exponent * block.free
            by_coefficient[block.index] = torch.matmul(basis, by_exponent).mT
        grads = _by_splat(by_coefficient[:-1], means2d, conics, opacities, over)
        return (*grads, torch.zeros_like(features).index_add_(0, over.ids, by_colour[:-1]), None)


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
