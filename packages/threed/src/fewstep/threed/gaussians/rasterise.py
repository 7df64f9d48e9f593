"""Rasterisation in plain torch, on any device, with the arguments and the results of ``gsplat.rasterization``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.threed.gaussians import harmonics
from fewstep.threed.gaussians.compositing import composite
from fewstep.threed.gaussians.projection import Projected, covariances, project
from fewstep.threed.gaussians.tiles import tiles

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")


def rasterization(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, " n"],
    colors: Float[Tensor, "*n_k d"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    tile_size: int | None = None,
    backgrounds: Float[Tensor, "c d"] | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
    covars: Float[Tensor, "n 3 3"] | None = None,
) -> tuple[Float[Tensor, "c h w x"], Float[Tensor, "c h w 1"], dict[str, Any]]:
    """Return images, alphas and what lies between (means2d, radii, depths, conics...); gsplat's meaning of each.

    colors: "n d" or "c n d"; with ``sh_degree`` the harmonics "n k 3" or "c n k 3". scales and opacities are activated.
    viewmats are world to camera, OpenCV. D is depth times weight, ED divided by the alpha; both come last, and no
    background is behind them. UserError for unknown modes and shapes that do not fit.
    """
    check(render_mode in RENDER_MODES, f"render_mode '{render_mode}': must be one of {', '.join(RENDER_MODES)}")
    known = rasterize_mode in RASTERIZE_MODES
    check(known, f"rasterize_mode '{rasterize_mode}': must be one of {', '.join(RASTERIZE_MODES)}")
    there = width > 0 and height > 0 and (tile_size is None or tile_size > 0)
    check(there, f"image of {width}x{height} in tiles of {tile_size}: none there")
    if covars is None:
        covars = covariances(quats, scales)
    seen = project(means, covars, viewmats, Ks, width, height, eps2d, near_plane, far_plane)
    visible = seen.visible & (seen.radii > radius_clip).any(dim=-1)
    per_view = (
        opacities * seen.compensations if rasterize_mode == "antialiased" else opacities.expand(len(viewmats), -1)
    )
    features, behind = _features(means, colors, viewmats, seen, sh_degree, render_mode, backgrounds)

    images, alphas = [], []
    for camera, mask in enumerate(visible):
        ids = mask.nonzero()[:, 0]
        flat, conics, opaque = seen.means2d[camera, ids], seen.conics[camera, ids], per_view[camera, ids]
        over = tiles(flat, conics, opaque, seen.depths[camera, ids], width, height, tile_size)
        image, alpha = composite(flat, conics, opaque, features[camera, ids], over)
        images.append(image if behind is None else image + (1 - alpha) * behind[camera])
        alphas.append(alpha)
    rendered, opacity = torch.stack(images), torch.stack(alphas)
    if render_mode.endswith("ED"):
        expected = rendered[..., -1:] / opacity.clamp_min(1e-10)
        rendered = torch.cat([rendered[..., :-1], expected], dim=-1)
    meta = {
        "means2d": seen.means2d,
        "gaussian_ids": None,  # as gsplat's unpacked results have it
        "radii": (seen.radii * visible[..., None]).int(),
        "depths": seen.depths,
        "conics": seen.conics,
        "opacities": per_view,
        "width": width,
        "height": height,
        "n_cameras": len(viewmats),
    }
    return rendered, opacity, meta


def _features(
    means: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    seen: Projected,
    sh_degree: int | None,
    render_mode: str,
    backgrounds: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return what is composited, "c n x", and what is behind it, "c x"."""
    cameras, count = len(viewmats), len(means)
    depth = seen.depths[..., None]
    if render_mode in ("D", "ED"):
        return depth, None
    if sh_degree is not None:
        colors = view_colors(sh_degree, means, colors, viewmats)
    fits = colors.shape[:-1] in ((count,), (cameras, count))
    check(fits, f"colors: must be ({count}, d) or ({cameras}, {count}, d), got {tuple(colors.shape)}")
    channels = colors.shape[-1]
    features = colors.expand(cameras, count, channels)
    if backgrounds is not None:
        expected = (cameras, channels)
        found = tuple(backgrounds.shape)
        check(found == expected, f"backgrounds: must have shape {expected}, got {found}")
    if render_mode == "RGB":
        return features, backgrounds
    if backgrounds is not None:
        backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(cameras, 1)], dim=-1)
    return torch.cat([features, depth], dim=-1), backgrounds


def view_colors(
    degree: int, means: Float[Tensor, "n 3"], coefficients: Float[Tensor, "*n k 3"], viewmats: Float[Tensor, "c 4 4"]
) -> Float[Tensor, "c n 3"]:
    """Return the colours of harmonics ("n k 3" or "c n k 3") as every camera sees them, at least 0."""
    rotation, shift = viewmats[:, :3, :3], viewmats[:, :3, 3]
    centres = -(rotation.transpose(-1, -2) @ shift[..., None])[..., 0]
    directions = means - centres[:, None]
    per_camera = coefficients.expand(len(viewmats), *coefficients.shape[-3:])
    return (harmonics.evaluate(degree, directions, per_camera) + 0.5).clamp_min(0)
