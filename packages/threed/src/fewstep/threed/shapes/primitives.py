"""Signed distances of primitives about the origin: exact, negative inside, y up.

Every function takes points "n 3" and the primitive's sizes, and returns "n" distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Sizes = tuple[float, ...]


def sphere(points: Float[Tensor, "n 3"], sizes: Sizes) -> Float[Tensor, " n"]:
    """Return the distance from a sphere of sizes (radius,)."""
    return _norm(points) - sizes[0]


def box(points: Float[Tensor, "n 3"], sizes: Sizes) -> Float[Tensor, " n"]:
    """Return the distance from a box of half sizes (x, y, z)."""
    return _from_planes(points.abs() - points.new_tensor(sizes))


def cylinder(points: Float[Tensor, "n 3"], sizes: Sizes) -> Float[Tensor, " n"]:
    """Return the distance from an upright cylinder of sizes (radius, half height)."""
    profile = torch.stack((_norm(points[:, ::2]), points[:, 1].abs()), 1)
    return _from_planes(profile - points.new_tensor(sizes))


def cone(points: Float[Tensor, "n 3"], sizes: Sizes) -> Float[Tensor, " n"]:
    """Return the distance from an upright cone of sizes (radius of the base, half height), the tip up."""
    radius, half = sizes
    out, up = _norm(points[:, ::2]), points[:, 1] + half  # from the middle of the base
    slant = (radius**2 + 4 * half**2) ** 0.5
    side = ((out - radius) * 2 * half + up * radius) / slant
    inside = torch.maximum(side, -up)
    along = (((radius - out) * radius + up * 2 * half) / slant**2).clamp(0, 1)  # 0 at the rim, 1 at the tip
    from_ends = _norm(torch.stack((out - radius * (1 - along), up - 2 * half * along), 1))
    from_side = torch.where((along > 0) & (along < 1), side.abs(), from_ends)
    from_base = torch.where(out < radius, up.abs(), _norm(torch.stack((out - radius, up), 1)))
    return torch.where(inside <= 0, inside, torch.minimum(from_side, from_base))


def torus(points: Float[Tensor, "n 3"], sizes: Sizes) -> Float[Tensor, " n"]:
    """Return the distance from a torus that lies flat, of sizes (radius of the ring, radius of the tube)."""
    return _norm(torch.stack((_norm(points[:, ::2]) - sizes[0], points[:, 1]), 1)) - sizes[1]


@dataclass(frozen=True)
class Primitive:
    """One kind of solid: ``sizes`` of the largest one, and ``extent``: from sizes to half its bounding box (x, y, z).

    ``front``: from sizes to how far its surface reaches towards +z at half height. ``flat``: things can stand on it.
    ``convex``: rays converge fast.
    """

    distance: Callable[[Tensor, Sizes], Tensor]
    sizes: Sizes
    extent: Callable[[Sizes], tuple[float, float, float]]
    front: Callable[[Sizes], float]
    flat: bool = False
    convex: bool = True


PRIMITIVES: dict[str, Primitive] = {
    "sphere": Primitive(sphere, (0.4,), lambda s: (s[0], s[0], s[0]), lambda s: s[0]),
    "box": Primitive(box, (0.42, 0.3, 0.34), lambda s: (s[0], s[1], s[2]), lambda s: s[2], True),
    "cylinder": Primitive(cylinder, (0.34, 0.36), lambda s: (s[0], s[1], s[0]), lambda s: s[0], True),
    "cone": Primitive(cone, (0.42, 0.42), lambda s: (s[0], s[1], s[0]), lambda s: s[0] / 2),
    "torus": Primitive(
        torus, (0.3, 0.13), lambda s: (s[0] + s[1], s[1], s[0] + s[1]), lambda s: s[0] + s[1], convex=False
    ),
}


def _norm(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The length, whose gradient is 0 at 0."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1)
    return length


def _from_planes(beyond: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Distance from a box when ``beyond`` is how far outside each pair of its planes a point is."""
    within = beyond.amax(1)
    return torch.where(within <= 0, within, _norm(beyond.clamp_min(0)))
