"""Cameras of nerfstudio and ours."""

from __future__ import annotations

from nerfstudio.cameras.cameras import Cameras  # type: ignore[import-not-found]

from fewstep.core.errors import check
from fewstep.threed.cameras import NERFSTUDIO, Camera, from_convention, to_convention


def to_nerfstudio(camera: Camera) -> Cameras:
    """Return our cameras as nerfstudio's."""
    focal, centre = camera.intrinsics[:, (0, 1), (0, 1)], camera.intrinsics[:, :2, 2]
    return Cameras(
        to_convention(camera, NERFSTUDIO)[:, :3],
        *(value[:, None] for value in (*focal.unbind(1), *centre.unbind(1))),
        width=camera.width,
        height=camera.height,
    )


def from_nerfstudio(cameras: Cameras) -> Camera:
    """Return nerfstudio's pinhole cameras of one size as ours; UserError for cameras of several sizes."""
    width, height = cameras.width.unique().tolist(), cameras.height.unique().tolist()
    check(len(width) == len(height) == 1, f"cameras of one size at a time, got widths {width} and heights {height}")
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4)
    intrinsics = cameras.get_intrinsics_matrices().reshape(-1, 3, 3).to(poses)
    return from_convention(poses, NERFSTUDIO, intrinsics, int(width[0]), int(height[0]))
