"""The simulator: closed forms of what a ray meets, statistics of the sensor, and drives that agree with their poses."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import fields, replace

import numpy as np
import pytest

from fewstep.core.errors import UserError
from fewstep.lidar.simulator import (
    SensorConfig,
    StreetConfig,
    drive,
    make_street,
    scanner,
    simulate_scan,
    simulate_sequence,
)
from fewstep.lidar.simulator import sequence as sequence_module
from fewstep.lidar.simulator.ground import Ground, Lane, Waves
from fewstep.lidar.simulator.rays import find_windows
from fewstep.lidar.simulator.scanner import beam_elevations, column_azimuths, scan_pose
from fewstep.lidar.simulator.sequence import write_sequence
from fewstep.lidar.simulator.verb import simulate, simulate_arguments
from fewstep.lidar.simulator.world import Car, Driver, MovingCar, Shape, Shapes, World

EXACT = SensorConfig(beams=32, azimuth_step=1.0, range_noise=0, drop_out=0, min_range=0)
HEIGHT = EXACT.height
FLAT = Ground()
GROUND_LABELS = (40, 44, 48, 72)


def on_flat(speed=0.0, ground=FLAT, **more):
    """A street without anything else, driven along x = 0, 1, ... m on y = 0."""
    return World(ground, Driver(Lane(ground, 0.0, -200, 400), 0.0, speed), **more)


def scan(world, sensor=EXACT, time=0.0, seed=0):
    return simulate_scan(world, sensor, time, np.random.default_rng(seed))


def angles(xyz):
    """Range, elevation and azimuth of points."""
    xyz = xyz.astype(np.float64)
    return np.linalg.norm(xyz, axis=1), np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])), np.arctan2(*xyz.T[1::-1])


def to_world(xyz, pose):
    return xyz.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]


def semantic(found):
    return found.labels & 0xFFFF


# --- the sensor -----------------------------------------------------------------------------------------------------


def test_flat_ground_is_met_where_the_closed_form_says():
    found = scan(on_flat(speed=10.0), replace(EXACT, max_range=60, deskew=False))
    measured, elevation, _ = angles(found.xyz)
    np.testing.assert_allclose(measured, HEIGHT / np.sin(-elevation), rtol=1e-5)
    down = beam_elevations(EXACT)
    reached = HEIGHT / np.sin(np.maximum(-down, 1e-9)) < 60
    assert len(measured) == reached.sum() * EXACT.columns  # each ray that can, and no other
    np.testing.assert_allclose(
        found.remission,
        (0.3, 0.4, 0.45) @ np.stack([semantic(found) == label for label in (40, 48, 72)]) * np.sin(-elevation),
        rtol=1e-4,
    )


def test_the_ground_changes_its_material_where_its_edges_are():
    ground = Ground(road_half=4, parking=(2, 0), sidewalk=(1, 3), crossing_spacing=100, crossing_start=10)
    found = scan(on_flat(ground=ground))
    x, y = found.xyz[:, 0].astype(np.float64), found.xyz[:, 1].astype(np.float64)
    expected = np.select([abs(x - 10) < 3, abs(y) < 4, (y > 0) & (y < 6), (y > -7) & (y < 7)], [40, 40, 44, 48], 72)
    np.testing.assert_array_equal(semantic(found), expected)
    assert set(expected) == {40, 44, 48, 72}


def test_points_lie_on_the_grid_of_beams_and_columns():
    sensor = replace(EXACT, deskew=False)
    world = make_street(StreetConfig(length=0), 3)
    _, elevation, azimuth = angles(scan(world, sensor).xyz)
    for angle, grid in ((elevation, beam_elevations(sensor)[::-1]), (azimuth, column_azimuths(sensor))):
        nearest = np.abs(angle[:, None] - grid).min(1)
        assert nearest.max() < 1e-6


def test_the_default_beams_are_those_of_a_64_beam_sensor():
    degrees = np.rad2deg(beam_elevations(SensorConfig()))
    assert degrees[0] == pytest.approx(2)
    assert degrees[-1] == pytest.approx(-24.8)
    gaps = -np.diff(degrees)
    np.testing.assert_allclose(gaps[:31], 2 / 3 * gaps[-1])
    np.testing.assert_allclose(gaps[31:], gaps[-1])
    assert SensorConfig().columns == 2083
    assert beam_elevations(replace(EXACT, beams=1)).shape == (1,)


def test_noise_is_along_the_ray_and_of_the_given_size():
    noisy = replace(EXACT, range_noise=0.05, azimuth_step=0.5, max_range=20)
    clean, found = (angles(scan(on_flat(), s).xyz) for s in (replace(noisy, range_noise=0), noisy))
    error = found[0] - clean[0]
    assert abs(error.mean()) < 4 * 0.05 / len(error) ** 0.5
    assert error.std() == pytest.approx(0.05, rel=4 / (2 * len(error)) ** 0.5)
    np.testing.assert_allclose(np.array(found[1:]), np.array(clean[1:]), atol=2e-6)


def test_drop_out_is_a_share_of_the_returns():
    sensor = replace(EXACT, azimuth_step=0.25)
    full = len(scan(on_flat(), sensor).xyz)
    left = len(scan(on_flat(), replace(sensor, drop_out=0.2)).xyz)
    assert abs(left - 0.8 * full) < 4 * (0.16 * full) ** 0.5
    assert len(scan(on_flat(), replace(EXACT, drop_out=1)).xyz) == 0


def test_range_limits_hold():
    measured = angles(
        scan(make_street(StreetConfig(length=0, speed=0), 1), replace(EXACT, min_range=6, max_range=30)).xyz
    )[0]
    assert 6 <= measured.min() < 7
    assert 29 < measured.max() <= 30 + 1e-4


# --- what rays meet -------------------------------------------------------------------------------------------------


def test_a_wall_is_met_at_its_plane_and_hides_what_is_behind():
    wall = Shape((12.0, 0.0, 0.0), (2.0, 500.0, 50.0), 50, albedo=0.8)
    behind = Shape((30.0, 0.0, 0.0), (2.0, 50.0, 60.0), 50)
    found = scan(on_flat(boxes=Shapes.of([behind, wall])))
    on_wall = semantic(found) == 50
    measured, elevation, azimuth = angles(found.xyz[on_wall])
    np.testing.assert_allclose(measured, 10 / (np.cos(elevation) * np.cos(azimuth)), rtol=1e-5)
    np.testing.assert_allclose(found.remission[on_wall], 0.8 * np.cos(elevation) * np.cos(azimuth), rtol=1e-4)
    assert on_wall.any()
    assert found.xyz[:, 0].max() < 10 + 1e-4


def test_a_cylinder_is_met_on_its_mantle():
    found = scan(on_flat(cylinders=Shapes.of([Shape((6.0, 2.0, 0.6), (0.5, 0.5, 0.6), 80)])))
    points = found.xyz[semantic(found) == 80].astype(np.float64)
    offset = points[:, :2] - [6, 2]
    np.testing.assert_allclose(np.hypot(*offset.T), 0.5, atol=1e-5)
    assert (offset @ [6, 2] < 0.5).all()  # the side that looks at the sensor
    assert points[:, 2].min() > -HEIGHT - 1e-4
    assert points[:, 2].max() < 1.2 - HEIGHT + 1e-4
    # as many columns as its shadow is wide
    width = 2 * np.arcsin(0.5 / np.hypot(6, 2))
    assert abs(len(np.unique(angles(points)[2].round(5))) - np.rad2deg(width)) <= 1


def test_boxes_equal_their_six_faces_met_one_by_one():
    rng = np.random.default_rng(5)
    shapes = [
        Shape(tuple(rng.uniform([-30, -30, 0], [30, 30, 4])), tuple(rng.uniform(0.3, 3, 3)), 50, rng.uniform(-4, 4))
        for _ in range(30)
    ]
    shapes = [s for s in shapes if np.hypot(*s.centre[:2]) > 6]
    found = scan(on_flat(boxes=Shapes.of(shapes)))
    el, az = np.meshgrid(beam_elevations(EXACT), column_azimuths(EXACT), indexing="ij")
    rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1).reshape(-1, 3)
    nearest = np.where(rays[:, 2] < 0, HEIGHT / np.maximum(-rays[:, 2], 1e-12), np.inf)
    for s in shapes:
        c, si = np.cos(s.yaw), np.sin(s.yaw)
        turn = np.array([[c, si, 0], [-si, c, 0], [0, 0, 1]])
        origin, direction = turn @ (np.array([0, 0, HEIGHT]) - s.centre), rays @ turn.T
        for axis in range(3):
            for sign in (-1, 1):
                t = (sign * s.half[axis] - origin[axis]) / direction[:, axis]
                point = origin + t[:, None] * direction
                inside = (np.abs(np.delete(point, axis, 1)) <= np.delete(np.array(s.half), axis)).all(1) & (t > 0)
                nearest = np.minimum(nearest, np.where(inside, t, np.inf))
    nearest = nearest[nearest < EXACT.max_range]
    np.testing.assert_allclose(angles(found.xyz)[0], nearest, rtol=1e-5)


def crowded_hill(seed):
    """Boxes and poles all around, some over the sensor, on a road as steep as a stair."""
    rng = np.random.default_rng(seed)
    ground = Ground(relief=Waves((3.0,), (0.1,), (0.3,)))
    shapes = [
        Shape((*place, rng.uniform(-2, 12)), tuple(rng.uniform(0.05, 3, 3)), label, rng.uniform(-4, 4))
        for label in (50, 80)
        for place in rng.normal(0, 12, (150, 2))
    ]
    poles = Shapes.of([replace(s, half=(s.half[0], s.half[0], s.half[2]), yaw=0.0) for s in shapes[150:]])
    return on_flat(ground=ground, speed=25.0, boxes=Shapes.of(shapes[:150]), cylinders=poles)


def test_windows_are_never_too_small(monkeypatch):
    """Cutting the grid to where a primitive can be seen changes nothing: moving, leaning, turning sensor and cars."""
    street = make_street(StreetConfig(length=60, curvature=0.5, relief=3, speed=25, traffic_speed=20), 2)
    worlds = [replace(street, canopies=Shapes.of()), *map(crowded_hill, range(4))]  # leaves depend on the draws' order
    sensor = replace(EXACT, rate=5, elevation_top=30)
    found = [scan(world, sensor, time) for world in worlds for time in (0.2, 0.5)]

    def all_rays(rays, centre, half, yaw, reach):
        windows = find_windows(rays, centre, half, yaw, reach)
        full = {"top": 0, "bottom": len(rays.elevation), "left": 0, "right": len(rays.azimuth)}
        return replace(windows, **{name: np.full_like(windows.top, value) for name, value in full.items()})

    monkeypatch.setattr(scanner, "find_windows", all_rays)
    everything = [scan(world, sensor, time) for world in worlds for time in (0.2, 0.5)]
    for one, other in zip(found, everything, strict=True):
        for column, full in zip(one, other, strict=True):
            np.testing.assert_array_equal(column, full)
    assert len({*semantic(found[0])} & {10, 50, 71, 80, 252}) == 5
    assert all((semantic(one) == 80).sum() > 100 for one in found[2:])


def test_a_canopy_lets_rays_through_by_its_free_path():
    """Of rays through the middle of a sphere, exp(-2 radius / free path) come out behind; depths are exponential."""
    sensor = replace(
        EXACT, beams=8, elevation_top=0.3, elevation_bottom=-0.3, upper_spacing=1, azimuth_step=0.01, max_range=50
    )
    wall = Shapes.of([Shape((30.0, 0.0, 0.0), (1.0, 30.0, 30.0), 50)])
    crown = Shapes.of([Shape((10.0, 0.0, HEIGHT), (2.0, 2.0, 2.0), 70, free_path=3.0)])
    found = scan(on_flat(boxes=wall, canopies=crown), sensor)
    middle = np.abs(angles(found.xyz)[2]) < 0.02
    leaves = semantic(found)[middle] == 70
    through, count = np.exp(-4 / 3), middle.sum()
    assert abs((~leaves).sum() - through * count) < 4 * (through * (1 - through) * count) ** 0.5
    depth = angles(found.xyz)[0][middle][leaves] - 8
    assert depth.min() > -1e-3
    assert depth.max() < 4 + 1e-2
    expected = 3 - 4 * through / (1 - through)  # mean of an exponential cut at 4
    assert depth.mean() == pytest.approx(expected, abs=4 * depth.std() / len(depth) ** 0.5)


def test_hills_are_met_on_their_surface_and_hide_what_is_behind():
    ground = Ground(
        bend=Waves((8.0,), (0.03,), (0.2,)),
        relief=Waves((1.5,), (0.2,), (1.0,)),
        kerb=0.15,
        bumps=0.1,
        bank=(0.1, -0.1),
        crossing_spacing=70,
    )
    world = on_flat(ground=ground, speed=10)
    for time in (0.0, 2.0):
        found = scan(world, time=time)
        pose = scan_pose(world, EXACT, time)
        points = to_world(found.xyz, pose)
        steep = beam_elevations(EXACT) < np.deg2rad(-15)
        assert (angles(scan(world, replace(EXACT, deskew=False), time).xyz)[1] < np.deg2rad(-15)).sum() == (
            steep.sum() * EXACT.columns
        )  # no ray gets lost
        assert np.abs(points[:, 2] - ground.height(points[:, 0], points[:, 1])).max() < 1e-4
        # nothing of the ground rises above the line of sight (walls a kerb's width thin aside)
        steps = np.linspace(0.02, 0.98, 200)[:, None, None]
        start = pose[:3, 3]
        sight = start + steps * (points - start)[None]
        buried = ground.height(sight[..., 0], sight[..., 1]) - sight[..., 2]
        assert (buried.max(0) > 0.05).mean() < 2e-3
    np.testing.assert_allclose(pose[:3, 3] - HEIGHT * pose[:3, 2], world.ego.pose(np.array([2.0]))[0][0], atol=1e-9)
    assert abs(np.arcsin(pose[2, 0])) > 0.03  # the car leans: the columns' planes are not the rays'


# --- drives ---------------------------------------------------------------------------------------------------------


def files(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_tree_is_semantickitti_s_and_a_function_of_the_seed(tmp_path):
    sensor = SensorConfig(beams=16, azimuth_step=2.0)
    first, again, other = (
        files(simulate_sequence(tmp_path / str(n), "00", 3, seed, sensor=sensor)) for n, seed in enumerate((4, 4, 5))
    )
    assert first == again
    stems = [f"{n:06d}" for n in range(3)]
    assert set(first) == {"poses.txt", "calib.txt", "times.txt"} | {f"velodyne/{s}.bin" for s in stems} | {
        f"labels/{s}.label" for s in stems
    }
    assert all(first[name] != other[name] for name in first if name.endswith((".bin", ".label")))
    for stem in stems:
        assert len(first[f"velodyne/{stem}.bin"]) == 4 * len(first[f"labels/{stem}.label"]) > 0
    points = np.frombuffer(first["velodyne/000001.bin"], "<f4").reshape(-1, 4)
    assert np.isfinite(points).all()
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 1
    assert [len(first[name].splitlines()) for name in ("poses.txt", "times.txt")] == [3, 3]
    assert np.loadtxt(first["times.txt"].splitlines()).tolist() == pytest.approx([0, 0.1, 0.2])
    keys = dict(line.split(": ") for line in first["calib.txt"].decode().splitlines())
    assert list(keys) == ["P0", "P1", "P2", "P3", "Tr"]
    assert all(len(row.split()) == 12 for row in keys.values())


def test_scans_of_one_world_differ_by_their_seed_and_number(tmp_path):
    world, sensor, found = on_flat(), replace(EXACT, range_noise=0.02), []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_sequence(folder, world, 2, seed, sensor)
        found += [(folder / "velodyne" / f"{number:06d}.bin").read_bytes() for number in range(2)]
    assert len(set(found)) == 4


def read_pose(row):
    return np.vstack([np.array(row.split(), np.float64).reshape(3, 4), [0, 0, 0, 1]])


def test_scans_agree_in_the_world_of_the_written_poses(tmp_path):
    """Points of the same box, taken to the first scan's frame by T_i = Tr^-1 P_i Tr, lie on the same box."""
    ground = Ground(bend=Waves((6.0,), (0.04,), (0.5,)), relief=Waves((0.8,), (0.1,), (0.3,)))
    box = Shape((25.0, 10.0, 2.0), (4.0, 3.0, 6.0), 50, yaw=0.4)
    world = on_flat(speed=12.0, ground=ground, boxes=Shapes.of([box]))
    write_sequence(tmp_path, world, 21, 0, EXACT)
    tr = read_pose(dict(row.split(": ") for row in (tmp_path / "calib.txt").read_text().splitlines())["Tr"])
    assert np.abs(tr[:3, :3] @ [1, 0, 0] - [0, 0, 1]).max() < 0.02
    assert np.abs(tr[:3, :3] - tr[:3, :3].round()).max() > 0.005
    np.testing.assert_allclose(tr[:3, :3] @ tr[:3, :3].T, np.eye(3), atol=1e-10)
    poses = [np.linalg.inv(tr) @ read_pose(row) @ tr for row in (tmp_path / "poses.txt").read_text().splitlines()]
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-10)
    start = scan_pose(world, EXACT, 0.0)
    c, s = np.cos(box.yaw), np.sin(box.yaw)
    for number in (0, 10, 20):
        points = np.fromfile(tmp_path / "velodyne" / f"{number:06d}.bin", "<f4").reshape(-1, 4)[:, :3]
        labels = np.fromfile(tmp_path / "labels" / f"{number:06d}.label", "<u4")
        there = to_world(to_world(points[labels == 50], poses[number]), start) - box.centre
        assert len(there) > 30
        local = np.abs(there @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))
        depth = (local - box.half).max(1)  # 0 on the surface
        assert np.abs(depth).max() < 1e-4
    assert np.linalg.norm(poses[10][:3, 3]) == pytest.approx(12.0, abs=0.3)
    assert np.abs(np.arctan2(poses[20][1, 0], poses[20][0, 0])) > 0.05


