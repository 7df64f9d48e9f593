"""The surface of a solid: points spread evenly over it, and a watertight mesh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.shapes.solids import Solid

SIDE = 1.05  # half the side of the cube a mesh is made in
SHELL = 0.01  # points this near the surface are moved onto it
PIECE = 2**15  # points tried at a time
ROUNDS = 1000  # of those


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a solid with its outward unit normals and its colours there."""

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]
    colours: Float[Tensor, "n 3"]


@dataclass(frozen=True)
class Mesh:
    """Triangles, counter-clockwise as seen from outside, with one colour per vertex."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colours: Float[Tensor, "v 3"]


def sample_surface(solid: Solid, count: int, seed: int = 0) -> SurfacePoints:
    """Return ``count`` points of the surface in float64, a function of the solid and the seed.

    Even points of space that are within ``SHELL`` of the surface, moved onto it along the normal: even on the surface
    up to second order in ``SHELL``, but for seams. Raises UserError when ``count`` is not positive.
    """
    check(count >= 1, f"{count} points of a surface: there must be at least one")
    centres = torch.tensor([part.centre for part in solid.parts], dtype=torch.float64)
    extents = torch.tensor([part.extent for part in solid.parts], dtype=torch.float64) + SHELL
    low, high = (centres - extents).amin(0), (centres + extents).amax(0)
    kept: list[Tensor] = []
    for number in range(ROUNDS):
        points = low + (high - low) * Rng(seed, 0, (number,), "surface").uniform("space", (PIECE, 3))[0]
        kept.append(_onto(solid, points[solid.distance(points).abs() < SHELL]))
        if sum(map(len, kept)) >= count:
            break
    points = torch.cat(kept)[:count]
    check(len(points) == count, f"{count} points of a surface are too many; ask for {len(points)} at most")
    return SurfacePoints(points, solid.normal(points), solid.albedo(points))


def extract_mesh(solid: Solid, resolution: int = 64) -> Mesh:
    """Return the surface by marching cubes of ``resolution`` cells a side, in float64: closed, at second order right.

    Raises UserError when the grid is so coarse that it misses the solid.
    """
    from skimage.measure import marching_cubes

    check(resolution >= 8, f"a mesh of {resolution} cells a side is too coarse; use at least 8")
    axis = torch.linspace(-SIDE, SIDE, resolution + 1, dtype=torch.float64)
    # slab by slab: a fine grid is held once, the parts' distances never
    grid = torch.stack([solid.distance(torch.cartesian_prod(x[None], axis, axis)) for x in axis])
    values = grid.reshape((resolution + 1,) * 3)
    vertices, faces, _, _ = marching_cubes(values.numpy(), 0.0, spacing=(2 * SIDE / resolution,) * 3)
    at = torch.from_numpy(vertices.copy()).double() - SIDE
    return Mesh(at, torch.from_numpy(faces.copy()).long(), solid.albedo(at))


def _onto(solid: Solid, near: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
    """Move points onto the surface; those that end up within another part, at a seam, are dropped."""
    points = near - solid.distance(near)[:, None] * solid.normal(near)
    return points[solid.distance(points).abs() < 1e-9]
