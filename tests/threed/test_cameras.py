"""Cameras against hand-computed poses, other programs' own formulas, and the way back."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.cameras import (
    AZIMUTH_OFFSETS_DEG,
    CONVENTIONS,
    NERFSTUDIO,
    OPENCV,
    OPENGL,
    THREESTUDIO,
    Camera,
    ViewRanges,
    from_convention,
    intrinsics_of,
    look_at,
    multi_view,
    orbit,
    orbit_angles,
    random_views,
    to_convention,
    turntable,
)
from fewstep.threed.cameras.conventions import (
    from_mvdream_condition,
    from_zero123_condition,
    mvdream_condition,
    zero123_condition,
)

F64 = torch.float64
WIDE = ViewRanges(elevation_deg=(-80.0, 80.0), uniform_on_sphere=0.5)


def row(*values):
    return torch.tensor(values, dtype=F64)


def cameras(count=7, ranges=WIDE):
    return random_views(Rng.for_batch(3, 0, count), ranges, 40, 30, dtype=F64)


def at(azimuth, elevation=0.0, distance=2.0, fov=90.0):
    return orbit(row(azimuth), row(elevation), row(distance), row(fov), 8, 4)


def test_camera_of_azimuth_zero_by_hand():
    camera = at(0.0)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]], dtype=F64)
    assert_close(camera.world_to_camera[0], expected)
    assert_close(camera.intrinsics[0], torch.tensor([[2.0, 0, 4], [0, 2, 2], [0, 0, 1]], dtype=F64))
    pixels, depths = camera.project(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=F64))
    assert_close(pixels[0], torch.tensor([[4.0, 2], [5, 2], [4, 1], [4, 2]], dtype=F64))
    assert_close(depths[0], row(2.0, 2.0, 2.0, 1.0))


def test_azimuth_ninety_stands_on_x_and_elevation_ninety_on_y():
    assert_close(at(90.0).position, torch.tensor([[2.0, 0, 0]], dtype=F64))
    assert_close(at(0.0, 90.0).position, torch.tensor([[0.0, 2, 0]], dtype=F64))
    above = at(0.0, 90.0).project(torch.tensor([[0.0, 0, 1]], dtype=F64))[0]
    assert above[0, 0, 1] > 2, "the front is at the bottom of a view from above"
    straight = look_at(torch.tensor([[0.0, 2, 0]], dtype=F64), torch.zeros(1, 3, dtype=F64))
    assert_close(straight[0, :3, :3], torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=F64))


def test_poses_are_rigid_and_invert():
    camera = cameras()
    eye = torch.eye(4, dtype=F64).expand(len(camera), 4, 4)
    assert_close(camera.camera_to_world @ camera.world_to_camera, eye)
    assert_close(torch.linalg.det(camera.world_to_camera[:, :3, :3]), torch.ones(len(camera), dtype=F64))


def test_up_decreases_the_row_and_what_is_looked_at_lies_in_front():
    camera = cameras()
    pixels, depths = camera.project(torch.tensor([[0.0, 0, 0], [0, 0.1, 0]], dtype=F64))
    assert (depths > 0).all()
    assert_close(pixels[:, 0], row(20.0, 15.0).expand(len(camera), 2))
    assert (pixels[:, 1, 1] < pixels[:, 0, 1]).all()


def test_rays_pass_through_the_centres_of_their_pixels():
    camera = cameras(2)
    origins, directions = camera.rays()
    assert_close(directions.norm(dim=-1), torch.ones(2, 30, 40, dtype=F64))
    for which in range(2):
        points = (origins + 1.7 * directions)[which].reshape(-1, 3)
        pixels = camera.project(points)[0][which].reshape(30, 40, 2)
        assert_close(pixels[4, 9], row(9.5, 4.5))
        assert_close(pixels[29, 0], row(0.5, 29.5))


def test_resized_cameras_see_the_same():
    camera, points = cameras(3), torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) * 0.2
    assert_close(camera.resized(80, 90).project(points)[0], camera.project(points)[0] * row(2.0, 3.0))


def test_angles_come_back_from_an_orbit():
    angles = row(-170.0, -90.0, 0.0, 33.0, 180.0), row(-60.0, 0.0, 10.0, 45.0, 80.0), row(1.0, 2.0, 3.0, 4.0, 5.0)
    found = orbit_angles(orbit(*angles, row(*[40.0] * 5), 8, 8))
    for one, other in zip(found, angles, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
@pytest.mark.parametrize("offset", [0.0, 90.0, -37.0])
def test_conventions_round_trip(name, offset):
    camera, convention = cameras(), CONVENTIONS[name]
    pose = to_convention(camera, convention, azimuth_offset_deg=offset)
    back = from_convention(pose, convention, camera.intrinsics, 40, 30, azimuth_offset_deg=offset)
    assert_close(back.world_to_camera, camera.world_to_camera)


def test_opencv_is_our_own_and_opengl_turns_two_axes():
    camera = cameras()
    assert torch.equal(to_convention(camera, OPENCV).round(decimals=12), camera.world_to_camera.round(decimals=12))
    flipped = to_convention(camera, OPENGL)
    assert_close(flipped[:, :3, 1:3], -camera.camera_to_world[:, :3, 1:3])
    assert_close(flipped[:, :3, 3], camera.position)


def threestudio_pose(azimuth, elevation, distance):
    """The pose from that program's own description: z up, columns right, up and minus the look-at direction."""
    a, e = math.radians(azimuth), math.radians(elevation)
    centre = distance * row(math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    ahead = -centre / centre.norm()
    right = torch.linalg.cross(ahead, row(0.0, 0.0, 1.0))
    right = right / right.norm()
    return torch.stack([right, torch.linalg.cross(right, ahead), -ahead, centre], dim=1)[None]


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (50.0, 20.0), (-120.0, -35.0)])
def test_threestudio_writes_the_same_pose_for_the_same_azimuth(azimuth, elevation):
    offset = AZIMUTH_OFFSETS_DEG["threestudio"]
    camera = at(azimuth, elevation, 2.5)
    expected = threestudio_pose(azimuth - 90 + offset, elevation, 2.5)
    assert_close(to_convention(camera, THREESTUDIO, azimuth_offset_deg=offset)[:, :3], expected)
    read = from_convention(expected, THREESTUDIO, camera.intrinsics, 8, 4, azimuth_offset_deg=offset)
    assert_close(read.world_to_camera, camera.world_to_camera)


