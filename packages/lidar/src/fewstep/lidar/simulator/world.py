"""What a sensor can see: boxes, upright cylinders, canopies, traffic, and the car that carries the sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewstep.lidar.simulator.ground import Array, Ground, Lane

CAR, MOVING_CAR, BUILDING, FENCE, VEGETATION, TRUNK, POLE, SIGN = 10, 252, 50, 51, 70, 71, 80, 81


@dataclass(frozen=True)
class Shapes:
    """Primitives of one kind as columns: the centre's position "n 3", half extents "n 3", heading "n", what they are.

    Cylinders and canopies are the upright cylinder and the ellipsoid inscribed in such a box, with equal half extents
    in x and y. ``free_path``: mean metres a ray goes through a canopy before it hits a leaf.
    """

    centre: Array
    half: Array
    yaw: Array
    label: NDArray[np.uint32]
    instance: NDArray[np.uint32]
    albedo: Array
    free_path: Array

    def __len__(self) -> int:
        return len(self.centre)

    @classmethod
    def of(cls, shapes: Sequence[Shape] = ()) -> Shapes:
        """Return the columns of a list of primitives."""
        return cls(
            np.array([s.centre for s in shapes], np.float64).reshape(-1, 3),
            np.array([s.half for s in shapes], np.float64).reshape(-1, 3),
            np.array([s.yaw for s in shapes], np.float64),
            np.array([s.label for s in shapes], np.uint32),
            np.array([s.instance for s in shapes], np.uint32),
            np.array([s.albedo for s in shapes], np.float64),
            np.array([s.free_path for s in shapes], np.float64),
        )


@dataclass(frozen=True)
class Shape:
    """One primitive; see :class:`Shapes`."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    label: int
    yaw: float = 0.0
    instance: int = 0
    albedo: float = 0.5
    free_path: float = 1.0


@dataclass(frozen=True)
class Car:
    """The two boxes of a car, in metres from the point of the ground under its middle, x forward."""

    length: float = 4.3
    width: float = 1.8
    height: float = 1.5
    albedo: float = 0.4

    def parts(self) -> tuple[Shape, Shape]:
        """Return body and cabin in the car's own frame."""
        waist = 0.62 * self.height
        body = ((0.0, 0.0, (0.22 + waist) / 2), (self.length / 2, self.width / 2, (waist - 0.22) / 2))
        roof = (self.height - waist) / 2
        cabin = ((-0.06 * self.length, 0.0, waist + roof), (0.27 * self.length, 0.45 * self.width, roof))
        return Shape(*body, CAR, albedo=self.albedo), Shape(*cabin, CAR, albedo=0.5 * self.albedo)


@dataclass(frozen=True)
class Driver:
    """Something that follows a lane: its metre at time 0, and its speed (negative against the lane's direction).

    Past the end of a lane, out of the sensor's sight, it goes on at the other end where it is ``returning``, and stops
    there otherwise.
    """

    lane: Lane
    start: float
    speed: float
    returning: bool = False

    def pose(self, times: Array) -> tuple[Array, Array, Array]:
        """Return positions on the ground "n 3", headings "n" and climbs "n" in the direction of travel."""
        metres = self.start + self.speed * times
        if self.returning:
            low, high = self.lane.span
            metres = low + np.mod(metres - low, high - low)
        position, heading, climb = self.lane.pose(metres)
        return (position, heading + np.pi, -climb) if self.speed < 0 else (position, heading, climb)


@dataclass(frozen=True)
class MovingCar:
    """A car in traffic with its instance number."""

    driver: Driver
    car: Car
    instance: int


@dataclass(frozen=True)
class World:
    """A street with everything on it; ``ego`` carries the sensor."""

    ground: Ground
    ego: Driver
    boxes: Shapes = field(default_factory=Shapes.of)
    cylinders: Shapes = field(default_factory=Shapes.of)
    canopies: Shapes = field(default_factory=Shapes.of)
    traffic: tuple[MovingCar, ...] = ()


def sensor_pose(world: World, height: float, times: Array) -> tuple[Array, Array, Array]:
    """Return the sensor's positions "n 3", headings "n" and climbs "n" in the world; it stands upright on the car."""
    position, heading, climb = world.ego.pose(times)
    up = np.stack([-np.sin(climb) * np.cos(heading), -np.sin(climb) * np.sin(heading), np.cos(climb)], -1)
    return position + height * up, heading, climb


def rotation(heading: float, climb: float) -> Array:
    """Return the rotation 3x3 from a frame with x along heading and climb, z upwards, into the world."""
    c, s, a, b = np.cos(heading), np.sin(heading), np.cos(climb), np.sin(climb)
    return np.array([[c * a, -s, -c * b], [s * a, c, -s * b], [b, 0.0, a]])
