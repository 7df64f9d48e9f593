"""Which triangle every pixel sees: a z-buffer in plain torch, the same on a CPU and a GPU, without gradient.

Triangles are listed pixel by pixel within their bounding boxes, so that the cost is that of the pixels they cover, not
of pixels times triangles. Tests are homogeneous (Olano and Greer 1997): a triangle that reaches behind the camera is
seen where it is in front of it, without being cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera

NEAR = 0.01
PIECE = 2**21  # pairs of triangle and pixel tested at a time


@dataclass(frozen=True)
class Fragments:
    """What the centres of the pixels that see something see, all cameras in one list."""

    pixel: Int[Tensor, " n"]  # its number: (camera * height + row) * width + column
    face: Int[Tensor, " n"]


def rasterise(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], camera: Camera, *, near: float = NEAR
) -> Fragments:
    """Return the nearest triangle, from either side, at every pixel's centre, and no entry where there is none.

    Edges belong to both of their triangles, so that no pixel falls between two. Raises UserError for faces that name
    vertices that are not there, and vertices that are not finite.
    """
    check(
        len(faces) == 0 or (int(faces.min()) >= 0 and int(faces.max()) < len(vertices)),
        f"the mesh has {len(vertices)} vertices and faces that name others: it is damaged",
    )
    check(bool(vertices.isfinite().all()), "the mesh has vertices that are not finite; train it again")
    pixels, found = [], []
    size = camera.width * camera.height
    for index in range(len(camera)):
        one = camera.select(index, index + 1)
        face = _nearest(plane_points(vertices.detach(), one)[0], faces, one, near)
        pixel = (face < len(faces)).nonzero()[:, 0]
        pixels.append(pixel + index * size)
        found.append(face[pixel])
    return Fragments(torch.cat(pixels), torch.cat(found))


def plane_points(vertices: Float[Tensor, "v 3"], camera: Camera) -> Float[Tensor, "b v 3"]:
    """Return vertices as (column * z, row * z, z): what they are in pixels, before the division by depth."""
    local = vertices @ camera.world_to_camera[:, :3, :3].mT + camera.world_to_camera[:, None, :3, 3]
    return local @ camera.intrinsics.mT


def edge_areas(corners: Float[Tensor, "n 3 3"], centre: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
    """Return the areas opposite a triangle's corners seen from a pixel: their shares are its barycentrics in space.

    corners: by :func:`plane_points`. They are moved to the pixel first: what is left is exact for small triangles, and
    exactly opposite for the two triangles at an edge.
    """
    off = corners[..., :2] - corners[..., 2:] * centre[:, None]
    one, other = off[:, [1, 2, 0]], off[:, [2, 0, 1]]
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]


def centres(pixel: Int[Tensor, " n"], width: int, height: int, dtype: torch.dtype) -> Float[Tensor, "n 2"]:
    """Return the (column, row) of pixels' centres, from their numbers within their pictures or a stack of them."""
    return torch.stack([pixel % width, pixel // width % height], dim=-1).to(dtype) + 0.5


def _nearest(points: Float[Tensor, "v 3"], faces: Tensor, camera: Camera, near: float) -> Int[Tensor, " n"]:
    """Return the face every pixel sees, the number of faces where it sees none."""
    total, none = camera.width * camera.height, len(faces)
    depth = torch.full((total,), torch.inf, dtype=points.dtype, device=points.device)
    seen = torch.full((total,), none, dtype=torch.long, device=points.device)
    triangles = points[faces]
    for face, pixel in _pairs(triangles, camera, near):
        corners = triangles.index_select(0, face)
        area = edge_areas(corners, centres(pixel, camera.width, camera.height, points.dtype))
        whole = area.sum(-1)
        inside = ((area >= 0).all(-1) & (whole > 0)) | ((area <= 0).all(-1) & (whole < 0))
        area, whole, face, pixel, z = area[inside], whole[inside], face[inside], pixel[inside], corners[inside, :, 2]
        at = (area * z).sum(-1) / whole
        ahead = at > near
        at, face, pixel = at[ahead], face[ahead], pixel[ahead]
        nearer = depth.scatter_reduce(0, pixel, at, "amin")
        winner = at == nearer[pixel]
        first = torch.full_like(seen, none).scatter_reduce(0, pixel[winner], face[winner], "amin")
        seen = torch.where(nearer < depth, first, torch.minimum(seen, first))
        depth = nearer
    return seen


def _pairs(corners: Float[Tensor, "f 3 3"], camera: Camera, near: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield triangles with the pixels whose centres are within their bounding boxes, at most PIECE pairs at a time."""
    z = corners[..., 2]
    crossing, shown = (z <= near).any(-1), (z > near).any(-1)
    at = corners[..., :2] / torch.where(crossing, 1.0, z.T).T[..., None]
    slack = 1e-3  # pixels: rounding of the division
    limit = torch.tensor([camera.width, camera.height], device=corners.device)
    low = torch.where(crossing, 0.0, at.amin(1).T - slack).T
    high = torch.where(crossing, limit[:, None].to(corners), at.amax(1).T + slack).T
    # clamped as numbers first: what is far outside overflows an integer
    start = (low - 0.5).ceil().clamp(min=0).minimum(limit.to(corners)).long()
    stop = ((high - 0.5).floor() + 1).clamp(min=0).minimum(limit.to(corners)).long()
    sides = (stop - start).clamp_min(0)
    count = sides.prod(-1) * shown
    kept = count.nonzero()[:, 0]
    ends = count[kept].cumsum(0)
    begun = 0
    while begun < len(kept):
        before = int(ends[begun - 1]) if begun else 0
        stopped = max(int(torch.searchsorted(ends, before + PIECE, right=True)), begun + 1)
        some = kept[begun:stopped]
        each = count[some]
        row = torch.repeat_interleave(torch.arange(len(some), device=corners.device), each)
        place = torch.arange(len(row), device=corners.device) - (each.cumsum(0) - each)[row]
        across = sides[some, 0][row]
        column = start[some, 0][row] + place % across
        yield some[row], (start[some, 1][row] + place // across) * camera.width + column
        begun = stopped
