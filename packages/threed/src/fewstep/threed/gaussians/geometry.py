"""Colour, depth and normals of a cloud of Gaussians, in one pass over the pixels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.threed.cameras import Camera
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.projection import rotation_matrices
from fewstep.threed.gaussians.rasterise import view_colors
from fewstep.threed.gaussians.render import render_features

SOLID = 1e-3  # an alpha below it has no depth of its own


def views(
    gaussians: Gaussians, camera: Camera, background: float | Tensor = 1.0, backend: str = "auto"
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 3 h w"]]:
    """Return rgb over ``background`` (one grey, or colours "3" or "b 3"), alpha, depth and normals in the world.

    Depth is along the camera's z; it and the normals are weighted by alpha and not divided by it. All have gradients.
    """
    return views_and_meta(gaussians, camera, background, backend)[0]


def views_and_meta(
    gaussians: Gaussians, camera: Camera, background: float | Tensor = 1.0, backend: str = "auto"
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], dict[str, Any]]:
    """Return what :func:`views` does, and gsplat's meta, for densification."""
    poses = camera.world_to_camera
    colours = view_colors(gaussians.degree, gaussians.means, gaussians.harmonics, poses)
    depths = gaussians.means @ poses[:, 2, :3, None] + poses[:, 2, 3, None, None]
    features = torch.cat([colours, depths, shortest_axes(gaussians, camera.position)], dim=-1)
    image, alpha, meta = render_features(
        gaussians, features, poses, camera.intrinsics, camera.width, camera.height, backend=backend
    )
    image, alpha = image.movedim(-1, 1), alpha.movedim(-1, 1)
    behind = torch.as_tensor(background, dtype=image.dtype, device=image.device)
    behind = behind.reshape(-1, behind.shape[-1] if behind.ndim else 1)[..., None, None]
    rgb, depth, normal = torch.split(image, [3, 1, 3], dim=1)
    return (rgb + (1 - alpha) * behind, alpha, depth, normal), meta


def shortest_axes(gaussians: Gaussians, positions: Float[Tensor, "b 3"]) -> Float[Tensor, "b n 3"]:
    """Return every Gaussian's shortest axis, of the two ways the one that faces ``positions``: a flat one's normal.

    Of axes of equal length it is the first: Gaussians that are still balls have no normal to speak of.
    """
    shortest = gaussians.log_scales.detach().argmin(dim=-1)
    axes = rotation_matrices(gaussians.quaternions)
    axis = axes.gather(2, shortest[:, None, None].expand(-1, 3, 1))[..., 0]
    towards = ((positions[:, None] - gaussians.means) * axis).sum(dim=-1, keepdim=True).detach()
    return torch.where(towards < 0, -axis, axis)


def depth_normals(
    depth: Float[Tensor, "b 1 h w"], alpha: Float[Tensor, "b 1 h w"], camera: Camera
) -> Float[Tensor, "b 3 h w"]:
    """Return the normals, in the world and facing the camera, of the surface that depths make, weighted by alpha.

    depth: weighted by alpha and not divided by it. From central differences: the image's border repeats its neighbours,
    and nothing is said of a pixel beside one with an alpha below ``SOLID``. Images of at least 3x3.
    """
    origins, directions = camera.rays()
    forward = camera.world_to_camera[:, None, None, 2, :3]
    directions = directions / (directions * forward).sum(dim=-1, keepdim=True)
    expected = depth / alpha.clamp_min(SOLID)
    points = origins + directions * expected.movedim(1, -1)
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    across = torch.linalg.cross(down, right)  # right, down and forward are right-handed: this one faces the camera
    across = F.pad(F.normalize(across, dim=-1, eps=1e-20).movedim(-1, 1), (1, 1, 1, 1), mode="replicate")
    solid = 1 - F.max_pool2d((alpha.detach() < SOLID).to(alpha.dtype), 3, stride=1, padding=1)
    return across * alpha * solid
