"""Meshes with a picture for their colours: cut flat, baked from a colour field, written as files others open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.mesh_raster import centres, edge_areas, rasterise
from fewstep.threed.fields.mesh_rendering import vertex_normals
from fewstep.threed.fields.meshes import BLOCK, Mesh

MAX_SIZE = 8192
PADDING = 4  # texels around a chart that continue its triangles; beyond them its last colour does
CELL = 6  # the fewest texels along a triangle of the plain atlas
METHODS = ("auto", "xatlas", "triangles")


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh cut at its seams: ``uv`` in [0, 1], v upward, and a ``texture`` whose first row is the top (v = 1)."""

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    normals: Float[Tensor, "v 3"]
    uv: Float[Tensor, "v 2"]
    texture: Float[Tensor, "3 h w"]


@dataclass(frozen=True)
class Atlas:
    """Where triangles lie in a texture: vertices cut at seams, as rows of the mesh's, and their ``uv``."""

    rows: Int[Tensor, " v"]
    faces: Int[Tensor, "f 3"]
    uv: Float[Tensor, "v 2"]


def bake(
    mesh: Mesh, colour: Callable[[Tensor], Tensor], size: int = 1024, *, method: str = "auto", padding: int = PADDING
) -> TexturedMesh:
    """Return ``mesh`` with the colours, "n 3" to "n 3", a field has all over it, in a texture of ``size`` squared.

    method: ``xatlas`` joins triangles into charts and needs that package, ``triangles`` lays each out alone; auto takes
    the first where it is installed. Raises UserError for another method, an empty mesh, and a texture too small or
    large.
    """
    check(len(mesh.faces) > 0, "the mesh has no triangles: there is nothing to bake a texture for")
    check(16 <= size <= MAX_SIZE, f"a texture has 16 to {MAX_SIZE} texels a side, not {size}")
    atlas = unwrap(mesh, size, method=method, padding=padding)
    vertices = mesh.vertices.detach()
    texture = _bake(atlas, vertices[atlas.rows], colour, size, padding)
    normals = vertex_normals(Mesh(vertices, mesh.faces))[atlas.rows]
    return TexturedMesh(vertices[atlas.rows], atlas.faces, normals, atlas.uv, texture)


def unwrap(mesh: Mesh, size: int, *, method: str = "auto", padding: int = PADDING) -> Atlas:
    """Return the mesh laid out flat, charts ``padding`` texels apart; errors as for :func:`bake`."""
    check(method in METHODS, f"texture method '{method}': use one of {', '.join(METHODS)}")
    found = find_spec("xatlas") is not None
    check(
        found or method != "xatlas",
        "texture method xatlas: that package is not installed; pip install xatlas, or use method triangles",
    )
    if found and method != "triangles":
        return _charts(mesh, size, padding)
    return _triangles(mesh, size)


def look_up(texture: Float[Tensor, "c h w"], uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """Return a texture at ``uv`` as graphics cards read it: bilinear, v upward, texels' centres at (i + 0.5) / size."""
    at = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1)[None, None]
    found = torch.nn.functional.grid_sample(
        texture[None], at.to(texture), padding_mode="border", align_corners=False, mode="bilinear"
    )
    return found[0, :, 0].T


def _charts(mesh: Mesh, size: int, padding: int) -> Atlas:
    import xatlas  # type: ignore[import-not-found, unused-ignore]

    made = xatlas.Atlas()
    made.add_mesh(mesh.vertices.detach().cpu().float().contiguous().numpy(), mesh.faces.cpu().numpy().astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, padding
    packing.create_image = False
    made.generate(pack_options=packing)
    rows, faces, uv = made[0]
    device = mesh.vertices.device
    return Atlas(
        torch.from_numpy(rows.astype(np.int64)).to(device),
        torch.from_numpy(faces.astype(np.int64)).to(device),
        torch.from_numpy(uv.copy()).to(mesh.vertices).clamp(0, 1),
    )


def _triangles(mesh: Mesh, size: int) -> Atlas:
    """Two triangles in every square of a grid, apart by more than a texel."""
    count = len(mesh.faces)
    across = int(np.ceil(np.sqrt((count + 1) // 2)))
    cell = size // across
    need = across * CELL
    check(
        cell >= CELL, f"a texture of {size} texels a side is too small for {count} triangles: use {need}, or a mesh "
        "with fewer"
    )  # fmt: skip
    number = torch.arange(count, device=mesh.vertices.device)
    corner = torch.stack([number // 2 % across, number // 2 // across], dim=-1) * cell
    low, far = 0.5, cell - 2.5  # no texel is read from both hypotenuses
    first = mesh.vertices.new_tensor([[low, low], [far, low], [low, far]])
    second = cell - first[[0, 1, 2]]
    place = torch.where((number % 2 == 0)[:, None, None], first, second) + corner[:, None]
    faces = torch.arange(3 * count, device=mesh.vertices.device).reshape(-1, 3)
    uv = place.reshape(-1, 2) / size
    return Atlas(mesh.faces.reshape(-1), faces, torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=-1))


def _bake(
    atlas: Atlas, vertices: Float[Tensor, "v 3"], colour: Callable[[Tensor], Tensor], size: int, padding: int
) -> Float[Tensor, "3 h w"]:
    """Colour every texel by the point of its triangle, or, off the charts, of the triangle nearest in the texture."""
    from scipy.ndimage import distance_transform_edt

    flat = torch.stack([atlas.uv[:, 0] * size, (1 - atlas.uv[:, 1]) * size, torch.ones_like(atlas.uv[:, 0])], dim=-1)
    eye = torch.eye(4, dtype=flat.dtype, device=flat.device)
    seen = rasterise(flat, atlas.faces, Camera(eye[None], eye[None, :3, :3], size, size))
    face = torch.full((size * size,), -1, device=flat.device)
    face[seen.pixel] = seen.face
    check(len(seen.pixel) > 0, f"a texture of {size} texels a side is too small for this mesh: use a larger one")
    away, nearest = distance_transform_edt(face.reshape(size, size).cpu().numpy() < 0, return_indices=True)
    source = torch.from_numpy(nearest[0].astype(np.int64) * size + nearest[1]).reshape(-1).to(flat.device)
    near = torch.from_numpy(away <= padding).reshape(-1).to(flat.device)
    texels = near.nonzero()[:, 0]
    out = torch.zeros(size * size, 3, dtype=flat.dtype, device=flat.device)
    with torch.no_grad():
        for some in torch.split(texels, BLOCK):
            corner = atlas.faces[face[source[some]]]
            area = edge_areas(flat[corner], centres(some, size, size, flat.dtype))
            weight = area / area.sum(-1, keepdim=True)
            points = (weight[..., None] * vertices[corner]).sum(1)
            out[some] = colour(points).to(out).clamp(0, 1)
    out = torch.where(near[:, None], out, out[source])
    return out.T.reshape(3, size, size)
