"""Procedural streets: what stands where along a drive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from fewstep.lidar.simulator.config import StreetConfig
from fewstep.lidar.simulator.ground import Ground, Lane, Waves
from fewstep.lidar.simulator.world import (
    BUILDING,
    FENCE,
    POLE,
    SIGN,
    TRUNK,
    VEGETATION,
    Car,
    Driver,
    MovingCar,
    Shape,
    Shapes,
    World,
)

MARGIN = 140.0  # metres of street before and behind the drive
PARKING_WIDTH = 2.2
SIDES = (1, -1)  # left, right of the direction of the drive


class Planner:
    """Draws one street from a seed; ``make`` returns it."""

    def __init__(self, config: StreetConfig, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng([seed, 0])
        self.low, self.high = -MARGIN, (config.length or 0.0) + MARGIN
        self.ground = self._ground()
        self.boxes: list[Shape] = []
        self.cylinders: list[Shape] = []
        self.canopies: list[Shape] = []
        self.instance = 0

    def make(self) -> World:
        """Return the world."""
        for side in SIDES:
            self._front_row(side)
            self._back_row(side)
            self._parked(side)
        self.built = Shapes.of(self.boxes)
        for side in SIDES:
            self._along(side, self.config.poles, self._pole)
            self._along(side, self.config.trees, self._tree)
            self._along(side, self.config.bushes, self._bush)
        ego = Driver(self._lane(-self.ground.road_half / 2), 0.0, self.config.speed)
        traffic = self._traffic(ego)
        kinds = (Shapes.of(self.boxes), Shapes.of(self.cylinders), Shapes.of(self.canopies))
        return World(self.ground, ego, *kinds, traffic)

    def _varied(self, value: float) -> float:
        return value * (1 + self.config.variation * self.rng.uniform(-1, 1))

    def _uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def _ground(self) -> Ground:
        config, rng = self.config, self.rng
        lengths = rng.uniform([150, 240, 110, 190], [220, 400, 170, 320])
        phases = rng.uniform(0, 2 * np.pi, 4)
        k = 2 * np.pi / lengths
        bend, relief = Waves(), Waves()
        if config.curvature:
            weights = np.tan(config.curvature) * np.array([0.5, 0.5])
            bend = Waves(tuple(weights / k[:2]), tuple(k[:2]), tuple(phases[:2]))
        if config.relief:
            relief = Waves((0.5 * config.relief, 0.5 * config.relief), tuple(k[2:]), tuple(phases[2:]))
        parking = [PARKING_WIDTH if config.parked_cars and draw < 0.8 else 0.0 for draw in rng.random(2)]
        banks = config.bank * rng.uniform(-1, 1, 2)
        spacing = 100 / self._varied(config.crossroads) if config.crossroads else np.inf
        return Ground(
            bend,
            relief,
            self._varied(config.road_width) / 2,
            (parking[0], parking[1]),
            (self._varied(config.sidewalk_width), self._varied(config.sidewalk_width)),
            config.kerb,
            config.bumps,
            (float(banks[0]), float(banks[1])),
            spacing,
            self._uniform(0, spacing) if config.crossroads else 0.0,
            self._uniform(2.5, 4),
        )

    def _lane(self, lateral: float) -> Lane:
        return Lane(self.ground, lateral, self.low, self.high)

    def _on_crossing(self, x: float, reach: float) -> bool:
        return bool(self.ground.from_crossing(np.array([x]))[0] < self.ground.crossing_half + reach)

    def _at(self, x: float, lateral: float) -> tuple[float, float, float, float]:
        """Return x, y, the ground's z and the heading beside the road."""
        place = self.ground.place(np.array([x]), np.array([lateral]))
        return float(place[0][0]), float(place[1][0]), float(self.ground.height(*place[:2])[0]), float(place[2][0])

    def _box(self, x: float, lateral: float, half: tuple[float, float, float], label: int, **more: float) -> None:
        """Put a box along the road with ``half[2]`` as its height above the ground (it reaches one metre into it)."""
        along, y, z, heading = self._at(x, lateral)
        centre, up = (along, y, z + (half[2] - 1) / 2), (half[2] + 1) / 2
        yaw = heading + more.get("turn", 0.0)
        self.boxes.append(Shape(centre, (half[0], half[1], up), label, yaw, albedo=more.get("albedo", 0.5)))

    def _is_free(self, x: float, y: float, reach: float) -> bool:
        """Whether no house, fence or parked car stands within ``reach`` metres of a place."""
        dx, dy = x - self.built.centre[:, 0], y - self.built.centre[:, 1]
        c, s = np.cos(self.built.yaw), np.sin(self.built.yaw)
        aside = np.abs(np.stack([c * dx + s * dy, c * dy - s * dx], -1)) - self.built.half[:, :2]
        return bool((np.hypot(*np.maximum(aside, 0).T) >= reach).all())

    def _front_row(self, side: int) -> None:
        """Houses up to the corners of crossing roads, and fences or hedges across the gaps."""
        config = self.config
        front = self.ground.fronts[0 if side > 0 else 1]
        share, setback = min(self._varied(config.buildings), 1.0), self._varied(config.setback)
        x = self.low
        while x < self.high:
            width = self._uniform(8, 24)
            gap = max(0.0, width * (1 - share) / max(share, 1e-3) * self._uniform(0.5, 1.5))
            if not share:
                width, gap = 0.0, self._uniform(10, 30)
            room = self._before_crossing(x) - 2.5  # of a sidewalk
            if room < 5:
                x += 1.0
                continue
            width = min(width, room)
            gap = min(gap, room - width)
            if width:
                self._house(x + width / 2, width, side, front + setback * self._uniform(0.3, 1.7))
            if gap > 1 and self.rng.random() < config.fences:
                self._fence(x + width, x + width + gap, side * (front + 0.3))
            x += width + max(gap, 0.05)

    def _before_crossing(self, x: float) -> float:
        """Return the metres of x up to the next crossing road, negative on one: up to its end, then."""
        spacing, half = self.ground.crossing_spacing, self.ground.crossing_half
        if not np.isfinite(spacing):
            return np.inf
        past = (x - self.ground.crossing_start + half) % spacing  # since the last one began
        return past - 2 * half if past < 2 * half else spacing - past

    def _house(self, x: float, width: float, side: int, back: float) -> None:
        """A house at a distance ``back`` from the road's middle, sometimes with a part that projects."""
        depth, tall, albedo = self._uniform(7, 14), self._uniform(4, 14), self._uniform(0.3, 0.8)
        self._box(x, side * (back + depth / 2), (width / 2, depth / 2, tall), BUILDING, albedo=albedo)
        if self.rng.random() < 0.5:  # a porch, a bay or a stair
            out, half = self._uniform(0.4, 1.2), min(self._uniform(1, 3), width / 4)
            at = x + self._uniform(-0.4, 0.4) * (width - 2 * half)
            low = min(tall, self._uniform(2.5, 8))
            self._box(at, side * (back - out / 2 + 0.1), (half, out / 2 + 0.1, low), BUILDING, albedo=albedo)

    def _fence(self, start: float, stop: float, lateral: float) -> None:
        label, thick = (FENCE, 0.05) if self.rng.random() < 0.5 else (VEGETATION, 0.35)
        pieces = max(1, round((stop - start) / 6))
        tall = self._uniform(0.9, 1.8)
        edges = np.linspace(start, stop, pieces + 1)
        for low, high in pairwise(edges):
            middle = float(low + high) / 2
            if not self._on_crossing(middle, 4):
                self._box(middle, lateral, (float(high - low) / 2, thick, tall), label, albedo=0.4)

    def _back_row(self, side: int) -> None:
        """Houses of the next street, seen through the gaps."""
        x = self.low
        while self.config.buildings and x < self.high:
            half = (self._uniform(5, 12), self._uniform(4, 7), self._uniform(4, 12))
            if self.rng.random() < 0.6 and not self._on_crossing(x, half[0] + 2):
                turn = self._uniform(-0.3, 0.3)
                self._box(x, side * self._uniform(32, 48), half, BUILDING, albedo=self._uniform(0.3, 0.8), turn=turn)
            x += 2 * half[0] + self._uniform(2, 15)

    def _car(self) -> Car:
        length = self._uniform(3.6, 4.9)
        tall = self._uniform(1.4, 1.75)
        if self.rng.random() < 0.15:
            length, tall = self._uniform(4.8, 6.0), self._uniform(1.9, 2.6)  # a van
        return Car(length, self._uniform(1.65, 1.95), tall, self._uniform(0.15, 0.8))

    def _next_instance(self) -> int:
        self.instance += 1
        return self.instance

    def _parked(self, side: int) -> None:
        strip = self.ground.parking[0 if side > 0 else 1]
        if not strip or not self.config.parked_cars:
            return
        room = 200 / self._varied(self.config.parked_cars)  # metres of one side for each car
        x = self.low
        while x < self.high:
            x += max(6.3, room * self.rng.exponential())
            if self._on_crossing(x, 5):
                continue
            lateral = side * (self.ground.road_half + strip / 2 + self._uniform(-0.15, 0.15))
            along, y, z, heading = self._at(x, lateral)
            yaw = heading + self._uniform(-0.03, 0.03) + (np.pi if self.rng.random() < 0.3 else 0.0)
            instance = self._next_instance()
            for part in self._car().parts():
                dx = part.centre[0]
                centre = (along + dx * np.cos(yaw), y + dx * np.sin(yaw), z + part.centre[2])
                self.boxes.append(Shape(centre, part.half, part.label, yaw, instance, part.albedo))

    def _along(self, side: int, count: float, put: Callable[[float, int], None]) -> None:
        """Put things at random distances along one side, half of ``count`` per 100 m."""
        for x in self._spots(200 / self._varied(count) if count else np.inf):
            if not self._on_crossing(x, 2):
                put(x, side)

    def _spots(self, spacing: float) -> Iterator[float]:
        if np.isfinite(spacing):
            x = self.low + spacing * self._uniform(0, 1)
            while x < self.high:
                yield x
                x += spacing * self._uniform(0.4, 1.6)

    def _kerbside(self, side: int) -> float:
        return float(self.ground.edges[0 if side > 0 else 1])

    def _pole(self, x: float, side: int) -> None:
        along, y, z, heading = self._at(x, side * (self._kerbside(side) + 0.5))
        if self.rng.random() < 0.4:
            tall = self._uniform(2.4, 3.2)
            self.cylinders.append(Shape((along, y, z + tall / 2), (0.04, 0.04, tall / 2), POLE, albedo=0.6))
            face = (0.03, self._uniform(0.25, 0.4), self._uniform(0.25, 0.4))
            self.boxes.append(Shape((along - 0.08, y, z + tall - 0.3), face, SIGN, heading, albedo=1.0))
        else:
            tall, radius = self._uniform(5, 9), self._uniform(0.07, 0.14)
            self.cylinders.append(Shape((along, y, z + tall / 2), (radius, radius, tall / 2), POLE, albedo=0.5))

    def _tree(self, x: float, side: int) -> None:
        alley = self.rng.random() < 0.4
        beyond = 0.9 if alley else float(self.ground.sidewalk[0 if side > 0 else 1]) + self._uniform(1, 35)
        along, y, z, _ = self._at(x, side * (self._kerbside(side) + beyond))
        trunk, radius = self._uniform(1.8, 3.0) if alley else self._uniform(0.8, 2.2), self._uniform(0.1, 0.28)
        wide, tall = self._uniform(1.2, 2.6), self._uniform(1.2, 2.6)
        if not alley:
            wide, tall = 1.3 * wide, 1.3 * tall
        if not self._is_free(along, y, radius if alley else 0.6 * wide):
            return
        stem = (trunk + tall) / 2
        self.cylinders.append(Shape((along, y, z + stem - 0.2), (radius, radius, stem + 0.2), TRUNK, albedo=0.35))
        crown = (along, y, z + trunk + 0.8 * tall)
        self.canopies.append(Shape(crown, (wide, wide, tall), VEGETATION, albedo=0.5, free_path=1.0))

    def _bush(self, x: float, side: int) -> None:
        front = float(self.ground.fronts[0 if side > 0 else 1])
        along, y, z, _ = self._at(x, side * (front + self._uniform(0.8, 25)))
        wide, tall = self._uniform(0.5, 1.8), self._uniform(0.4, 1.4)
        if not self._is_free(along, y, 0.6 * wide):
            return
        place = (along, y, z + 0.6 * tall)
        self.canopies.append(Shape(place, (wide, wide, tall), VEGETATION, albedo=0.45, free_path=0.3))

    def _traffic(self, ego: Driver) -> tuple[MovingCar, ...]:
        """A car ahead and one behind in the own lane that keep their distance, the others come towards."""
        config, oncoming = self.config, self._lane(self.ground.road_half / 2)
        low, high = oncoming.span
        count = round(self._varied(config.moving_cars) * (high - low) / 100)
        drivers = []
        if count > 1:
            drivers.append(Driver(ego.lane, self._uniform(14, 45), max(ego.speed, config.traffic_speed)))
        if count > 3:
            drivers.append(Driver(ego.lane, -self._uniform(14, 45), min(ego.speed, config.traffic_speed)))
        # at one speed, spread over the lane: they cannot run into each other
        count -= len(drivers)
        for number in range(count):
            start = low + (high - low) * (number + self._uniform(0.1, 0.6)) / count
            drivers.append(Driver(oncoming, start, -config.traffic_speed, returning=True))
        return tuple(MovingCar(driver, self._car(), self._next_instance()) for driver in drivers)


def make_street(config: StreetConfig, seed: int) -> World:
    """Return the street that a seed stands for."""
    return Planner(config, seed).make()
