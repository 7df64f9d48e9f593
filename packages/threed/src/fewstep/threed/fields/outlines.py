"""The gradient of a mesh's outline: what pictures gain and lose where the edge of a surface moves.

A pixel is the mean of what its area sees. As an outline moves, its gradient is the integral along it of the speed
across the line times the difference of the two sides (Reynolds' transport theorem; in rendering, Li et al. 2018). The
integral is taken by points along the edges, so that triangles may be smaller than pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewstep.threed.cameras import Camera
from fewstep.threed.fields.mesh_raster import NEAR, plane_points
from fewstep.threed.fields.meshes import Mesh

STEP = 0.5  # of a sub-pixel: the distance between points along an edge
AWAY = 1.0  # sub-pixels from an edge to where its other side is looked up: past rounding to the pixel's centre

Shade = Callable[[Int[Tensor, " n"], Float[Tensor, "n 3"], Float[Tensor, " n"]], Float[Tensor, "n c"]]
"""What is seen at points given by face, barycentrics and depth."""


def outline_gradient(
    mesh: Mesh, camera: Camera, fine: Camera, picture: Float[Tensor, "b c y x"], shade: Shade
) -> Float[Tensor, "b c h w"]:
    """Return zeros that carry the gradient of the outlines to the vertices.

    picture: what ``fine`` sees, ``camera`` with pixels cut into smaller ones. Edges hidden by other surfaces have none;
    lines where two surfaces pass through each other are not followed.
    """
    total = torch.zeros(len(camera) * camera.height * camera.width, picture.shape[1]).to(picture)
    pairs, sides = _edges(mesh.faces)
    samples = fine.width / camera.width
    for index in range(len(camera)):
        view = fine.select(index, index + 1)
        projected = plane_points(mesh.vertices, view)[0]
        edge, face = _silhouette(projected.detach(), mesh.faces, pairs, sides)
        number, share = _along(projected.detach(), pairs[edge])
        ends = projected[pairs[edge[number]]]
        at = ends[:, 0] / ends[:, 0, 2:] * (1 - share) + ends[:, 1] / ends[:, 1, 2:] * share
        at = at[:, :2]
        line = (ends[:, 1, :2] / ends[:, 1, 2:] - ends[:, 0, :2] / ends[:, 0, 2:]).detach()
        length = line.norm(dim=-1, keepdim=True)
        across = torch.stack([line[:, 1], -line[:, 0]], dim=-1) / length
        third = _third(mesh.faces[face], pairs[edge])[number]
        inner = projected.detach()[third, :2] / projected.detach()[third, 2:] - at.detach()
        across = torch.where((across * inner).sum(-1, keepdim=True) > 0, -across, across)  # away from the triangle
        piece = length / _count(length)
        with torch.no_grad():
            depth = 1 / ((1 - share) / ends[:, :1, 2] + share / ends[:, 1:, 2])
            beside = at + AWAY * across
            other = _look_up(picture[index], beside)
            hides = (other[:, 3] > 0) & (other[:, 4] < depth[:, 0])
            weights = _weights(mesh.faces[face[number]], pairs[edge[number]], share, ends[:, :, 2], depth)
            own = torch.zeros_like(other)
            own[~hides] = shade(face[number][~hides], weights[~hides], depth[~hides, 0])
            gain = torch.where(hides[:, None], 0, own - other) * piece / samples
        moved = ((at - at.detach()) * across).sum(-1, keepdim=True) / samples
        pixel = (at.detach() / samples).floor()
        shown = (pixel >= 0).all(-1) & (pixel[:, 0] < camera.width) & (pixel[:, 1] < camera.height)
        pixel = pixel[shown].long()
        place = (index * camera.height + pixel[:, 1]) * camera.width + pixel[:, 0]
        total = total.index_add(0, place, (gain * moved)[shown])
    return total.reshape(len(camera), camera.height, camera.width, -1).permute(0, 3, 1, 2)


def _edges(faces: Int[Tensor, "f 3"]) -> tuple[Int[Tensor, "e 2"], Int[Tensor, "e 2"]]:
    """Return the mesh's edges and the first and last of the faces at each, the same one at a border."""
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    owner = torch.arange(len(faces), device=faces.device).repeat(3)
    size = int(faces.max()) + 1 if len(faces) else 1
    keys, number = torch.unique(ends[:, 0] * size + ends[:, 1], return_inverse=True)
    pairs = torch.stack([keys // size, keys % size], dim=1)
    first = torch.full((len(pairs),), len(faces), device=faces.device).scatter_reduce(0, number, owner, "amin")
    last = torch.full((len(pairs),), -1, device=faces.device).scatter_reduce(0, number, owner, "amax")
    return pairs, torch.stack([first, last], dim=1)


def _silhouette(
    projected: Float[Tensor, "v 3"], faces: Tensor, pairs: Tensor, sides: Tensor
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Return the edges between a face that looks at the camera and one that does not, with the face that does.

    At a border the only face counts, whichever way it looks.
    """
    a, b, c = projected[faces].unbind(1)
    front = (a * torch.linalg.cross(b, c)).sum(-1) < 0
    looks = front[sides]
    border = sides[:, 0] == sides[:, 1]
    ahead: Bool[Tensor, " e"] = (projected[pairs][..., 2] > NEAR).all(-1)
    edge = (((looks[:, 0] != looks[:, 1]) | border) & ahead).nonzero()[:, 0]
    chosen = torch.where(looks[edge, 0], sides[edge, 0], sides[edge, 1])
    return edge, chosen


def _along(projected: Tensor, pairs: Int[Tensor, "k 2"]) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 1"]]:
    """Return points evenly along edges on the screen: the edge's number and how far along it."""
    at = projected[pairs]
    at = at[..., :2] / at[..., 2:]
    count = _count((at[:, 1] - at[:, 0]).norm(dim=-1)).long()
    number = torch.repeat_interleave(torch.arange(len(pairs), device=pairs.device), count)
    place = torch.arange(len(number), device=pairs.device) - (count.cumsum(0) - count)[number]
    return number, ((place + 0.5) / count[number]).to(projected)[:, None]


def _count(length: Tensor) -> Tensor:
    return (length / STEP).ceil().clamp(1, 2**14)


def _third(faces: Int[Tensor, "k 3"], pairs: Int[Tensor, "k 2"]) -> Int[Tensor, " k"]:
    """The corner of each face that is not on its edge."""
    return faces.sum(-1) - pairs.sum(-1)


def _weights(faces: Tensor, pairs: Tensor, share: Tensor, z: Tensor, depth: Tensor) -> Float[Tensor, "n 3"]:
    """Barycentrics, in space, of points that lie ``share`` along an edge on the screen."""
    second = share * depth / z[:, 1:]
    one = (faces == pairs[:, :1]).to(share)
    other = (faces == pairs[:, 1:]).to(share)
    return one * (1 - second) + other * second


def _look_up(picture: Float[Tensor, "c y x"], at: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """The picture at the pixels points fall in, the nearest ones outside."""
    column = at[:, 0].floor().clamp(0, picture.shape[2] - 1).long()
    row = at[:, 1].floor().clamp(0, picture.shape[1] - 1).long()
    return picture[:, row, column].T