def test_rays_are_those_of_threestudio():
    camera = cameras(2)
    pose = to_convention(camera, THREESTUDIO)
    focal, i, j = camera.intrinsics[:, 0, 0], 7, 21
    local = torch.stack([(j + 0.5 - 20) / focal, -(i + 0.5 - 15) / focal, -torch.ones_like(focal)], dim=-1)
    world = (pose[:, :3, :3] @ local[..., None])[..., 0]
    x, y, z = (world / world.norm(dim=-1, keepdim=True)).unbind(-1)
    assert_close(camera.rays()[1][:, i, j], torch.stack([x, z, -y], dim=-1))


def test_mvdream_front_stands_on_minus_y_of_a_unit_sphere():
    camera = at(0.0, 0.0, 2.5)
    condition = mvdream_condition(camera, azimuth_offset_deg=AZIMUTH_OFFSETS_DEG["mvdream"])
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, -1], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=F64)
    assert_close(condition, expected.reshape(1, 16))
    turned = mvdream_condition(camera, azimuth_offset_deg=90.0).unflatten(1, (4, 4))
    assert_close(turned[:, :3, 3], torch.tensor([[1.0, 0, 0]], dtype=F64))


def test_mvdream_conditions_round_trip():
    camera = cameras()
    condition = mvdream_condition(camera, azimuth_offset_deg=90.0)
    distance = camera.position.norm(dim=-1)
    back = from_mvdream_condition(condition, distance, camera.intrinsics, 40, 30, azimuth_offset_deg=90.0)
    assert_close(back.world_to_camera, camera.world_to_camera)


