"""What renders of decoded Gaussians are held against: pictures, silhouettes and depth, one loss per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.networks.backbone import entry
from fewstep.core.tensors import sample_mean, sample_sum
from fewstep.threed.cameras import Camera
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.render import render
from fewstep.threed.orbit.convention import orbit_cameras
from fewstep.threed.orbit.pixels import to_latents, to_pixels

VISIBLE = 1 / 255  # fainter splats are left out by the rasteriser, wherever they are


@dataclass(frozen=True, kw_only=True)
class OrbitGeometry:
    """How orbits are photographed: distance, vertical field of view, pixels along a side."""

    distance: float = 3.2
    fov_y_deg: float = 24.0
    size: int = 32

    def __post_init__(self) -> None:
        check(self.distance > 0, f"distance must be positive, got {self.distance:g}")
        check(0 < self.fov_y_deg < 180, f"fov_y_deg must lie between 0 and 180, got {self.fov_y_deg:g}")
        check(self.size >= 1, f"size must be at least 1, got {self.size}")

    def cameras(self, azimuth: Float[Tensor, "b v"], polar: Float[Tensor, "b v"]) -> Camera:
        """Return the b * v cameras at these angles, a sample's adjacent."""
        return orbit_cameras(azimuth, polar, self.size, distance=self.distance, fov_y_deg=self.fov_y_deg)


@dataclass(frozen=True)
class Seen:
    """Pictures of ``m`` cameras per sample, over white; ``depth`` along z, where ``alpha`` is above one half."""

    rgb: Float[Tensor, "b m 3 h w"]
    alpha: Float[Tensor, "b m 1 h w"]
    depth: Float[Tensor, "b m 1 h w"]


def targets(cond: Cond, geometry: OrbitGeometry) -> tuple[Seen, Camera]:
    """Return the pictures a batch is supervised by, ``seen_rgb`` and so on, and their cameras."""
    rgb, alpha, depth, azimuth, polar = (
        entry(cond, f"seen_{name}", "supervision in 3D") for name in ("rgb", "alpha", "depth", "azimuth", "polar")
    )
    return Seen(rgb, alpha, depth), replace(geometry, size=rgb.shape[-1]).cameras(azimuth, polar)


def render_clouds(clouds: Sequence[Gaussians], camera: Camera, backend: str = "auto") -> Seen:
    """Return what ``len(camera) / len(clouds)`` cameras each see of every cloud; depth is divided by alpha."""
    each = len(camera) // len(clouds)
    found = []
    for index, cloud in enumerate(clouds):
        view = camera.select(index * each, (index + 1) * each)
        shown = visible(cloud)
        if not len(shown):
            empty = view.intrinsics.new_zeros(each, view.height, view.width, 5)
            # no gradient comes of nothing: the opacities keep the graph
            found.append(empty + torch.tensor([1.0, 1, 1, 0, 0]).to(empty) + 0 * cloud.opacity_logits.sum())
            continue
        white = view.intrinsics.new_ones(each, 3)
        image, alpha, _ = render(
            shown,
            view.world_to_camera,
            view.intrinsics,
            view.width,
            view.height,
            background=white,
            render_mode="RGB+ED",
            backend=backend,
        )
        found.append(torch.cat([image, alpha], -1))
    planes = torch.stack(found).movedim(-1, 2)
    return Seen(planes[:, :, :3], planes[:, :, 4:], planes[:, :, 3:4])


def visible(cloud: Gaussians) -> Gaussians:
    """Return the splats a rasteriser would draw at all: the same picture, at the cost of those alone."""
    keep = (cloud.opacities.detach() >= VISIBLE).nonzero()[:, 0]
    return Gaussians(
        cloud.means[keep],
        cloud.log_scales[keep],
        cloud.quaternions[keep],
        cloud.opacity_logits[keep],
        cloud.harmonics[keep],
    )


def view_losses(made: Seen, true: Seen) -> dict[str, Float[Tensor, " b"]]:
    """Return mean squares of ``rgb`` and ``mask``, and the mean absolute error of ``depth`` inside the silhouette."""
    inside = (true.alpha > 0.5).to(made.depth)
    off = sample_sum((made.depth - true.depth).abs() * inside) / sample_sum(inside).clamp_min(1)
    return {
        "rgb": sample_mean((made.rgb - true.rgb).square()),
        "depth": off,
        "mask": sample_mean((made.alpha - true.alpha).square()),
    }


class PixelCodec(nn.Module):
    """Latents that are blocks of pixels; what a recipe asks of any autoencoder."""

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, rgb: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h w"]:
        """Return latents of pixels in [0, 1], differentiable."""
        return to_latents(rgb, self.factor)

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return pixels in [0, 1]."""
        return to_pixels(latents, self.factor)
