"""Splats over pixels, front to back, in tiles: exact, with gradients written out, and memory bounded by one block.

The rules are gsplat's: an alpha is capped at ``CAP``, one below ``FAINTEST`` is nothing, and a pixel is finished by the
splat that would take its transmittance to ``OPAQUE`` or below, which itself is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.threed.gaussians.projection import EXTENT

CAP = 0.999
FAINTEST = 1 / 255
OPAQUE = 1e-4
BLOCK = 2048  # splats of a tile at a time


@dataclass(frozen=True)
class Tile:
    """A part of the image: columns [left, right), rows [top, bottom), and its splats from near to far."""

    left: int
    right: int
    top: int
    bottom: int
    ids: Int[Tensor, " m"]

    def pixels(self, like: Tensor) -> Tensor:
        """Return the centres of the pixels, row by row, "p 2"."""
        x = torch.arange(self.left, self.right, dtype=like.dtype, device=like.device) + 0.5
        y = torch.arange(self.top, self.bottom, dtype=like.dtype, device=like.device) + 0.5
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


@torch.no_grad()
def tiles(
    means2d: Float[Tensor, "n 2"],
    conics: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    depths: Float[Tensor, " n"],
    width: int,
    height: int,
    tile_size: int = 16,
) -> list[Tile]:
    """Return the tiles that any splat reaches with ``FAINTEST`` or more; equal depths keep the order of the input."""
    across, down = -(-width // tile_size), -(-height // tile_size)
    # an ellipse o exp(-s) >= 1/255 is s <= log(255 o): its box is that many standard deviations wide
    reach = (2 * (opacities / FAINTEST).clamp_min(1e-30).log()).clamp(0, EXTENT**2).sqrt()
    determinant = conics[:, 0] * conics[:, 2] - conics[:, 1] ** 2
    half = reach[:, None] * (conics[:, [2, 0]] / determinant[:, None]).sqrt() + 1e-3  # against rounding
    # a pixel's centre is half a pixel inside its tile
    first = ((means2d - half - 0.5) / tile_size).floor()
    last = ((means2d + half - 0.5) / tile_size).floor() + 1
    limits = means2d.new_tensor([across, down])
    first = torch.minimum(first.clamp_min(0), limits).long()
    last = torch.minimum(last.clamp_min(0), limits).long()
    spans = (last - first).clamp_min(0) * (opacities >= FAINTEST)[:, None]

    order = torch.argsort(depths, stable=True)
    counts = spans.prod(dim=-1)[order]
    ids = torch.repeat_interleave(order, counts)
    within = torch.arange(len(ids), device=ids.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    columns = spans[ids, 0]
    place = (first[ids, 1] + within // columns) * across + first[ids, 0] + within % columns
    place, sorting = torch.sort(place, stable=True)  # stable: near to far inside a tile
    used, sizes = torch.unique_consecutive(place, return_counts=True)
    found = []
    for tile, members in zip(used.tolist(), torch.split(ids[sorting], sizes.tolist()), strict=True):
        left, top = tile % across * tile_size, tile // across * tile_size
        found.append(Tile(left, min(left + tile_size, width), top, min(top + tile_size, height), members))
    return found


def composite(
    means2d: Float[Tensor, "n 2"],
    conics: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    features: Float[Tensor, "n d"],
    over: list[Tile],
    width: int,
    height: int,
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    """Return what the splats add up to and their alpha, without a background; gradients to all four inputs."""
    image, alpha = _Composite.apply(means2d, conics, opacities, features, over, width, height)  # type: ignore[no-untyped-call]
    return image, alpha


@dataclass(frozen=True)
class _Block:
    """Some splats (m) of a tile on its pixels (p): "m p" everywhere but ``ids``; masked-out alphas are 0."""

    ids: Tensor
    dx: Tensor
    dy: Tensor
    falloff: Tensor
    alpha: Tensor
    free: Tensor  # where the alpha follows its inputs: not capped, not masked out
    before: Tensor  # transmittance in front of the splat


def _blocks(tile: Tile, means2d: Tensor, conics: Tensor, opacities: Tensor) -> Iterator[_Block]:
    """Give the blocks of a tile from near to far, until every pixel is finished."""
    pixels = tile.pixels(means2d)
    left_over = torch.ones(len(pixels), dtype=means2d.dtype, device=means2d.device)
    for ids in torch.split(tile.ids, BLOCK):
        dx = pixels[:, 0] - means2d[ids, 0, None]
        dy = pixels[:, 1] - means2d[ids, 1, None]
        a, b, c = conics[ids].unsqueeze(-1).unbind(1)
        falloff = torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        raw = opacities[ids, None] * falloff
        alpha = raw.clamp_max(CAP).masked_fill(raw < FAINTEST, 0)
        after = torch.cumprod(1 - alpha, dim=0) * left_over
        before = torch.cat([left_over[None], after[:-1]])
        # the product only falls, so all behind the splat that finishes a pixel are masked out with it
        kept = after > OPAQUE
        alpha = alpha * kept
        yield _Block(ids, dx, dy, falloff, alpha, (raw <= CAP) & (alpha > 0), before)
        left_over = after[-1]
        if not bool(kept[-1].any()):
            return


class _Composite(torch.autograd.Function):
    """Compositing whose backward pass goes through the blocks again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        opacities: Tensor,
        features: Tensor,
        over: list[Tile],
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        image = features.new_zeros(height, width, features.shape[1])
        clear = features.new_ones(height, width, 1)
        for tile in over:
            rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
            total = features.new_zeros(image[rows, columns].shape).flatten(0, 1)
            left = features.new_ones(len(total))
            for block in _blocks(tile, means2d, conics, opacities):
                total += (block.alpha * block.before).T @ features[block.ids]
                left = left * (1 - block.alpha).prod(dim=0)
            image[rows, columns] = total.view_as(image[rows, columns])
            clear[rows, columns] = left.view_as(clear[rows, columns])
        ctx.save_for_backward(means2d, conics, opacities, features, image, clear)
        ctx.over = over
        return image, 1 - clear

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, image_grad: Tensor, alpha_grad: Tensor) -> tuple[Tensor | None, ...]:
        means2d, conics, opacities, features, image, clear = ctx.saved_tensors
        grads = [torch.zeros_like(each) for each in (means2d, conics, opacities, features)]
        # what a pixel's gradient loses to all splats behind: their light, and the change of the alpha
        behind = (image * image_grad).sum(dim=-1) - clear[..., 0] * alpha_grad[..., 0]
        for tile in ctx.over:
            rows, columns = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
            towards = image_grad[rows, columns].flatten(0, 1)
            rest = behind[rows, columns].flatten()
            for block in _blocks(tile, means2d, conics, opacities):
                rest = _backward(block, features, conics, opacities, towards, rest, grads)
        return (*grads, None, None, None)


