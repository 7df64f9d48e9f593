"""Colour that depends on the direction of view: real spherical harmonics up to degree 3, as Gaussian splats store them.

The order and the signs are those of the INRIA files: inside a band from m = -l to l, with the Condon-Shortley phase.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import check

MAX_DEGREE = 3
BAND_0 = 0.5 / math.sqrt(math.pi)


def coefficient_count(degree: int) -> int:
    """Return how many harmonics there are up to ``degree``; UserError beyond degree 3."""
    check(0 <= degree <= MAX_DEGREE, f"degree {degree} of spherical harmonics: must be 0 to {MAX_DEGREE}")
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """Return the degree whose harmonics are ``count`` in number; UserError when there is none up to 3."""
    degree = math.isqrt(max(count, 0)) - 1
    fits = 0 <= degree <= MAX_DEGREE and (degree + 1) ** 2 == count
    check(fits, f"{count} spherical harmonics: must be 1, 4, 9 or 16 (degree 0 to {MAX_DEGREE})")
    return degree


def basis(degree: int, directions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b k"]:
    """Return the harmonics up to ``degree`` at unit ``directions``."""
    coefficient_count(degree)
    x, y, z = directions.unbind(-1)
    found = [torch.full_like(x, BAND_0)]
    if degree >= 1:
        scale = math.sqrt(3 / (4 * math.pi))
        found += [-scale * y, scale * z, -scale * x]
    if degree >= 2:
        scale = math.sqrt(15 / (4 * math.pi))
        found += [
            scale * x * y,
            -scale * y * z,
            math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
            -scale * x * z,
            scale / 2 * (x * x - y * y),
        ]
    if degree >= 3:
        outer, middle = math.sqrt(35 / (32 * math.pi)), math.sqrt(105 / (4 * math.pi))
        inner = math.sqrt(21 / (32 * math.pi))
        found += [
            -outer * y * (3 * x * x - y * y),
            middle * x * y * z,
            -inner * y * (5 * z * z - 1),
            math.sqrt(7 / (16 * math.pi)) * z * (5 * z * z - 3),
            -inner * x * (5 * z * z - 1),
            middle / 2 * z * (x * x - y * y),
            -outer * x * (x * x - 3 * y * y),
        ]
    return torch.stack(found, dim=-1)


def evaluate(
    degree: int, directions: Float[Tensor, "*b 3"], coefficients: Float[Tensor, "*b k c"]
) -> Float[Tensor, "*b c"]:
    """Return the sum of harmonics up to ``degree`` along ``directions`` of any length; UserError for too few of them.

    The colour of a splat is this plus 0.5, at least 0.
    """
    count = coefficient_count(degree)
    have = coefficients.shape[-2]
    check(have >= count, f"degree {degree} needs {count} spherical harmonics, there are {have}")
    weights = basis(degree, F.normalize(directions, dim=-1))
    return (weights[..., None] * coefficients[..., :count, :]).sum(dim=-2)


def from_rgb(rgb: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return the coefficients of band 0 that show ``rgb`` from everywhere."""
    return (rgb - 0.5) / BAND_0


def to_rgb(band_0: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
    """Return the colour that band 0 shows alone: the inverse of :func:`from_rgb`."""
    return band_0 * BAND_0 + 0.5
