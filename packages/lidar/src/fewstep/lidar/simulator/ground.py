"""The street's surface and lanes, in closed form: where the road runs, how high the ground is, what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROAD, PARKING, SIDEWALK, TERRAIN = 40, 44, 48, 72
KERB_RUN = 0.05  # metres a kerb takes to rise
BANK_REACH = 30.0  # metres from the sidewalk up to which terrain rises or falls sideways
LANE_STEP = 0.1  # metres between the points an arc length is tabulated at


@dataclass(frozen=True)
class Waves:
    """A sum of sines of one coordinate."""

    amplitude: tuple[float, ...] = ()
    frequency: tuple[float, ...] = ()
    phase: tuple[float, ...] = ()

    def value(self, x: Array) -> Array:
        """Return the sum at ``x``."""
        out = np.zeros(np.shape(x))
        for a, k, p in zip(self.amplitude, self.frequency, self.phase, strict=True):
            out += a * np.sin(k * x + p)
        return out

    def slope(self, x: Array) -> Array:
        """Return its derivative at ``x``."""
        out = np.zeros(np.shape(x))
        for a, k, p in zip(self.amplitude, self.frequency, self.phase, strict=True):
            out += a * k * np.cos(k * x + p)
        return out


@dataclass(frozen=True)
class Ground:
    """A road along y = bend(x), and what lies beside it; pairs are (left, right) of the direction of growing x.

    From the middle out: road, parking strip, kerb, sidewalk, terrain. Crossing roads repeat every
    ``crossing_spacing`` metres of x.
    """

    bend: Waves = Waves()
    relief: Waves = Waves()
    road_half: float = 4.0
    parking: tuple[float, float] = (0.0, 0.0)
    sidewalk: tuple[float, float] = (2.0, 2.0)
    kerb: float = 0.0
    bumps: float = 0.0
    bank: tuple[float, float] = (0.0, 0.0)
    crossing_spacing: float = np.inf
    crossing_start: float = 0.0
    crossing_half: float = 3.0

    @cached_property
    def edges(self) -> Array:
        """Distance of the kerbs from the middle, (left, right)."""
        return self.road_half + np.array(self.parking)

    @cached_property
    def fronts(self) -> Array:
        """Distance of the sidewalks' outer edges from the middle, (left, right)."""
        return np.asarray(self.edges + np.array(self.sidewalk))

    def lateral(self, x: Array, y: Array) -> Array:
        """Return the distance from the road's middle, positive to the left (exact where the road is straight)."""
        if not self.bend.amplitude:
            return np.asarray(y)
        slope = self.bend.slope(x)
        return np.asarray((y - self.bend.value(x)) / np.sqrt(1 + slope * slope))

    def from_crossing(self, x: Array) -> Array:
        """Return the distance from the middle of the nearest crossing road."""
        if not np.isfinite(self.crossing_spacing):
            return np.full_like(x, np.inf)
        u = x - self.crossing_start
        return np.asarray(np.abs(u - self.crossing_spacing * np.rint(u / self.crossing_spacing)))

    def height(self, x: Array, y: Array) -> Array:
        """Return the ground's z at positions of any shape."""
        z: Array = self.relief.value(x)
        if not (self.kerb or self.bumps or any(self.bank)):
            return z
        lateral = self.lateral(x, y)
        right = (lateral < 0).astype(np.intp)
        out = np.abs(lateral)
        if self.kerb:
            raised = np.clip((out - self.edges[right]) / KERB_RUN, 0, 1)
            z += self.kerb * raised * np.clip((self.from_crossing(x) - self.crossing_half) / KERB_RUN, 0, 1)
        beyond = out - self.fronts[right]
        if any(self.bank):
            z += np.array(self.bank)[right] * np.clip(beyond, 0, BANK_REACH)
        if self.bumps:
            z += (
                self.bumps
                * np.clip(0.5 * beyond, 0, 1)
                * (np.sin(0.9 * x + 0.4) * np.sin(0.7 * y + 2.1) + 0.5 * np.sin(1.9 * x - 1.1 * y))
            )
        return z

    def material(self, x: Array, y: Array) -> NDArray[np.uint32]:
        """Return the SemanticKITTI id of the ground."""
        lateral = self.lateral(x, y)
        right = (lateral < 0).astype(np.intp)
        out = np.abs(lateral)
        label = np.where(out < self.fronts[right], SIDEWALK, TERRAIN)
        label = np.where(out < self.edges[right], PARKING, label)
        label = np.where((out < self.road_half) | (self.from_crossing(x) < self.crossing_half), ROAD, label)
        return label.astype(np.uint32)

    def place(self, x: Array, lateral: Array) -> tuple[Array, Array, Array]:
        """Return x, y and the road's heading at a distance to the left of the road's point at ``x``."""
        heading = np.arctan(self.bend.slope(x))
        return x - lateral * np.sin(heading), self.bend.value(x) + lateral * np.cos(heading), heading


@dataclass(frozen=True)
class Lane:
    """A line parallel to the road's middle, measured in its own metres from the road's x = 0.

    ``start`` and ``stop``: the x between which it exists.
    """

    ground: Ground
    lateral: float
    start: float
    stop: float

    @cached_property
    def _table(self) -> tuple[Array, Array]:
        x = np.linspace(self.start, self.stop, max(2, int((self.stop - self.start) / LANE_STEP)))
        along, y, _ = self.ground.place(x, np.full_like(x, self.lateral))
        z = self.ground.height(along, y)
        travelled = np.concatenate([[0.0], np.cumsum(np.sqrt(np.diff(along) ** 2 + np.diff(y) ** 2 + np.diff(z) ** 2))])
        return x, travelled - np.interp(0.0, x, travelled)

    @property
    def span(self) -> tuple[float, float]:
        """First and last metre of the lane."""
        travelled = self._table[1]
        return float(travelled[0]), float(travelled[-1])

    def pose(self, metres: Array) -> tuple[Array, Array, Array]:
        """Return positions on the ground "n 3", headings "n" and climbs "n" (radians, upwards) along the lane."""
        table_x, travelled = self._table
        x = np.interp(metres, travelled, table_x)
        along, y, heading = self.ground.place(x, np.full_like(x, self.lateral))
        ahead = np.stack([np.cos(heading), np.sin(heading)], -1) * LANE_STEP
        rise = self.ground.height(along + ahead[:, 0], y + ahead[:, 1]) - self.ground.height(
            along - ahead[:, 0], y - ahead[:, 1]
        )
        return np.stack([along, y, self.ground.height(along, y)], -1), heading, np.arctan(rise / (2 * LANE_STEP))
