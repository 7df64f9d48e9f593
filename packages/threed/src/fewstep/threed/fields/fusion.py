"""Meshes of what cameras all around agree on: depths fused into a signed distance (Curless and Levoy, 1996)."""

from __future__ import annotations

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
DISTANCE, FOV_Y_DEG = 3.2, 40.0
COVERED = 0.5  # coverage from which a pixel is taken to see something


def all_around(size: int, around: int = AROUND) -> Camera:
    """Return cameras on three rings and one above and below, that see the cube [-1, 1]^3 whole from outside."""
    step = torch.arange(around, dtype=torch.float32) * (360 / around)
    azimuth = torch.cat([step + 360 / around / 2 * (ring % 2) for ring in range(len(ELEVATIONS_DEG))])
    elevation = torch.tensor(ELEVATIONS_DEG).repeat_interleave(around)
    azimuth, elevation = torch.cat([azimuth, torch.zeros(2)]), torch.cat([elevation, torch.tensor([88.0, -88.0])])
    full = torch.ones_like(azimuth)
    return orbit(azimuth, elevation, full * DISTANCE, full * FOV_Y_DEG, size, size)


class FusedDepths:
    """What views say of points: a truncated signed distance, negative inside, and colours."""

    def __init__(self, seen: Views, camera: Camera, band: float) -> None:
        self.seen, self.camera, self.band = seen, camera, band
        covered = seen.alpha >= COVERED
        self.depth = torch.where(covered, seen.depth / seen.alpha.clamp_min(1e-6), 0.0)
        self.maps = torch.cat([self.depth, covered.to(seen.rgb.dtype)], dim=1)

    def distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the mean over views of the distance to what each sees, in [-band, band].

        A view says nothing of points further than ``band`` behind what it sees; a point of which no view says anything
        is inside. A pixel that sees nothing says that its whole ray is free.
        """
        total, said = torch.zeros(len(points)), torch.zeros(len(points))
        at, z = self._places(points)
        read = grid_sample(self.maps, at, mode="nearest", padding_mode="zeros", align_corners=False)[:, :, 0]
        covered = read[:, 1] > 0
        gap = torch.where(covered, read[:, 0] - z, self.band).clamp(max=self.band)
        speaks = gap > -self.band
        total, said = (gap * speaks).sum(0), speaks.sum(0)
        return torch.where(said > 0, total / said.clamp_min(1), -self.band)

    def colour(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return the mean colour of the pixels that see points from near, grey where none does."""
        at, z = self._places(points)
        straight = self.seen.rgb - (1 - self.seen.alpha)  # over white: what is left is the scene's own light
        picture = torch.cat([straight, self.seen.alpha, self.depth], dim=1)
        read = grid_sample(picture, at, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]
        near = ((read[:, 4] - z).abs() < self.band) & (read[:, 3] > COVERED)
        weight = near * read[:, 3]
        rgb = (read[:, :3] * near[:, None]).sum(0) / weight.sum(0).clamp_min(1e-6)
        return torch.where(near.any(0), rgb, torch.full_like(rgb, 0.5)).T

    def _places(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "b 1 n 2"], Float[Tensor, "b n"]]:
        pixels, z = self.camera.project(points)
        size = pixels.new_tensor([self.camera.width, self.camera.height])
        return (2 * pixels / size - 1)[:, None], z


@torch.no_grad()
def fuse(
    look: Callable[[Camera], Views], resolution: int = 64, size: int = 80, band: float = 0.08, bound: float = 1.0
) -> Mesh:
    """Return the coloured mesh of what ``look`` shows over white from all around; UserError where there is no surface.

    band: how thick, in world units, a surface is taken to be at least.  bound: half the side of the cube it lies in.
    """
    camera = all_around(size)
    seen = look(camera)
    if not bool((seen.alpha >= COVERED).any()):
        raise UserError("nothing to make a mesh of: from no side is any pixel covered by half; train longer")
    fused = FusedDepths(seen, camera, band)
    mesh = keep_large_parts(extract_mesh(fused.distance, resolution, bound=bound))
    parts = [fused.colour(part) for part in torch.split(mesh.vertices, BLOCK)]
    return replace(mesh, colours=torch.cat(parts).clamp(0, 1))