def test_motion_within_a_turn_is_the_speed_times_the_time_of_the_column():
    sensor = replace(EXACT, beams=8)
    world = on_flat(speed=15.0)
    still, moving = scan(world, sensor), scan(world, replace(sensor, deskew=False))
    azimuth = np.arctan2(*moving.xyz.astype(np.float64).T[1::-1])
    shift = still.xyz.astype(np.float64) - moving.xyz
    np.testing.assert_allclose(shift[:, 0], 15.0 * azimuth / (2 * np.pi * 10), atol=1e-4)
    np.testing.assert_allclose(shift[:, 1:], 0, atol=1e-4)
    assert shift[:, 0].max() > 0.7
    parked = replace(world, ego=replace(world.ego, speed=0.0))
    np.testing.assert_array_equal(scan(parked, sensor).labels, scan(parked, replace(sensor, deskew=False)).labels)
    np.testing.assert_allclose(scan(parked, sensor).xyz, scan(parked, replace(sensor, deskew=False)).xyz, atol=1e-5)


def test_moving_cars_move_at_their_speed_and_carry_their_labels():
    car = MovingCar(Driver(Lane(FLAT, 0.0, -200, 400), 20.0, 6.0), Car(length=4), 7)
    parked = [replace(part, centre=(part.centre[0] + 8, 5.0, part.centre[2]), instance=3) for part in Car().parts()]
    world = on_flat(boxes=Shapes.of(parked), traffic=(car,))
    rear = []
    for number in range(4):
        found = scan(world, time=number * 0.5)
        moving = semantic(found) == 252
        assert set(found.labels[moving] >> 16) == {7}
        assert set(found.labels[semantic(found) == 10] >> 16) == {3}
        assert (found.labels[np.isin(semantic(found), GROUND_LABELS)] >> 16 == 0).all()
        rear.append(found.xyz[moving][:, 0].min())
    # the rear is level with the middle of the turn up to the time of its half width
    np.testing.assert_allclose(rear, 18 + 6.0 * 0.5 * np.arange(4), atol=6.0 * 0.1 * 0.02)
    only = scan(replace(world, traffic=()))
    assert not (semantic(only) == 252).any()


