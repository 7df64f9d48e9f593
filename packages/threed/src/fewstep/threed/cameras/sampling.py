"""Random cameras around an object: independent ones, or views at equal steps for multi-view teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.cameras.camera import Camera
from fewstep.threed.cameras.orbit import orbit


@dataclass(frozen=True, kw_only=True)
class ViewRanges:
    """Ranges cameras are drawn from, the defaults those of MVDream (arXiv 2308.16512)."""

    azimuth_deg: tuple[float, float] = (-180.0, 180.0)
    elevation_deg: tuple[float, float] = (0.0, 30.0)
    fov_y_deg: tuple[float, float] = (15.0, 60.0)
    relative_distance: tuple[float, float] = (0.8, 1.0)  # the distance is this over tan(fov_y / 2)
    uniform_on_sphere: float = 0.0  # share of elevations uniform in area instead of degrees; threestudio takes 0.5

    def __post_init__(self) -> None:
        """Raise UserError for a range the wrong way round or outside what a camera can have."""
        spans = {
            "azimuth_deg": (self.azimuth_deg, -360.0, 360.0),
            "elevation_deg": (self.elevation_deg, -90.0, 90.0),
            "fov_y_deg": (self.fov_y_deg, 1.0, 179.0),
            "relative_distance": (self.relative_distance, 1e-3, 1e3),
        }
        for name, ((low, high), least, most) in spans.items():
            check(least <= low <= high <= most, f"{name} must be (low, high) within [{least}, {most}], got {low, high}")
        check(0 <= self.uniform_on_sphere <= 1, f"uniform_on_sphere must be between 0 and 1: {self.uniform_on_sphere}")


def _within(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _elevation(u: Tensor, coin: Tensor, ranges: ViewRanges) -> Tensor:
    by_angle = _within(u, ranges.elevation_deg)
    # equal areas of a sphere are equal steps of the sine
    low, high = torch.deg2rad(torch.tensor(ranges.elevation_deg, dtype=u.dtype)).sin().tolist()
    by_area = torch.rad2deg(torch.asin(_within(u, (low, high)).clamp(-1, 1)))
    return torch.where(coin < ranges.uniform_on_sphere, by_area, by_angle)


def random_views(
    rng: Rng, ranges: ViewRanges, width: int, height: int, views: int = 1, dtype: torch.dtype = torch.float32
) -> Camera:
    """Return ``views`` independent cameras per sample of ``rng``; those of one sample follow each other."""
    check(views >= 1, f"an object needs one view or more, got {views}")
    u = rng.uniform("camera", (views, 5)).flatten(0, 1)
    return _draw(u, _within(u[:, 0], ranges.azimuth_deg), ranges, width, height, dtype)


def multi_view(
    rng: Rng, ranges: ViewRanges, width: int, height: int, views: int = 4, dtype: torch.dtype = torch.float32
) -> Camera:
    """Return ``views`` cameras per sample that share all but the azimuth, 360/views apart from a random one."""
    check(views >= 1, f"an object needs one view or more, got {views}")
    u = rng.uniform("cameras", (5,))
    steps = torch.arange(views, dtype=u.dtype, device=u.device) * (360 / views)
    azimuth = _within(u[:, :1], ranges.azimuth_deg) + steps
    return _draw(u.repeat_interleave(views, 0), azimuth.flatten(), ranges, width, height, dtype)


def _draw(
    u: Float[Tensor, "b 5"],
    azimuth: Float[Tensor, " b"],
    ranges: ViewRanges,
    width: int,
    height: int,
    dtype: torch.dtype,
) -> Camera:
    fov = _within(u[:, 1], ranges.fov_y_deg)
    distance = _within(u[:, 2], ranges.relative_distance) / torch.tan(torch.deg2rad(fov) / 2)
    return orbit(azimuth, _elevation(u[:, 3], u[:, 4], ranges), distance, fov, width, height).to(dtype)
