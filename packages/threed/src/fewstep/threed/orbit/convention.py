"""SV3D's orbit: its frames, the angles its network is told, its guidance per frame, and the cameras they mean."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera, orbit

SV3D_FRAMES = 21
AUGMENTATION = 1e-5  # noise on the picture's latent, which SV3D's network is told


def orbit_azimuths(views: int = SV3D_FRAMES) -> Float[Tensor, " v"]:
    """Return the views' azimuths in degrees, [0, 360), counted from the picture's, which is the last view."""
    check(views >= 2, f"an orbit needs two views or more, got {views}")
    return torch.arange(1, views + 1, dtype=torch.float64) * (360 / views) % 360


def triangular_guidance(views: int = SV3D_FRAMES, least: float = 1.0, most: float = 2.5) -> Float[Tensor, " v"]:
    """Return a guidance scale per view: ``least`` at the picture, the last view, ``most`` at the view opposite to it.

    ``views // 2`` steps up, the rest down: with an odd number of views the two slopes differ, as SV3D's do.
    """
    check(views >= 2, f"an orbit needs two views or more, got {views}")
    up = views // 2
    rise = torch.linspace(least, most, up + 1, dtype=torch.float64)[1:]
    return torch.cat([rise, torch.linspace(most, least, views - up + 1, dtype=torch.float64)[1:]])


def orbit_condition(elevation_deg: Float[Tensor, " b"], views: int) -> dict[str, Float[Tensor, "b v"]]:
    """Return ``azimuth`` and ``polar`` of orbits at one elevation each, in radians; polar angles start at up."""
    azimuth = torch.deg2rad(orbit_azimuths(views)).to(elevation_deg)
    polar = torch.deg2rad(90 - elevation_deg)
    return {"azimuth": azimuth.expand(len(polar), -1).clone(), "polar": polar[:, None].expand(-1, views).clone()}


def orbit_cameras(
    azimuth: Float[Tensor, "b v"],
    polar: Float[Tensor, "b v"],
    size: int,
    *,
    distance: float,
    fov_y_deg: float,
    clockwise: bool = False,
) -> Camera:
    """Return the b * v cameras of orbits, a sample's views adjacent, for square images of ``size`` pixels.

    Azimuths grow counter-clockwise seen from above; ``clockwise``: for networks trained on orbits the other way round.
    """
    turn = torch.rad2deg(azimuth).flatten() * (-1 if clockwise else 1)
    elevation = 90 - torch.rad2deg(polar).flatten()
    full = torch.ones_like(turn)
    return orbit(turn, elevation, full * distance, full * fov_y_deg, size, size)
