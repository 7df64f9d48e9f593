"""Pictures of meshes with gradient to vertices and colours, in plain torch.

Within a triangle the gradient is that of interpolation. At outlines, where a pixel sees now one surface and now
another, it is that of the areas they cover: :mod:`fewstep.threed.fields.outlines`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.mesh_raster import NEAR, centres, edge_areas, plane_points, rasterise
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.fields.normals import unit
from fewstep.threed.fields.outlines import outline_gradient
from fewstep.threed.views import Views

GREY = 0.7  # of a mesh without colours
MAX_SAMPLES = 16

ColourField = Callable[[Tensor], Tensor]
"""A colour in [0, 1] at every point: "n 3" to "n 3"."""


@dataclass(frozen=True)
class Hits:
    """Points of a surface that pixels see, with gradient to its vertices."""

    face: Int[Tensor, " n"]
    barycentric: Float[Tensor, "n 3"]  # in space, not on the screen
    depth: Float[Tensor, " n"]


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    colour: ColourField | None = None,
    *,
    background: float | Tensor = 1.0,
    samples: int = 2,
    smooth: bool = True,
    outlines: bool = True,
) -> Views:
    """Return what ``camera`` sees of ``mesh``, ``samples`` squared points of it in every pixel.

    colour: a field asked at the points seen, in place of the mesh's own colours (grey without either). background: one
    grey, or colours "3" or "b 3". smooth: normals between those of the vertices, else the triangles' own. outlines:
    whether vertices get the gradient of what their outline covers, alpha's only one. Raises UserError for a mesh that
    is damaged and for ``samples`` that are not 1 to 16.
    """
    check(1 <= samples <= MAX_SAMPLES, f"samples={samples} along a pixel's side: use 1 to {MAX_SAMPLES}")
    fine = camera.resized(camera.width * samples, camera.height * samples).to(mesh.vertices.dtype)
    found = rasterise(mesh.vertices, mesh.faces, fine, near=NEAR)
    normals = vertex_normals(mesh) if smooth else None
    values = torch.zeros(0, 8, dtype=mesh.vertices.dtype, device=mesh.vertices.device)
    if len(found.pixel):
        hits = interpolate_hits(mesh, fine, found.pixel, found.face)
        values = _shade(mesh, hits, colour, normals)
    behind = _background(background, len(camera), mesh.vertices)
    empty = torch.cat([behind, behind.new_zeros(len(camera), 5)], dim=1)
    sheet = empty[:, None].expand(-1, fine.height * fine.width, -1).reshape(-1, 8)
    sheet = sheet.index_copy(0, found.pixel, values)
    picture = sheet.reshape(len(camera), fine.height, fine.width, 8).permute(0, 3, 1, 2)
    out = avg_pool2d(picture, samples)
    if outlines and mesh.vertices.requires_grad and torch.is_grad_enabled():

        def inner(hits: Hits) -> Tensor:
            return _shade(mesh, hits, colour, normals)

        out = out + outline_gradient(mesh, camera, fine, picture.detach(), lambda f, b, z: inner(Hits(f, b, z)))
    return Views(out[:, :3], out[:, 3:4], out[:, 4:5], out[:, 5:])


def interpolate_hits(mesh: Mesh, camera: Camera, pixel: Int[Tensor, " n"], face: Int[Tensor, " n"]) -> Hits:
    """Return where pixels' centres meet the planes of the triangles they see, with gradient to the vertices."""
    number = pixel // (camera.width * camera.height)
    corners = plane_points(mesh.vertices, camera)[number[:, None], mesh.faces[face]]
    area = edge_areas(corners, centres(pixel, camera.width, camera.height, mesh.vertices.dtype))
    barycentric = area / area.sum(-1, keepdim=True)
    return Hits(face, barycentric, (barycentric * corners[..., 2]).sum(-1))


def vertex_normals(mesh: Mesh) -> Float[Tensor, "v 3"]:
    """Return unit normals at the vertices: the mean of their triangles', by area, with gradient."""
    normal = face_normals(mesh)
    total = torch.zeros_like(mesh.vertices)
    for corner in range(3):
        total = total.index_add(0, mesh.faces[:, corner], normal)
    return unit(total)


def face_normals(mesh: Mesh) -> Float[Tensor, "f 3"]:
    """Return the triangles' outward normals, twice their area long, with gradient."""
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    normal: Tensor = torch.linalg.cross(b - a, c - a)
    return normal


def _shade(mesh: Mesh, hits: Hits, colour: ColourField | None, normals: Tensor | None) -> Float[Tensor, "n 8"]:
    """Colour, alpha, depth and normal of points of the surface, in one row each."""
    corner = mesh.faces[hits.face]
    weight = hits.barycentric[..., None]
    if colour is not None:
        rgb = colour((weight * mesh.vertices[corner]).sum(1)).to(mesh.vertices)
    elif mesh.colours is not None:
        rgb = (weight * mesh.colours.to(mesh.vertices)[corner]).sum(1)
    else:
        rgb = torch.full_like(hits.barycentric, GREY)
    normal = face_normals(mesh)[hits.face] if normals is None else (weight * normals[corner]).sum(1)
    depth = hits.depth[:, None]
    return torch.cat([rgb, torch.ones_like(depth), depth, unit(normal)], dim=1)


def _background(background: float | Tensor, views: int, like: Tensor) -> Float[Tensor, "b 3"]:
    colour = torch.as_tensor(background, dtype=like.dtype, device=like.device)
    known = colour.ndim == 0 or tuple(colour.shape) in {(3,), (1, 3), (views, 3)}
    check(known, f"background: one grey, or colours [3] or [{views}, 3], got {list(colour.shape)}")
    return colour.expand(views, 3)
