"""Shares of pixels that shapes and digits cover, with sub-pixel positions: edges are one pixel wide.

Every function takes ``x`` "... 1 w" and ``y`` "... h 1", distances of pixel centres from the thing's centroid, and its
radius "... 1 1", all in pixels, and returns the covered shares "... h w" in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.video.world.config import SHAPES

RING = 0.3  # half the width of a ring's line, as a share of its radius
ARM = 0.36  # half the width of a cross's arms
CELLS = 8  # of a digit's drawing along a side
FINE = 4  # points along a cell at which a digit's centroid is taken
SHARPNESS = 1.5  # pixels a cell has there

Coverage = Callable[[Tensor, Tensor, Tensor], Tensor]


def disc(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover a disc."""
    return _inside((x * x + y * y).sqrt_().sub_(radius))


def ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover a ring."""
    line = RING * radius
    return _inside((x * x + y * y).sqrt_().sub_(radius - line).abs_().sub_(line))


def square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover a square, exactly: ``radius`` is that of the disc of the same area."""
    half = radius * (math.sqrt(math.pi) / 2)
    return _box(x, half) * _box(y, half)


def diamond(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover a square on its corner."""
    return _inside((x.abs() + y.abs()).sub_(radius).mul_(math.sqrt(0.5)))


def triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover a triangle with equal sides, one of them at the bottom."""
    slanted = x.abs() * math.sqrt(0.75) - y / 2
    return _inside(torch.maximum(slanted, y).sub_(radius / 2))


def cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Cover an upright cross, exactly."""
    arm = ARM * radius
    thin_x, thin_y = _box(x, arm), _box(y, arm)
    return thin_x * _box(y, radius) + (_box(x, radius) - thin_x) * thin_y


def digit(x: Tensor, y: Tensor, radius: Tensor, drawing: Float[Tensor, "*b 8 8"]) -> Tensor:
    """Cover a digit: where a drawing, interpolated between cells, is above one half; twice ``radius`` is its side."""
    cell = radius * (2 / CELLS)
    offset = _centroid(drawing)[..., None, None]
    value = _tents(y / cell + offset[..., 1, :, :]) @ drawing
    value = value @ _tents((x / cell + offset[..., 0, :, :]).mT).mT
    return _inside((0.5 - value).mul_(cell))  # a drawing rises over a cell


@cache
def drawings() -> tuple[Float[Tensor, "n 8 8"], tuple[tuple[int, ...], ...]]:
    """Return scikit-learn's digits in [0, 1], and which of them show 0, 1, ..., 9."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = tuple(tuple(int(row) for row in (data.target == digit).nonzero()[0]) for digit in range(10))
    return torch.from_numpy(data.images).float() / 16, rows


COVERAGE: dict[str, Coverage] = dict(zip(SHAPES, (disc, ring, square, diamond, triangle, cross), strict=True))


def _inside(distance: Tensor) -> Tensor:
    return distance.neg_().add_(0.5).clamp_(0, 1)


def _box(x: Tensor, half: Tensor) -> Tensor:
    """Return the share of each pixel's extent that lies within ``half`` of the centre; exact below a pixel too."""
    return (torch.minimum(x + 0.5, half) - torch.maximum(x - 0.5, -half)).clamp_min_(0)


def _tents(at: Float[Tensor, "*b m 1"]) -> Float[Tensor, "*b m 8"]:
    """Return weights of linear interpolation between cells, ``at`` cells from a drawing's middle; nothing outside."""
    centres = torch.arange(CELLS, dtype=at.dtype) - (CELLS - 1) / 2
    return (1 - (at - centres).abs()).clamp_min_(0)


def _centroid(drawing: Float[Tensor, "*b 8 8"]) -> Float[Tensor, "*b 2"]:
    """Return the centroid (x, y) of what :func:`digit` covers, in cells from the drawing's middle."""
    at = (torch.arange(CELLS * FINE, dtype=drawing.dtype) + 0.5) / FINE - CELLS / 2
    tents = _tents(at[:, None])
    covered = _inside((0.5 - tents @ drawing @ tents.mT).mul_(SHARPNESS))
    weight = covered.sum((-2, -1)).clamp_min(1e-6)
    return torch.stack((covered.sum(-2) @ at, covered.sum(-1) @ at), -1) / weight[..., None]
