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
FRONT = 1 / 3  # share of a ray that is stopped in front of a cloud's surface
LAYERS = 16  # depths at which that share is looked up
REACH = 2.5  # standard deviations in front of a mean from where a Gaussian stops nearly nothing


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
    image, alpha, meta = _composited(gaussians, camera, _depths(gaussians, camera)[..., None], backend)
    rgb, normal, depth = torch.split(image, [3, 3, 1], dim=1)
    return (_over(rgb, alpha, background), alpha, depth, normal), meta


@torch.no_grad()
def front_views(
    gaussians: Gaussians, camera: Camera, background: float | Tensor = 1.0, backend: str = "auto"
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"], Float[Tensor, "b 3 h w"]]:
    """Return what :func:`views` does, the depth being that of the cloud's surface, where its mean lies behind it.

    Gaussians stop rays in front of their means already, as they cover pixels beside them: along a ray each stops
    ``exp(-t^2 / 2)`` of what it will, t standard deviations ahead of its mean (Yu et al. 2024, 2404.10772). The surface
    is where a third is stopped; how dense a cloud is behind it does not matter. Without gradient; 0 where less is.
    """
    means, deviation = _depths(gaussians, camera), _deviations(gaussians, camera)
    depths = torch.linspace(0, 1, LAYERS).to(means)
    first, last = (means - REACH * deviation).amin(), means.amax()
    depths = first + (last - first) * depths
    ahead = ((depths - means[..., None]) / deviation[..., None]).clamp(max=0)
    image, alpha, _ = _composited(gaussians, camera, torch.exp(-0.5 * ahead.square()), backend)
    rgb, normal, stopped = torch.split(image, [3, 3, LAYERS], dim=1)
    after = (stopped < FRONT).sum(dim=1, keepdim=True).clamp(1, LAYERS - 1)
    low, high = stopped.gather(1, after - 1), stopped.gather(1, after)
    share = ((FRONT - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    front = torch.lerp(depths[after - 1], depths[after], share) * (alpha >= FRONT)
    return _over(rgb, alpha, background), alpha, front * alpha, normal


def _composited(
    gaussians: Gaussians, camera: Camera, more: Float[Tensor, "b n d"], backend: str
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 1 h w"], dict[str, Any]]:
    """Return colours, normals and ``more`` features over nothing, their alpha, and gsplat's meta."""
    poses = camera.world_to_camera
    colours = view_colors(gaussians.degree, gaussians.means, gaussians.harmonics, poses)
    features = torch.cat([colours, shortest_axes(gaussians, camera.position), more], dim=-1)
    image, alpha, meta = render_features(
        gaussians, features, poses, camera.intrinsics, camera.width, camera.height, backend=backend
    )
    return image.movedim(-1, 1), alpha.movedim(-1, 1), meta


def _over(rgb: Tensor, alpha: Tensor, background: float | Tensor) -> Float[Tensor, "b 3 h w"]:
    behind = torch.as_tensor(background, dtype=rgb.dtype, device=rgb.device)
    behind = behind.reshape(-1, behind.shape[-1] if behind.ndim else 1)[..., None, None]
    return rgb + (1 - alpha) * behind


def _depths(gaussians: Gaussians, camera: Camera) -> Float[Tensor, "b n"]:
    """Return the means' depths along the cameras' z."""
    poses = camera.world_to_camera
    depths: Tensor = (gaussians.means @ poses[:, 2, :3, None] + poses[:, 2, 3, None, None])[..., 0]
    return depths


def _deviations(gaussians: Gaussians, camera: Camera) -> Float[Tensor, "b n"]:
    """Return how wide Gaussians are along the rays through their means."""
    towards = F.normalize(gaussians.means - camera.position[:, None], dim=-1)
    # in their own axes they are (direction / scale)^2
    own = torch.einsum("bni,nij->bnj", towards, rotation_matrices(gaussians.quaternions)) / gaussians.scales
    return own.square().sum(dim=-1).rsqrt()


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