def _backward(
    block: _Block,
    features: Tensor,
    conics: Tensor,
    opacities: Tensor,
    towards: Tensor,
    rest: Tensor,
    grads: list[Tensor],
) -> Tensor:
    """Add a block's gradients to those of means, conics, opacities and features; return what ``rest`` has left."""
    ids, weight = block.ids, block.alpha * block.before
    grads[3].index_add_(0, ids, weight @ towards)
    value = features[ids] @ towards.T
    remaining = rest - (weight * value).cumsum(dim=0)
    # C = ... + T a f + (1 - a) * (all behind): dC/da = T f - behind / (1 - a)
    by_alpha = (block.before * value - remaining / (1 - block.alpha)) * block.free
    grads[2].index_add_(0, ids, (by_alpha * block.falloff).sum(dim=1))
    by_exponent = -by_alpha * block.falloff * opacities[ids, None]
    a, b, c = conics[ids].unsqueeze(-1).unbind(1)
    dx, dy = block.dx, block.dy
    by_mean = [-(by_exponent * (a * dx + b * dy)).sum(1), -(by_exponent * (b * dx + c * dy)).sum(1)]
    grads[0].index_add_(0, ids, torch.stack(by_mean, dim=-1))
    by_conic = [0.5 * by_exponent * dx * dx, by_exponent * dx * dy, 0.5 * by_exponent * dy * dy]
    grads[1].index_add_(0, ids, torch.stack([each.sum(1) for each in by_conic], dim=-1))
    return remaining[-1]