def test_drivers_keep_their_speed_on_curves_and_hills():
    ground = Ground(bend=Waves((10.0,), (0.03,), (0.5,)), relief=Waves((2.0,), (0.1,), (0.3,)))
    times = np.arange(0, 5, 0.01)
    for speed, lateral in ((8.0, -2.0), (-11.0, 2.0)):
        place, heading, climb = Driver(Lane(ground, lateral, -200, 200), 3.0, speed).pose(times)
        step = np.diff(place, axis=0)
        np.testing.assert_allclose(np.linalg.norm(step, axis=1), abs(speed) * 0.01, rtol=2e-3)
        towards = np.stack([np.cos(climb) * np.cos(heading), np.cos(climb) * np.sin(heading), np.sin(climb)], -1)
        unit = step / np.linalg.norm(step, axis=1, keepdims=True)
        assert (unit * towards[:-1]).sum(1).min() > 0.9995
        np.testing.assert_allclose(ground.lateral(place[:, 0], place[:, 1]), lateral, atol=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_street_looks_like_one(seed):
    sensor = SensorConfig(azimuth_step=0.7, range_noise=0)
    world = drive(100, seed, StreetConfig(), sensor)
    for time in (0.0, 5.0):
        found = scan(world, sensor, time)
        rays = sensor.beams * sensor.columns
        assert len(found.xyz) > 0.6 * rays
        points = to_world(found.xyz, scan_pose(world, sensor, time))
        above = points[:, 2] - world.ground.height(points[:, 0], points[:, 1])
        lateral = np.abs(world.ground.lateral(points[:, 0], points[:, 1]))
        assert above.min() > -1e-3
        ground = np.isin(semantic(found), GROUND_LABELS)
        assert np.abs(above[ground]).max() < 1e-3
        assert 0.3 < ground.mean() < 0.95
        walls = lateral[(semantic(found) == 50) & (lateral < 20)]
        assert walls.min() > 5
        assert np.median(walls) < 15
        assert lateral[semantic(found) == 40].min() < 0.5
        numbered = found.labels >> 16 > 0
        np.testing.assert_array_equal(numbered, np.isin(semantic(found), (10, 252)))


def test_cars_never_run_into_each_other_or_the_sensor():
    street = StreetConfig(moving_cars=10, speed=12, traffic_speed=9)
    world = drive(600, 3, street, SensorConfig())
    times = np.linspace(0, 60, 400)
    places = [world.ego.pose(times)[0]] + [car.driver.pose(times)[0] for car in world.traffic]
    assert len(places) > 20
    closest = min(np.linalg.norm(one - other, axis=1).min() for i, one in enumerate(places) for other in places[:i])
    assert closest > 2.5  # of cars that pass each other
    assert 6 <= 2 * world.ground.road_half <= 9


def test_plants_stand_clear_of_houses_and_cars():
    world = make_street(StreetConfig(length=300), 1)
    assert len(world.canopies) > 40
    offset = world.canopies.centre[:, None, :2] - world.boxes.centre[:, :2]
    c, s = np.cos(world.boxes.yaw), np.sin(world.boxes.yaw)
    along, aside = c * offset[..., 0] + s * offset[..., 1], c * offset[..., 1] - s * offset[..., 0]
    solid = np.isin(world.boxes.label, (10, 50))
    inside = (np.abs(along) < world.boxes.half[:, 0]) & (np.abs(aside) < world.boxes.half[:, 1]) & solid
    assert not inside.any()


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (SensorConfig, {"beams": 0}),
        (SensorConfig, {"beams": 2.5}),
        (SensorConfig, {"azimuth_step": 0.0}),
        (SensorConfig, {"azimuth_step": float("nan")}),
        (SensorConfig, {"elevation_top": -30}),
        (SensorConfig, {"drop_out": 1.5}),
        (SensorConfig, {"range_noise": -0.1}),
        (SensorConfig, {"min_range": 20, "max_range": 10}),
        (SensorConfig, {"beams": 1024, "azimuth_step": 0.01}),
        (StreetConfig, {"speed": -1}),
        (StreetConfig, {"buildings": 1.2}),
        (StreetConfig, {"moving_cars": float("inf")}),
        (StreetConfig, {"road_width": 1}),
        (StreetConfig, {"length": -5}),
    ],
)
def test_values_out_of_range_are_named_in_one_line(config, values):
    with pytest.raises(UserError) as error:
        config(**values)
    assert "\n" not in str(error.value)
    assert next(iter(values)) in str(error.value)


