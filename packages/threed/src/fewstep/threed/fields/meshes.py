"""Meshes of a signed distance: marching cubes on a grid read in blocks, clean-up, refinement and vertex colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.threed.fields.normals import TINY, ScalarField, value_and_gradient

BLOCK = 64**3  # points of the grid a field sees at once
MAX_RESOLUTION = 1024


@dataclass(frozen=True)
class Mesh:
    """Triangles that face outward (counter-clockwise from outside), y up, with colours per vertex or none."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colours: Float[Tensor, "v 3"] | None = None

    def volume(self) -> float:
        """Return the enclosed volume, positive when the faces look outward."""
        a, b, c = self.vertices.detach()[self.faces].unbind(1)
        return float((a * torch.linalg.cross(b, c)).sum() / 6)

    def coloured(self, colour: Callable[[Tensor], Tensor]) -> Mesh:
        """Return the mesh with the colours a field has at its vertices, clamped to [0, 1]."""
        with torch.no_grad():
            parts = [colour(part) for part in torch.split(self.vertices, BLOCK)]
        return replace(self, colours=torch.cat(parts).clamp(0, 1))


def sample_grid(
    field: ScalarField,
    resolution: int,
    bound: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "r r r"]:
    """Return the field at ``resolution`` points per axis from -bound to bound, indexed x, y, z, read in blocks."""
    check(
        2 <= resolution <= MAX_RESOLUTION,
        f"a mesh needs a grid of 2 to {MAX_RESOLUTION} points per axis, got {resolution}",
    )
    axis = torch.linspace(-bound, bound, resolution, dtype=dtype, device=device)
    out = torch.empty(resolution**3, dtype=dtype)
    with torch.no_grad():
        for start in range(0, len(out), BLOCK):
            index = torch.arange(start, min(start + BLOCK, len(out)), device=device)
            x, y, z = index // resolution**2, index // resolution % resolution, index % resolution
            out[start : start + BLOCK] = field(torch.stack([axis[x], axis[y], axis[z]], dim=-1)).to("cpu", dtype)
    return out.reshape(resolution, resolution, resolution)


def extract_mesh(
    sdf: ScalarField,
    resolution: int = 128,
    *,
    bound: float = 1.0,
    level: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Mesh:
    """Return the surface where ``sdf``, negative inside, is ``level``, by marching cubes on [-bound, bound]^3.

    Pass minus a density, and minus its threshold, for a density. Raises UserError where there is no surface, or
    where the field is not finite.
    """
    from skimage.measure import marching_cubes

    grid = sample_grid(sdf, resolution, bound, device, dtype).numpy()
    if not np.isfinite(grid).all():
        raise UserError("the field is not finite everywhere on the grid: no mesh can be made of it; train it again")
    if not grid.min() < level < grid.max():
        side = "above" if grid.min() >= level else "below"
        raise UserError(
            f"no surface to make a mesh of: the field stays {side} {level:g} (it spans {grid.min():.3g} to "
            f"{grid.max():.3g}); train longer or choose another level"
        )
    spacing = 2 * bound / (resolution - 1)
    vertices, faces, _, _ = marching_cubes(grid, level, spacing=(spacing,) * 3)
    moved = torch.from_numpy(np.ascontiguousarray(vertices)).to(device, dtype) - bound
    return Mesh(moved, torch.from_numpy(np.ascontiguousarray(faces)).long().to(device))


def refine_vertices(
    sdf: ScalarField, mesh: Mesh, *, level: float = 0.0, steps: int = 1, limit: float = 0.05, trainable: bool = False
) -> Mesh:
    """Return the mesh with every vertex moved by Newton steps v - (f(v) - level) g/|g|^2, each at most ``limit`` long.

    trainable: whether the vertices of the last step carry the field's gradient: that of an implicit surface, as the
    gradient of f stays a constant in it.
    """
    vertices = mesh.vertices.detach()
    for step in range(steps):
        _, gradient = value_and_gradient(sdf, vertices)
        with torch.set_grad_enabled(trainable and step == steps - 1):
            off = sdf(vertices) - level
            shift = off[..., None] * gradient / (gradient * gradient).sum(-1, keepdim=True).clamp_min(TINY)
            size = shift.norm(dim=-1, keepdim=True).clamp_min(TINY)
            vertices = vertices - shift * (limit / size).clamp_max(1.0)
    return replace(mesh, vertices=vertices)


def keep_large_parts(mesh: Mesh, share: float = 0.02) -> Mesh:
    """Return the mesh without its connected parts of less than ``share`` of the largest part's faces."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    check(0 <= share <= 1, f"share must be between 0 and 1, got {share}")
    faces = mesh.faces.cpu().numpy()
    rows, columns = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    size = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    part = label[faces[:, 0]]
    counts = np.bincount(part)
    kept = torch.from_numpy(counts[part] >= share * counts.max())
    used, packed = torch.unique(mesh.faces[kept.to(mesh.faces.device)], return_inverse=True)
    colours = None if mesh.colours is None else mesh.colours[used]
    return Mesh(mesh.vertices[used], packed, colours)
