"""Triplanes: three feature images through which points of the cube [-1, 1]^3 are seen along its axes.

Source: EG3D (arXiv 2112.07945). A texel's centre lies at (2i + 1)/W - 1, and points outside the cube read zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check

Aggregate = Literal["sum", "mean", "concat"]


@dataclass(frozen=True)
class PlaneLayout:
    """Which signed axes of a point are a plane's width and height coordinates, per plane: "x", "-z", ..."""

    name: str
    axes: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]

    def coordinates(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b 3 n 2"]:
        """Return the (width, height) coordinates at which every plane is read."""
        flat = [name for pair in self.axes for name in pair]
        index = ["xyz".index(name[-1]) for name in flat]
        sign = points.new_tensor([-1.0 if name.startswith("-") else 1.0 for name in flat])
        read = points[..., index] * sign
        return read.reshape(*points.shape[:2], 3, 2).movedim(-2, 1)


CORRECTED = PlaneLayout("corrected", (("x", "y"), ("x", "z"), ("z", "y")))
ORIGINAL = PlaneLayout("original", (("x", "y"), ("x", "z"), ("z", "x")))  # EG3D as released: y is seen once only
IMAGE_LIKE = PlaneLayout("image_like", (("y", "x"), ("-x", "-z"), ("y", "-z")))  # PRD's planes (arXiv 2503.21694)
LAYOUTS = {each.name: each for each in (CORRECTED, ORIGINAL, IMAGE_LIKE)}


def sample_triplane(
    planes: Float[Tensor, "b 3 c h w"],
    points: Float[Tensor, "b n 3"],
    layout: PlaneLayout = CORRECTED,
    aggregate: Aggregate = "sum",
) -> Float[Tensor, "b n d"]:
    """Return the planes' features at ``points`` by bilinear interpolation; d is c, or 3c when concatenated.

    Twice differentiable, so that normals and the eikonal loss can train the planes. Raises UserError for planes
    and points that do not fit each other.
    """
    fits = planes.ndim == 5 and planes.shape[1] == 3 and points.ndim == 3 and points.shape[2] == 3
    check(
        fits and len(planes) == len(points),
        f"triplanes [b, 3, c, h, w] do not fit points [b, n, 3]: {list(planes.shape)} and {list(points.shape)}",
    )
    grid = layout.coordinates(points).flatten(0, 1)[:, None].to(planes.dtype)
    read = F.grid_sample(planes.flatten(0, 1), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    features = read[:, :, 0].reshape(len(planes), 3, planes.shape[2], -1).permute(0, 3, 1, 2)  # "b n 3 c"
    if aggregate == "concat":
        return features.flatten(2)
    return features.sum(2) if aggregate == "sum" else features.mean(2)


def split_planes(planes: Float[Tensor, "b 6 c h w"]) -> tuple[Float[Tensor, "b 3 c h w"], Float[Tensor, "b 3 c h w"]]:
    """Return the geometry planes and the texture planes of six."""
    check(planes.ndim == 5 and planes.shape[1] == 6, f"six planes are [b, 6, c, h, w], got {list(planes.shape)}")
    geometry, texture = torch.split(planes, 3, dim=1)
    return geometry, texture
