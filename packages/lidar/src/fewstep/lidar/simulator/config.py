"""What is simulated: the sensor and the street, with the range of every value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.core.errors import check

MAX_RAYS = 8_000_000  # in one turn: bounds the memory of a scan to a few GB


def _within(name: str, value: float, low: float, high: float) -> None:
    check(
        math.isfinite(value) and low <= value <= high,
        f"simulator: {name}={value} must be a number from {low:g} to {high:g}",
    )


def _whole(name: str, value: int, low: int, high: int) -> None:
    check(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f"simulator: {name}={value} must be a whole number from {low} to {high}",
    )


@dataclass(frozen=True, kw_only=True)
class SensorConfig:
    """A spinning LiDAR: angles in degrees, lengths in metres; the defaults are a Velodyne HDL-64E's on KITTI's car.

    ``upper_spacing``: spacing of the upper half of the beams over that of the lower half (1: all alike).
    ``azimuth_step`` is rounded to a whole number of columns in a turn. ``rate``: turns per second.
    ``range_noise``: standard deviation along the ray. ``drop_out``: share of the returns that go missing.
    ``deskew``: points in the frame of the turn's centre, as KITTI odometry has them; otherwise each in the frame of
    its own moment.
    """

    beams: int = 64
    elevation_top: float = 2.0
    elevation_bottom: float = -24.8
    upper_spacing: float = 2 / 3
    azimuth_step: float = 360 / 2083
    height: float = 1.73
    min_range: float = 0.9
    max_range: float = 120.0
    range_noise: float = 0.02
    drop_out: float = 0.03
    rate: float = 10.0
    deskew: bool = True

    def __post_init__(self) -> None:
        _whole("beams", self.beams, 1, 1024)
        _within("elevation_top", self.elevation_top, -80, 80)
        _within("elevation_bottom", self.elevation_bottom, -80, 80)
        check(
            self.elevation_bottom < self.elevation_top or self.beams == 1,
            f"simulator: elevation_bottom={self.elevation_bottom} must be below elevation_top={self.elevation_top}",
        )
        _within("upper_spacing", self.upper_spacing, 0.1, 10)
        _within("azimuth_step", self.azimuth_step, 0.01, 10)
        _within("height", self.height, 0.2, 10)
        _within("min_range", self.min_range, 0, 50)
        _within("max_range", self.max_range, 1, 500)
        check(
            self.min_range < self.max_range,
            f"simulator: min_range={self.min_range} must be below max_range={self.max_range}",
        )
        _within("range_noise", self.range_noise, 0, 1)
        _within("drop_out", self.drop_out, 0, 1)
        _within("rate", self.rate, 0.1, 100)
        check(
            self.beams * self.columns <= MAX_RAYS,
            f"simulator: beams={self.beams} at azimuth_step={self.azimuth_step} are more than {MAX_RAYS} rays a turn",
        )

    @property
    def columns(self) -> int:
        """Firings in a turn."""
        return round(360 / self.azimuth_step)


@dataclass(frozen=True, kw_only=True)
class StreetConfig:
    """A street along a drive: lengths in metres, speeds in m/s, counts per 100 m of street unless said otherwise.

    ``length``: metres that can be driven (None: as many as the scans need). ``variation``: a street's own widths,
    setback and densities differ by up to this share from the values here, drawn from the seed. ``curvature``: the
    largest heading of the road against its mean, radians. ``relief``: amplitude of the road's height. ``bumps``: of
    the terrain beside it, which may also rise or fall sideways by ``bank`` metres a metre. ``setback``: mean distance
    of buildings from the sidewalk. ``buildings``: share of the street front that is built up.
    """

    length: float | None = None
    road_width: float = 7.5
    sidewalk_width: float = 2.2
    setback: float = 2.5
    kerb: float = 0.12
    curvature: float = 0.25
    relief: float = 0.6
    bumps: float = 0.04
    bank: float = 0.04
    buildings: float = 0.7
    fences: float = 0.4
    crossroads: float = 1.2
    poles: float = 6.0
    trees: float = 14.0
    bushes: float = 14.0
    parked_cars: float = 9.0
    moving_cars: float = 2.0
    traffic_speed: float = 9.0
    speed: float = 8.0
    variation: float = 0.2

    def __post_init__(self) -> None:
        if self.length is not None:
            _within("length", self.length, 0, 20_000)
        _within("road_width", self.road_width, 4, 30)
        _within("sidewalk_width", self.sidewalk_width, 0, 10)
        _within("setback", self.setback, 0, 30)
        _within("kerb", self.kerb, 0, 0.5)
        _within("curvature", self.curvature, 0, 0.5)
        _within("relief", self.relief, 0, 3)
        _within("bumps", self.bumps, 0, 0.5)
        _within("bank", self.bank, 0, 0.3)
        _within("buildings", self.buildings, 0, 1)
        _within("fences", self.fences, 0, 1)
        _within("crossroads", self.crossroads, 0, 3)
        for name in ("poles", "trees", "bushes", "parked_cars"):
            _within(name, getattr(self, name), 0, 40)
        _within("moving_cars", self.moving_cars, 0, 10)
        _within("traffic_speed", self.traffic_speed, 0, 60)
        _within("speed", self.speed, 0, 60)
        _within("variation", self.variation, 0, 0.5)
