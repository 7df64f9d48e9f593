"""Pictures of a cloud of Gaussians: with gsplat's kernels on CUDA, in plain torch anywhere."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.rasterise import rasterization

BACKENDS = ("auto", "gsplat", "torch")


def render(
    gaussians: Gaussians,
    world_to_camera: Float[Tensor, "c 4 4"],
    intrinsics: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    *,
    background: Float[Tensor, "c 3"] | None = None,
    render_mode: Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"] = "RGB",
    degree: int | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "c h w x"], Float[Tensor, "c h w 1"], dict[str, Any]]:
    """Return images, alphas and gsplat's meta; ``degree`` of harmonics defaults to all there are.

    ``backend``: "auto" is gsplat for Gaussians on CUDA and torch otherwise. UserError when gsplat is asked for
    and the Gaussians are not on a CUDA device.
    """
    arguments: dict[str, Any] = {
        "means": gaussians.means,
        "quats": gaussians.quaternions,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": gaussians.harmonics,
        "viewmats": world_to_camera,
        "Ks": intrinsics,
        "width": width,
        "height": height,
        "sh_degree": gaussians.degree if degree is None else degree,
        "backgrounds": background,
        "render_mode": render_mode,
    }
    return _rasterise(arguments, choose(backend, gaussians.means.device))


def render_features(
    gaussians: Gaussians,
    features: Float[Tensor, "c n d"],
    world_to_camera: Float[Tensor, "c 4 4"],
    intrinsics: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "c h w d"], Float[Tensor, "c h w 1"], dict[str, Any]]:
    """Return sums of ``features`` over nothing, alphas and gsplat's meta; ``backend`` as for :func:`render`."""
    arguments: dict[str, Any] = {
        "means": gaussians.means,
        "quats": gaussians.quaternions,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": features,
        "viewmats": world_to_camera,
        "Ks": intrinsics,
        "width": width,
        "height": height,
    }
    return _rasterise(arguments, choose(backend, gaussians.means.device))


def _rasterise(arguments: dict[str, Any], backend: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    if backend == "torch":
        return rasterization(**arguments)
    import gsplat

    images, alphas, meta = gsplat.rasterization(**arguments, packed=False)
    return images, alphas, meta


def choose(backend: str, device: torch.device) -> str:
    """Return "gsplat" or "torch" for tensors on ``device``; UserError for what does not exist or cannot run there."""
    check(backend in BACKENDS, f"backend '{backend}': must be one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return "gsplat" if device.type == "cuda" else "torch"
    if backend == "gsplat" and device.type != "cuda":
        why = "move the Gaussians there" if torch.cuda.is_available() else "there is none here"
        raise UserError(f"backend 'gsplat' needs a CUDA device ({why}); use backend 'torch' or 'auto'")
    return backend
