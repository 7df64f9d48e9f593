"""Views of one asset against each other: what one camera sees, carried over by depth to where another one looks.

Cameras are ``world_to_camera`` "b 4 4" and ``intrinsics`` "b 3 3" in pixels: OpenCV axes (x right, y down, z forward),
pixel centres at +0.5. Depth is along z, 0 or less where nothing is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample

from fewstep.core.errors import check
from fewstep.core.tensors import precise, sample_sum


@dataclass(frozen=True)
class View:
    """What cameras see, and the cameras."""

    image: Float[Tensor, "b c h w"]
    depth: Float[Tensor, "b 1 h w"]
    world_to_camera: Float[Tensor, "b 4 4"]
    intrinsics: Float[Tensor, "b 3 3"]


@dataclass(frozen=True)
class Warped:
    """Another view's picture as this camera would see it, where ``visible``: seen by both."""

    image: Float[Tensor, "b c h w"]
    visible: Bool[Tensor, "b 1 h w"]


@dataclass(frozen=True)
class Consistency:
    """``psnr`` in dB over the pixels both views see, pictures in [0, 1], and their ``share`` of those the first sees.

    ``psnr`` is infinite for views that agree exactly, and NaN where they share nothing: ``share`` is 0 there.
    """

    psnr: Float[Tensor, " b"]
    share: Float[Tensor, " b"]


def warp(view: View, other: View, *, tolerance: float) -> Warped:
    """Return ``other``'s picture seen from ``view``, bilinear at where the points that ``view`` sees fall.

    A point is visible when it falls within the other picture, in front of its camera, on pixels that all see something,
    the nearest at the point's depth up to ``tolerance`` world units. Raises UserError for shapes that differ.
    """
    check(tolerance > 0, f"warping with tolerance={tolerance:g}: it must be positive")
    check(
        view.depth.shape[0] == other.depth.shape[0] and view.depth.dtype == other.depth.dtype,
        f"warping between {len(view.depth)} and {len(other.depth)} views: batches and dtypes must be equal",
    )
    points = _points(view)
    seen = points @ other.world_to_camera[:, :3, :3].mT + other.world_to_camera[:, None, :3, 3]
    z = seen[..., 2]
    pixels = seen @ other.intrinsics.mT
    height, width = other.depth.shape[-2:]
    size = pixels.new_tensor([width, height])
    ahead = z > torch.finfo(z.dtype).eps
    at = 2 * (pixels[..., :2] / torch.where(ahead, z, 1)[..., None]) / size - 1  # -1 and 1 are the picture's borders
    at = at.reshape(len(at), *view.depth.shape[-2:], 2)
    found = grid_sample(other.depth, at, mode="nearest", padding_mode="zeros", align_corners=False)
    covered = grid_sample((other.depth > 0).to(at.dtype), at, padding_mode="zeros", align_corners=False)
    z = z.reshape(view.depth.shape)
    visible = (view.depth > 0) & (z > 0) & (covered > 1 - 1e-4) & ((found - z).abs() < tolerance)
    image = grid_sample(other.image, at, padding_mode="border", align_corners=False)
    return Warped(image, visible)


def view_consistency(view: View, other: View, *, tolerance: float) -> Consistency:
    """Return how well two views agree on the colours of what both see: ``view`` against :func:`warp` of ``other``."""
    warped = warp(view, other, tolerance=tolerance)
    square = (precise(view.image) - precise(warped.image)).square().mean(1, keepdim=True)
    shared = sample_sum(warped.visible.to(square.dtype))
    error = sample_sum(torch.where(warped.visible, square, 0)) / shared
    own = sample_sum((view.depth > 0).to(square.dtype))
    return Consistency(-10 * torch.log10(error), shared / own.clamp_min(1))


def _points(view: View) -> Float[Tensor, "b n 3"]:
    """World points that the pixels' centres see."""
    height, width = view.depth.shape[-2:]
    y, x = (torch.arange(n, device=view.depth.device).to(view.depth.dtype) + 0.5 for n in (height, width))
    pixels = torch.stack(
        (x.expand(height, -1), y[:, None].expand(-1, width), torch.ones_like(x).expand(height, -1)), -1
    )
    rays = pixels.reshape(-1, 3) @ torch.linalg.inv(view.intrinsics).mT
    local = rays * view.depth.flatten(1)[..., None]
    points: Tensor = (local - view.world_to_camera[:, None, :3, 3]) @ view.world_to_camera[:, :3, :3]
    return points