@pytest.mark.parametrize("config", [SensorConfig(), StreetConfig()])
def test_every_value_has_a_range(config):
    for field in fields(config):
        if field.name != "deskew":
            with pytest.raises(UserError, match=field.name):
                replace(config, **{field.name: -1e9})


def test_drives_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    sensor = SensorConfig(beams=4, azimuth_step=5)
    with pytest.raises(UserError, match="drive 594 m, and the street's length is 100 m"):
        simulate_sequence(tmp_path, "00", 100, 0, StreetConfig(length=100, speed=60), sensor)
    for name in ("", "..", "a/b", "a\\b"):
        with pytest.raises(UserError, match="cannot name a sequence"):
            simulate_sequence(tmp_path, name, 1, 0, sensor=sensor)
    for scans, seed in ((0, 0), (1, -1)):
        with pytest.raises(UserError, match="whole number"):
            simulate_sequence(tmp_path, "00", scans, seed, sensor=sensor)
    simulate_sequence(tmp_path, "00", 1, 0, sensor=sensor)
    with pytest.raises(UserError, match="exists already"):
        simulate_sequence(tmp_path, "00", 1, 0, sensor=sensor)
    # a disk that fills up leaves nothing behind

    def full(folder, stem, found):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sequence_module, "write_scan", full)
    with pytest.raises(UserError, match="01 cannot be written \\(No space left"):
        simulate_sequence(tmp_path, "01", 1, 0, sensor=sensor)
    assert [folder.name for folder in (tmp_path / "sequences").iterdir()] == ["00"]


