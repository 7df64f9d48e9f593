"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833, section 3), one per sample, of sum 1, in float64."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.core.errors import check

Profile = Literal["gaussian", "generalized", "plateau"]


def _check_size(size: int) -> None:
    check(size >= 1 and size % 2 == 1, f"kernel size: must be odd and at least 1, got {size}")


def _offsets(size: int, like: Tensor) -> Float[Tensor, " k"]:
    return torch.arange(size, dtype=torch.float64, device=like.device) - size // 2


def _normalized(kernel: Float[Tensor, "b k k"]) -> Float[Tensor, "b k k"]:
    return kernel / kernel.sum((-2, -1), keepdim=True)


def gaussian_kernel(
    size: int,
    sigma_x: Float[Tensor, " b"],
    sigma_y: Float[Tensor, " b"] | None = None,
    angle_rad: Float[Tensor, " b"] | None = None,
    beta: Float[Tensor, " b"] | None = None,
    profile: Profile = "gaussian",
) -> Float[Tensor, "b k k"]:
    """Return kernels exp(-q/2), exp(-q^beta/2) (generalized) or 1/(1 + q^beta) (plateau), normalised to sum 1.

    q = v' S^-1 v with S = R diag(sigma_x^2, sigma_y^2) R', R the rotation by ``angle_rad`` from x (columns) towards y
    (rows). No ``sigma_y``: isotropic. UserError for an even size, a sigma or beta that is not positive.
    """
    _check_size(size)
    sigma_x = sigma_x.double()
    sigma_y = sigma_x if sigma_y is None else sigma_y.double()
    angle = torch.zeros_like(sigma_x) if angle_rad is None else angle_rad.double()
    power = torch.ones_like(sigma_x) if beta is None else beta.double()
    check(bool(((sigma_x > 0) & (sigma_y > 0)).all()), "kernel sigma: must be positive")
    check(bool((power > 0).all()), "kernel beta: must be positive")
    check(profile in ("gaussian", "generalized", "plateau"), f"kernel profile: unknown '{profile}'")
    check((beta is None) == (profile == "gaussian"), "kernel beta: give it for generalized and plateau, and only there")
    grid = _offsets(size, sigma_x)
    x, y = grid[None, None, :], grid[None, :, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = cos * x + sin * y, cos * y - sin * x
    q = (along / sigma_x[:, None, None]) ** 2 + (across / sigma_y[:, None, None]) ** 2
    q = q ** power[:, None, None]
    return _normalized(1 / (1 + q) if profile == "plateau" else torch.exp(-q / 2))


def sinc_kernel(size: int, cutoff: Float[Tensor, " b"]) -> Float[Tensor, "b k k"]:
    """Return the circular low-pass w J1(w r) / (2 pi r), w^2 / (4 pi) at r = 0, cut to ``size`` and scaled to sum 1.

    ``cutoff`` is w in radians per pixel, in (0, pi]; UserError outside.
    """
    _check_size(size)
    w = cutoff.double()[:, None, None]
    check(bool(((w > 0) & (w <= math.pi)).all()), "sinc cutoff: must be in (0, pi]")
    grid = _offsets(size, w)
    r = torch.hypot(grid[:, None], grid[None, :])
    away = r.clamp_min(1)  # the centre is put in below
    kernel = w * torch.special.bessel_j1(w * away) / (2 * math.pi * away)
    return _normalized(torch.where(r == 0, w**2 / (4 * math.pi), kernel))


def pulse_kernel(size: int, batch: int = 1) -> Float[Tensor, "b k k"]:
    """Return kernels that change nothing: 1 in the middle, 0 elsewhere."""
    _check_size(size)
    kernel = torch.zeros(batch, size, size, dtype=torch.float64)
    kernel[:, size // 2, size // 2] = 1
    return kernel


def pad_kernel(kernel: Float[Tensor, "b k k"], size: int) -> Float[Tensor, "b n n"]:
    """Return the kernels in the middle of zeros, so that kernels of several sizes make one batch."""
    _check_size(size)
    check(size >= kernel.shape[-1], f"kernel of {kernel.shape[-1]}: does not fit into {size}")
    return F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4)


def reflected(length: int, margin: int, device: torch.device) -> Tensor:
    """Positions of a side extended by ``margin`` by reflection, without limit on the margin (as often as it takes)."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-margin, length + margin, device=device).remainder(period)
    return torch.minimum(index, (period - index).abs()) if length > 1 else torch.zeros_like(index)


def blur(images: Float[Tensor, "b c h w"], kernel: Float[Tensor, "b k k"]) -> Float[Tensor, "b c h w"]:
    """Return ``images`` filtered (correlated) with one kernel per sample; edges are reflected, even of tiny images."""
    from kornia.filters import filter2d

    margin = kernel.shape[-1] // 2
    _check_size(kernel.shape[-1])
    check(kernel.shape[0] == images.shape[0], f"blur: {kernel.shape[0]} kernels for {images.shape[0]} images")
    rows, columns = (reflected(side, margin, images.device) for side in images.shape[-2:])
    padded = images.index_select(-2, rows).index_select(-1, columns)
    filtered: Tensor = filter2d(padded, kernel.to(images), padding="valid")
    return filtered
