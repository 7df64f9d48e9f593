"""Scenes of Gaussians for the tests, and the rasteriser without tiles they are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.threed.gaussians.parameters import Gaussians

RULES = (0.999, 1 / 255, 1e-4)  # cap, faintest alpha, transmittance that finishes a pixel: of gsplat 1.5


def scene(n: int, degree: int = 0, seed: int = 0, size: float = 0.15, dtype: torch.dtype = torch.float64) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return Gaussians(
        means=0.6 * normal(n, 3),
        log_scales=0.4 * normal(n, 3) + torch.tensor(size, dtype=dtype).log(),
        quaternions=normal(n, 4),
        opacity_logits=1.5 * normal(n),
        harmonics=0.3 * normal(n, (degree + 1) ** 2, 3),
    )


def cameras(count: int, width: int, height: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """World-to-camera matrices turned about y, 4 away from the origin, and intrinsics that are not centred."""
    views = []
    for angle in torch.arange(count, dtype=dtype) * 0.9:
        view = torch.eye(4, dtype=dtype)
        view[0, 0], view[0, 2], view[2, 0], view[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
        view[2, 3] = 4
        views.append(view)
    one = [[1.4 * width, 0, 0.53 * width], [0, 1.3 * width, 0.48 * height], [0, 0, 1]]
    return torch.stack(views), torch.tensor(one, dtype=dtype).expand(count, 3, 3).clone()


def brute_force(
    means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, depths: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Every splat on every pixel, one after the other, by autograd alone."""
    cap, faintest, opaque = RULES
    rows, columns = (torch.arange(size, dtype=means2d.dtype) + 0.5 for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    image, clear = features.new_zeros(height, width, features.shape[1]), features.new_ones(height, width)
    going = torch.ones(height, width, dtype=torch.bool)
    for i in depths.argsort().tolist():
        dx, dy = x - means2d[i, 0], y - means2d[i, 1]
        a, b, c = conics[i]
        alpha = (opacities[i] * torch.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)).clamp_max(cap)
        shown = going & (alpha >= faintest)
        going = going & ~(shown & (clear * (1 - alpha) <= opaque))
        alpha = torch.where(shown & going, alpha, 0.0)
        image = image + (clear * alpha)[..., None] * features[i]
        clear = clear * (1 - alpha)
    return image, (1 - clear)[..., None]