def run_verb(*words):
    parser = ArgumentParser()
    simulate_arguments(parser)
    simulate(parser.parse_args([str(word) for word in words]))


def test_the_command_writes_what_the_function_writes(tmp_path, capsys):
    sizes = ("--scans", 2, "--beams", 8, "--azimuth-step", 3)
    run_verb(tmp_path / "a", "--sequences", 2, "--seed", 5, "--speed", 3, *sizes)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"{tmp_path / 'a' / 'sequences' / '01'}: 2 scans, ")
    sensor, street = SensorConfig(beams=8, azimuth_step=3.0), StreetConfig(speed=3.0)
    made = simulate_sequence(tmp_path / "b", "x", 2, 6, street, sensor)
    assert files(tmp_path / "a" / "sequences" / "01") == files(made)
    run_verb(tmp_path / "c", "--sequences", "08,val", "--raw-motion", *sizes)
    assert {folder.name for folder in (tmp_path / "c" / "sequences").iterdir()} == {"08", "val"}
    with pytest.raises(UserError, match="08 exists already"):
        run_verb(tmp_path / "c", "--sequences", "09,08", *sizes)
    assert not (tmp_path / "c" / "sequences" / "09").exists()
    with pytest.raises(UserError, match="names none"):
        run_verb(tmp_path / "d", "--sequences", 0)
    with pytest.raises(UserError, match="beams=0"):
        run_verb(tmp_path / "d", "--beams", 0)
