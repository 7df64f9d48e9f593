"""One turn of a spinning sensor in a world."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.lidar.simulator.config import SensorConfig
from fewstep.lidar.simulator.ground import PARKING, ROAD, SIDEWALK, TERRAIN, Array
from fewstep.lidar.simulator.rays import (
    Hits,
    Rays,
    bring_up,
    cull,
    find_windows,
    hit_box,
    hit_canopy,
    hit_cylinder,
    hit_ground,
)
from fewstep.lidar.simulator.world import MOVING_CAR, World, rotation, sensor_pose

GROUND_ALBEDO = np.zeros(256)
GROUND_ALBEDO[[ROAD, PARKING, SIDEWALK, TERRAIN]] = 0.3, 0.28, 0.4, 0.45


class Scan(NamedTuple):
    """Points of a turn, beam by beam from the top: ``xyz`` "n 3" and ``remission`` "n" float32, ``labels`` uint32."""

    xyz: NDArray[np.float32]
    remission: NDArray[np.float32]
    labels: NDArray[np.uint32]


def beam_elevations(sensor: SensorConfig) -> Array:
    """Return the beams' elevations in radians, from the top down."""
    gaps = np.ones(max(sensor.beams - 1, 0))
    gaps[: max(sensor.beams // 2 - 1, 0)] = sensor.upper_spacing
    share = np.concatenate([[0.0], np.cumsum(gaps)]) / max(gaps.sum(), 1)
    return np.asarray(np.deg2rad(sensor.elevation_top + (sensor.elevation_bottom - sensor.elevation_top) * share))


def column_azimuths(sensor: SensorConfig) -> Array:
    """Return the columns' azimuths in radians: a turn goes from behind over the right, ahead (its centre), the left."""
    return np.asarray((np.arange(sensor.columns) + 0.5) * (2 * np.pi / sensor.columns) - np.pi)


def column_times(sensor: SensorConfig, time: float) -> Array:
    """Return when each column is fired in the turn whose centre is at ``time``."""
    return np.asarray(time + column_azimuths(sensor) / (2 * np.pi * sensor.rate), np.float64)


def scan_pose(world: World, sensor: SensorConfig, time: float) -> Array:
    """Return the pose 4x4 of the sensor in the world."""
    position, heading, climb = sensor_pose(world, sensor.height, np.array([time]))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(heading[0], climb[0]), position[0]
    return pose


def _rays(world: World, sensor: SensorConfig, time: float) -> Rays:
    elevation, azimuth = beam_elevations(sensor), column_azimuths(sensor)
    position, heading, climb = sensor_pose(world, sensor.height, column_times(sensor, time))
    centre = scan_pose(world, sensor, time)
    level, up = np.cos(elevation)[:, None], np.sin(elevation)[:, None]
    side = level * np.sin(azimuth)
    ahead = level * np.cos(azimuth) * np.cos(climb) - up * np.sin(climb)
    c, s = np.cos(heading), np.sin(heading)
    sway = heading - np.arctan2(centre[1, 0], centre[0, 0])
    return Rays(
        x=c * ahead - s * side,
        y=s * ahead + c * side,
        z=level * np.cos(azimuth) * np.sin(climb) + up * np.cos(climb),
        origin=(position - centre[:3, 3]).T.copy(),
        elevation=elevation,
        azimuth=azimuth,
        centre=centre[:3, 3],
        turn=centre[:3, :3],
        climb=float(np.abs(climb).max()),
        sway=float(np.abs(sway - 2 * np.pi * np.rint(sway / (2 * np.pi))).max() + np.ptp(climb)),
    )


class _Tracer:
    """Meets everything in sight with the rays of a turn and numbers the surfaces met."""

    def __init__(self, world: World, sensor: SensorConfig, time: float, rng: np.random.Generator) -> None:
        self.world, self.sensor, self.rng = world, sensor, rng
        self.times = column_times(sensor, time)
        self.rays = rays = _rays(world, sensor, time)
        self.hits = Hits(np.full(rays.x.shape, np.inf), np.full(rays.x.shape, -1, np.int32), np.zeros(rays.x.shape))
        self.travel = float(np.hypot(*rays.origin[:2]).max() + np.abs(rays.origin[2]).max())
        self.labels, self.instances, self.albedos = [0], [0], [0.0]  # the ground is surface 0 and looked up later

    def _surface(self, label: int, instance: int, albedo: float) -> int:
        self.labels.append(label)
        self.instances.append(instance)
        self.albedos.append(albedo)
        return len(self.labels) - 1

    def run(self) -> None:
        hit_ground(self.rays, self.hits, self.world.ground, 0, self.sensor.max_range)
        for kind in ("boxes", "cylinders", "canopies"):
            self._static(kind)
        for number in range(len(self.world.traffic)):
            self._moving(number)
        bring_up(self.rays, self.hits, self.world.ground, 0)

    def _static(self, kind: str) -> None:
        rays, hits, shapes = self.rays, self.hits, getattr(self.world, kind)
        near = cull(shapes, rays.centre, self.sensor.max_range + self.travel)
        centre, half, yaw = shapes.centre[near] - rays.centre, shapes.half[near], shapes.yaw[near]
        windows = find_windows(rays, centre, half, yaw, self.travel)
        for i, n in enumerate(near):
            surface = self._surface(int(shapes.label[n]), int(shapes.instance[n]), float(shapes.albedo[n]))
            for part in windows.parts(i, len(self.times)):
                if kind == "boxes":
                    hit_box(rays, hits, part, centre[i], half[i], yaw[i], surface)
                elif kind == "cylinders":
                    hit_cylinder(rays, hits, part, centre[i], half[i], surface)
                else:
                    hit_canopy(rays, hits, part, centre[i], half[i], float(shapes.free_path[n]), surface, self.rng)

    def _moving(self, number: int) -> None:
        moving, rays = self.world.traffic[number], self.rays
        position, yaw, _ = moving.driver.pose(self.times)
        middle = len(yaw) // 2
        reach = self.travel + abs(moving.driver.speed) / self.sensor.rate
        if np.hypot(*(position[middle] - rays.centre)[:2]) - moving.car.length > self.sensor.max_range + reach:
            return
        place = (position - rays.centre).T
        for shape in moving.car.parts():
            surface = self._surface(MOVING_CAR, moving.instance, shape.albedo)
            x, _, z = shape.centre
            centre = place + np.stack([x * np.cos(yaw), x * np.sin(yaw), np.full_like(yaw, z)])
            # the heading turns a little within the turn
            half = np.array(shape.half)
            slack = half + moving.car.length * np.array([1.0, 1.0, 0.0]) * np.ptp(yaw)
            windows = find_windows(rays, centre[None, :, middle], slack[None], yaw[middle : middle + 1], reach)
            for part in windows.parts(0, len(self.times)):
                hit_box(rays, self.hits, part, centre[:, part[1]], half, yaw[part[1]], surface)


def simulate_scan(world: World, sensor: SensorConfig, time: float, rng: np.random.Generator) -> Scan:
    """Return what the sensor sees in the turn whose centre is at ``time`` (seconds), in its frame of that moment.

    Noise moves points along their rays; without ``sensor.deskew`` each point is in the frame of its own moment.
    """
    tracer = _Tracer(world, sensor, time, rng)
    tracer.run()
    rays, hits = tracer.rays, tracer.hits
    noise = rng.standard_normal(hits.distance.shape)
    kept = (hits.distance >= sensor.min_range) & (hits.distance <= sensor.max_range)
    kept &= rng.random(hits.distance.shape) >= sensor.drop_out
    row, column = np.nonzero(kept)
    surface = hits.surface[kept]
    at = rays.origin[:, column] + hits.distance[kept] * np.stack([rays.x[kept], rays.y[kept], rays.z[kept]])
    labels = np.array(tracer.labels, np.uint32)[surface]
    albedo = np.array(tracer.albedos)[surface]
    ground = surface == 0
    x, y = at[0, ground] + rays.centre[0], at[1, ground] + rays.centre[1]
    labels[ground] = world.ground.material(x, y)
    albedo[ground] = GROUND_ALBEDO[labels[ground]]
    labels |= np.array(tracer.instances, np.uint32)[surface] << np.uint32(16)
    measured = hits.distance[kept] + sensor.range_noise * noise[kept]
    if sensor.deskew:
        at = rays.origin[:, column] + measured * np.stack([rays.x[kept], rays.y[kept], rays.z[kept]])
        xyz = at.T @ rays.turn
    else:
        level = np.cos(rays.elevation)[row]
        azimuth = rays.azimuth[column]
        xyz = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(rays.elevation)[row]], -1)
        xyz *= measured[:, None]
    remission = np.clip(albedo * hits.cosine[kept], 0, 1)
    return Scan(xyz.astype(np.float32), remission.astype(np.float32), labels)
