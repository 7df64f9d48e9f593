"""Gaussians in space to Gaussians on the image: elliptical weighted averaging (EWA) of a pinhole camera.

Cameras look along +z with x to the right and y down (OpenCV); pixel centres are at +0.5. The same numbers as gsplat's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

EXTENT = 3.33  # standard deviations; beyond them even an opaque Gaussian is below 1/255
MARGIN = 0.3  # of the half field of view: how far beside the image the Jacobian still follows a mean
SMALLEST_DETERMINANT = 1e-10


@dataclass(frozen=True)
class Projected:
    """n Gaussians on c images, in pixels; a radius of 0 means not visible, and the numbers beside it mean nothing.

    conics: upper triangle of the inverse covariance.  compensations: what blurring by eps2d took from the opacity.
    """

    means2d: Float[Tensor, "c n 2"]
    depths: Float[Tensor, "c n"]
    conics: Float[Tensor, "c n 3"]
    radii: Float[Tensor, "c n 2"]
    compensations: Float[Tensor, "c n"]

    @property
    def visible(self) -> Bool[Tensor, "c n"]:
        """Which Gaussians touch which image."""
        return (self.radii > 0).all(dim=-1)


def rotation_matrices(quaternions: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Return the rotations of quaternions (w x y z, any length but 0)."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def covariances(quaternions: Float[Tensor, "*b 4"], scales: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3 3"]:
    """Return R S S^T R^T."""
    factor = rotation_matrices(quaternions) * scales[..., None, :]
    return factor @ factor.transpose(-1, -2)


def project(
    means: Float[Tensor, "n 3"],
    covars: Float[Tensor, "n 3 3"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
) -> Projected:
    """Return the Gaussians on every camera's image; viewmats: world to camera, Ks: intrinsics in pixels.

    ``eps2d`` (pixels squared) is added to both variances, so that nothing is thinner than a pixel. A Gaussian outside
    [near_plane, far_plane] gets radius 0 and no gradient.
    """
    rotation = viewmats[:, :3, :3]
    points = means @ rotation.transpose(-1, -2) + viewmats[:, None, :3, 3]
    depths = points[..., 2]
    between = (depths > near_plane) & (depths < far_plane)
    # one point ahead stands in for all that is not between the planes: no division by 0, in the gradient either
    points = torch.where(between[..., None], points, points.new_tensor([0.0, 0.0, 1.0]))
    means2d, flat = _flatten(points, covars, rotation, Ks, width, height)

    thin_x, thin_y, mixed = flat[..., 0, 0], flat[..., 1, 1], (flat[..., 0, 1] + flat[..., 1, 0]) / 2
    before = _determinant(thin_x, mixed, thin_y)
    var_x, var_y = thin_x + eps2d, thin_y + eps2d
    after = _determinant(var_x, mixed, var_y).clamp_min(SMALLEST_DETERMINANT)
    ratio = before / after
    # the root's slope at 0 is infinite; there the Gaussian has no area and the compensation is a constant 0
    compensations = torch.where(ratio > 0, torch.where(ratio > 0, ratio, 1.0).sqrt(), 0.0)
    conics = torch.stack([var_y / after, -mixed / after, var_x / after], dim=-1)

    with torch.no_grad():
        radii = (EXTENT * torch.stack([var_x, var_y], dim=-1).sqrt()).ceil()
        size = means2d.new_tensor([width, height])
        touches = ((means2d + radii > 0) & (means2d - radii < size)).all(dim=-1)
        radii = radii * (between & touches)[..., None]
    return Projected(means2d, depths, conics, radii, compensations)


def _flatten(
    points: Tensor, covars: Tensor, rotation: Tensor, Ks: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Return means (c n 2) and covariances (c n 2 2) on the image of points in the camera's frame (c n 3)."""
    x, y, z = points.unbind(-1)
    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    skew = Ks[:, 0, 1, None]
    means2d = torch.stack([(fx * x + skew * y) / z + cx, fy * y / z + cy], dim=-1)
    side, top = MARGIN * 0.5 * width / fx, MARGIN * 0.5 * height / fy
    slope_x = torch.minimum(torch.maximum(x / z, -(cx / fx + side)), (width - cx) / fx + side)
    slope_y = torch.minimum(torch.maximum(y / z, -(cy / fy + top)), (height - cy) / fy + top)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * slope_x / z, zero, fy / z, -fy * slope_y / z], dim=-1)
    to_image = jacobian.reshape(*z.shape, 2, 3) @ rotation[:, None]
    return means2d, to_image @ covars @ to_image.transpose(-1, -2)


def _determinant(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a * c - b * b
