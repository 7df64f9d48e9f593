"""Cameras that look at a point: from anywhere, from a sphere around the origin, or along a turntable."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.cameras.camera import Camera, intrinsics_of

PARALLEL = 1e-6  # sine of the angle to the vertical under which "up" says nothing


def look_at(eye: Float[Tensor, "b 3"], target: Float[Tensor, "b 3"]) -> Float[Tensor, "b 4 4"]:
    """Return the world-to-camera matrices of upright cameras at ``eye`` that look at ``target``.

    A camera that looks straight down has -z, one that looks straight up +z, at the top of its image: the limits of
    azimuth 0. Raises UserError where the two points are one.
    """
    target = target.expand_as(eye)
    forward = target - eye
    length = forward.norm(dim=-1, keepdim=True)
    check(bool((length > 0).all()), "a camera cannot look at the point it stands on: move its eye or its target")
    forward = forward / length
    up = eye.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)
    right = torch.linalg.cross(forward, up)
    size = right.norm(dim=-1, keepdim=True)
    right = torch.where(size > PARALLEL, right / size.clamp_min(PARALLEL), eye.new_tensor([1.0, 0.0, 0.0]))
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)
    out = torch.eye(4, dtype=eye.dtype, device=eye.device).repeat(len(eye), 1, 1)
    out[:, :3, :3] = rotation
    out[:, :3, 3:] = -rotation @ eye[..., None]
    return out


def orbit(
    azimuth_deg: Float[Tensor, " b"],
    elevation_deg: Float[Tensor, " b"],
    distance: Float[Tensor, " b"],
    fov_y_deg: Float[Tensor, " b"],
    width: int,
    height: int,
) -> Camera:
    """Return cameras on spheres around the origin, at d (cosE sinA, sinE, cosE cosA), that look at it."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    flat = elevation.cos()
    eye = distance[:, None] * torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()], dim=-1)
    return Camera(look_at(eye, torch.zeros_like(eye)), intrinsics_of(fov_y_deg, width, height), width, height)


def orbit_angles(camera: Camera) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return azimuth in (-180, 180], elevation (both in degrees) and distance of the cameras' centres."""
    x, y, z = camera.position.unbind(-1)
    elevation = torch.atan2(y, torch.hypot(x, z))
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(elevation), camera.position.norm(dim=-1)


def turntable(
    views: int,
    width: int,
    height: int,
    *,
    elevation_deg: float = 15.0,
    distance: float = 3.0,
    fov_y_deg: float = 45.0,
    dtype: torch.dtype = torch.float32,
) -> Camera:
    """Return ``views`` cameras at equal steps around the origin, the first at the front."""
    check(views >= 1, f"a turntable needs one view or more, got {views}")
    azimuth = torch.arange(views, dtype=dtype) * (360 / views)
    full = torch.ones_like(azimuth)
    return orbit(azimuth, full * elevation_deg, full * distance, full * fov_y_deg, width, height)