def test_zero123_condition_by_hand_and_back():
    camera = at(120.0, 50.0)
    condition = zero123_condition(camera, reference_azimuth_deg=30.0, reference_elevation_deg=20.0)
    assert_close(condition[0], row(-math.pi / 6, 1.0, 0.0, math.radians(70)))
    azimuth, elevation, _ = orbit_angles(cameras())
    conditions = zero123_condition(cameras(), reference_azimuth_deg=150.0, reference_elevation_deg=5.0)
    found = from_zero123_condition(conditions, reference_azimuth_deg=150.0)
    assert_close(found[0], azimuth)
    assert_close(found[1], elevation)


def test_poses_of_three_rows_are_read():
    camera = cameras()
    pose = to_convention(camera, NERFSTUDIO)[:, :3]
    back = from_convention(pose, NERFSTUDIO, camera.intrinsics, 40, 30)
    assert_close(back.world_to_camera, camera.world_to_camera)


def test_multi_view_shares_all_but_the_azimuth():
    camera = multi_view(Rng.for_batch(1, 5, 3), ViewRanges(), 16, 16, views=4, dtype=F64)
    azimuth, elevation, distance = (x.unflatten(0, (3, 4)) for x in orbit_angles(camera))
    assert_close(torch.remainder(azimuth.diff(dim=1), 360), torch.full((3, 3), 90.0, dtype=F64))
    for shared in (elevation, distance, camera.intrinsics[:, 0, 0].unflatten(0, (3, 4))):
        assert_close(shared, shared[:, :1].expand(3, 4))
    focal = camera.intrinsics[:, 1, 1].unflatten(0, (3, 4))
    relative = distance * 8 / focal
    assert ((relative >= 0.8) & (relative <= 1.0)).all()
    assert elevation.std() > 0


def test_draws_of_a_sample_do_not_depend_on_the_batch():
    rng = Rng.for_batch(1, 5, 6)
    for draw in (random_views, multi_view):
        whole, part = draw(rng, WIDE, 8, 8, views=2), draw(rng.select(2, 4), WIDE, 8, 8, views=2)
        assert torch.equal(whole.select(4, 8).world_to_camera, part.world_to_camera)


@pytest.mark.parametrize(("share", "mean"), [(0.0, 45.0), (1.0, math.degrees(math.pi / 2 - 1))])
def test_elevations_are_uniform_in_angle_or_in_area(share, mean):
    ranges = ViewRanges(elevation_deg=(0.0, 90.0), uniform_on_sphere=share)
    camera = random_views(Rng.for_batch(0, 0, 1), ranges, 8, 8, views=20000, dtype=F64)
    assert orbit_angles(camera)[1].mean() == pytest.approx(mean, abs=0.8)  # E asin(u) = pi/2 - 1; 4 deviations


def test_turntable_starts_at_the_front():
    assert_close(orbit_angles(turntable(4, 8, 8, dtype=F64))[0].abs(), row(0.0, 90.0, 180.0, 90.0))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: at(0.0).check_outside(2.5), "inside the object"),
        (lambda: ViewRanges(fov_y_deg=(60.0, 15.0)), "fov_y_deg"),
        (lambda: ViewRanges(uniform_on_sphere=2.0), "uniform_on_sphere"),
        (lambda: intrinsics_of(row(0.0), 8, 8), "field of view"),
        (lambda: look_at(torch.zeros(1, 3), torch.zeros(1, 3)), "stands on"),
        (lambda: Camera(torch.eye(4), torch.eye(3)[None], 8, 8), "world_to_camera"),
        (lambda: Camera(torch.eye(4)[None], torch.eye(3)[None], 0, 8), "1x1"),
        (lambda: from_convention(2 * torch.eye(4)[None], OPENGL, torch.eye(3)[None], 8, 8), "opengl"),
        (lambda: from_convention(torch.eye(4), OPENGL, torch.eye(3)[None], 8, 8), "opengl"),
    ],
)
def test_mistakes_are_said_in_one_line(mistake, words):
    with pytest.raises(UserError, match=words) as caught:
        mistake()
    assert "\n" not in str(caught.value)
