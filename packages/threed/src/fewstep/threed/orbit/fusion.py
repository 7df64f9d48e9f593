"""A mesh of what depth pictures agree on: a truncated signed distance, fused over cameras around the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.meshes import Mesh, extract_mesh, keep_large_parts
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.orbit.supervision import render_clouds

RINGS = ((-20.0, 6), (20.0, 6), (60.0, 3), (-75.0, 1), (88.0, 1))  # elevations, and how many cameras stand there
SOLID = 0.5  # alpha from which a pixel sees the object


@dataclass(frozen=True)
class DepthPictures:
    """What ``n`` cameras see: colours over any background, alpha, and depth along z where alpha is above one half."""

    rgb: Float[Tensor, "n 3 h w"]
    alpha: Float[Tensor, "n 1 h w"]
    depth: Float[Tensor, "n 1 h w"]
    camera: Camera


def around(size: int, *, distance: float = 3.2, fov_y_deg: float = 24.0) -> Camera:
    """Return the cameras a mesh is fused from: rings at several elevations, shifted against each other."""
    azimuth, elevation = [], []
    for ring, (height, count) in enumerate(RINGS):
        azimuth += [360 * (index + ring / 2) / count for index in range(count)]
        elevation += [height] * count
    full = torch.ones(len(azimuth))
    return orbit(torch.tensor(azimuth), torch.tensor(elevation), full * distance, full * fov_y_deg, size, size)


@torch.no_grad()
def depth_pictures(cloud: Gaussians, camera: Camera) -> DepthPictures:
    """Return what cameras see of Gaussians."""
    seen = render_clouds([cloud], camera)
    return DepthPictures(seen.rgb[0], seen.alpha[0], seen.depth[0], camera)


def fuse(pictures: DepthPictures, resolution: int = 64, *, bound: float = 0.7, truncation: float = 0.06) -> Mesh:
    """Return the coloured surface the pictures agree on, in the cube of half side ``bound``.

    A point is outside where a camera sees past it, and inside where all see something in front of it; in between, up to
    ``truncation`` from what is seen, distances along z are averaged. Raises UserError where nothing is left.
    """
    like = pictures.depth

    def distance(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return _distance(points.to(like), pictures, truncation).to(points)

    mesh = extract_mesh(distance, resolution, bound=bound, dtype=like.dtype, device=like.device)
    return keep_large_parts(mesh, 0.1).coloured(lambda points: _colour(points.to(like), pictures, truncation))


def mesh_of(cloud: Gaussians, resolution: int = 64, size: int = 64) -> Mesh:
    """Return a mesh of Gaussians, fused from pictures of ``size`` pixels; UserError where there is no surface."""
    return fuse(depth_pictures(cloud, around(size)), resolution)


def _seen(
    points: Float[Tensor, "n 3"], pictures: DepthPictures
) -> tuple[Float[Tensor, "c n"], Float[Tensor, "c n"], Float[Tensor, "c 3 n"]]:
    """Return how far points are in front of what is seen at their pixels, its alpha, and its colour, per camera."""
    camera = pictures.camera
    at, z = camera.project(points)
    size = at.new_tensor([camera.width, camera.height])
    grid = (2 * at / size - 1)[:, None]
    planes = torch.cat([pictures.alpha, pictures.rgb], 1)
    planes = grid_sample(planes, grid, padding_mode="border", align_corners=False)[:, :, 0]
    # across an edge depths must not be mixed
    depth = grid_sample(pictures.depth, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0, 0]
    return depth - z, planes[:, 0], planes[:, 1:]


def _distance(points: Float[Tensor, "n 3"], pictures: DepthPictures, truncation: float) -> Float[Tensor, " n"]:
    ahead, alpha, _ = _seen(points, pictures)
    value = torch.where(alpha > SOLID, ahead, truncation).clamp(-truncation, truncation)
    # a camera knows nothing of what lies deeper than the truncation behind what it sees
    known = (alpha <= SOLID) | (ahead > -truncation)
    carved = (alpha <= SOLID).any(0)
    mean = (value * known).sum(0) / known.sum(0).clamp_min(1)
    # the silhouette's own edge is finer than a pixel: alpha 0.5 is its zero
    edge = (2 * (SOLID - alpha)).clamp(-1, 1).amax(0) * truncation
    fused = torch.where(known.any(0), mean, -truncation)
    return torch.where(carved, torch.maximum(edge, fused), torch.maximum(fused, edge))


def _colour(points: Float[Tensor, "n 3"], pictures: DepthPictures, truncation: float) -> Float[Tensor, "n 3"]:
    ahead, alpha, rgb = _seen(points, pictures)
    # pixels on an edge are mixed with the background
    weight = ((ahead.abs() < truncation) & (alpha > 0.95)).to(rgb) + 1e-6 * alpha.clamp_min(1e-3)
    return ((rgb * weight[:, None]).sum(0) / weight.sum(0)).T
