"""Meshes of what cameras all around agree on: silhouettes carve, depths are fused into a signed distance.

The solid is where no camera sees past it (the visual hull, Laurentini 1994) and where depths, averaged as a truncated
signed distance (Curless and Levoy 1996), say that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from fewstep.core.errors import UserError
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.meshes import BLOCK, Mesh, extract_mesh, keep_large_parts
from fewstep.threed.views import Views

ELEVATIONS_DEG = (-40.0, 0.0, 40.0)
AROUND = 7
DISTANCE = 3.2
COVERED = 0.5  # coverage from which something is seen
UNSEEN = 1e-3  # share of covered pixels around a point, from which it has a depth


def all_around(size: int, radius: float = 1.0, around: int = AROUND) -> Camera:
    """Return cameras on three rings and one above and below, that see the ball of ``radius`` and little more."""
    step = torch.arange(around, dtype=torch.float32) * (360 / around)
    azimuth = torch.cat([step + 360 / around / 2 * (ring % 2) for ring in range(len(ELEVATIONS_DEG))])
    elevation = torch.tensor(ELEVATIONS_DEG).repeat_interleave(around)
    azimuth, elevation = torch.cat([azimuth, torch.zeros(2)]), torch.cat([elevation, torch.tensor([88.0, -88.0])])
    full = torch.ones_like(azimuth)
    fov_y_deg = 2 * math.degrees(math.asin(min(radius / DISTANCE, 0.9)))
    return orbit(azimuth, elevation, full * DISTANCE, full * fov_y_deg, size, size)


class FusedDepths:
    """What views say of points: a truncated signed distance, negative inside, and colours."""

    def __init__(self, seen: Views, camera: Camera, band: float) -> None:
        self.seen, self.camera, self.band = seen, camera, band
        covered = ((seen.alpha >= COVERED) & (seen.depth > 0)).to(seen.rgb.dtype)
        self.depth = covered * seen.depth / seen.alpha.clamp_min(1e-6)
        # between pixels depths are mixed, but not with those of pixels that see nothing
        self.maps = torch.cat([self.depth, covered], dim=1)
        self.pixel = DISTANCE / float(camera.intrinsics[0, 0, 0])  # its side at the object

    def distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the greater of the distance to the hull and of the mean distance to what views see, in [-band, band].

        Outside the hull are points that any view sees past; its edge is where the coverage between pixels is one half.
        A view says nothing of points further than ``band`` behind what it sees; a point of which no view says anything
        is inside.
        """
        at, z = self._places(points)
        coverage = _read(self.seen.alpha, at)[:, 0].amin(0)
        carved = ((COVERED - coverage) * self.pixel).clamp(-self.band, self.band)
        # where a view sees nothing at all depths add nothing
        left = (coverage > 0).nonzero()[:, 0]
        return carved.index_copy(0, left, torch.maximum(carved[left], self._averaged(at[:, :, left], z[:, left])))

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return the mean colour of the pixels that see points from near, grey where none does."""
        at, z = self._places(points)
        straight = self.seen.rgb - (1 - self.seen.alpha)  # over white: what is left is the scene's own light
        read = _read(torch.cat([straight, self.seen.alpha, self.depth], dim=1), at, padding="border")
        near = ((read[:, 4] - z).abs() < self.band) & (read[:, 3] > COVERED)
        weight = near * read[:, 3]
        rgb = (read[:, :3] * near[:, None]).sum(0) / weight.sum(0).clamp_min(1e-6)
        return torch.where(near.any(0), rgb, torch.full_like(rgb, 0.5)).T

    def _averaged(self, at: Float[Tensor, "b 1 n 2"], z: Float[Tensor, "b n"]) -> Float[Tensor, " n"]:
        depth, covered = _read(self.maps, at).unbind(1)
        gap = (depth / covered.clamp_min(UNSEEN) - z).clamp(max=self.band)
        speaks = (gap > -self.band) & (covered > UNSEEN)
        said = speaks.sum(0)
        return torch.where(said > 0, (gap * speaks).sum(0) / said.clamp_min(1), -self.band)

    def _places(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "b 1 n 2"], Float[Tensor, "b n"]]:
        pixels, z = self.camera.project(points)
        size = pixels.new_tensor([self.camera.width, self.camera.height])
        return (2 * pixels / size - 1)[:, None], z


def _read(maps: Float[Tensor, "b c h w"], at: Float[Tensor, "b 1 n 2"], padding: str = "zeros") -> Tensor:
    """Return what pictures are between pixels, "b c n"."""
    return grid_sample(maps, at, mode="bilinear", padding_mode=padding, align_corners=False)[:, :, 0]


@torch.no_grad()
def fuse(
    look: Callable[[Camera], Views],
    resolution: int = 64,
    size: int = 80,
    band: float = 0.08,
    bound: float = 1.0,
    radius: float | None = None,
) -> Mesh:
    """Return the coloured mesh of what ``look`` shows over white from all around; UserError where there is no surface.

    band: how thick, in world units, a surface is taken to be at least.  bound: half the side of the cube it lies in.
    radius: of the ball it lies in, that of the cube's corners by default.
    """
    camera = all_around(size, bound * math.sqrt(3) if radius is None else radius)
    seen = look(camera)
    if not bool((seen.alpha >= COVERED).any()):
        raise UserError("nothing to make a mesh of: from no side is any pixel covered by half; train longer")
    fused = FusedDepths(seen, camera, band)
    mesh = keep_large_parts(extract_mesh(fused.distance, resolution, bound=bound))
    parts = [fused.colour(part) for part in torch.split(mesh.vertices, BLOCK)]
    return replace(mesh, colours=torch.cat(parts).clamp(0, 1))
