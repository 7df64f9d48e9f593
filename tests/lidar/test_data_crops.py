"""What a map says about a scan, and training pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lidar.data_bed import raises_line, random_pose
from numpy.testing import assert_allclose, assert_array_equal

from fewstep.lidar.data.augmentation import augment
from fewstep.lidar.data.crops import clean_scan, ground_truth, in_view, training_crop
from fewstep.lidar.data.pairs import jittered, resized

HAND = np.array([[0.0, 0, 0], [25, 3, 1], [-7, 11, -2]])


def test_the_view_of_a_hand_made_scan():
    """Origin (-12, -5, -7); occupied are the cells (1, 0, 0), (3, 0, 0) and (0, 1, 0)."""
    middles = np.array([[x, y, z] for x in range(-1, 6) for y in range(-1, 4) for z in range(-1, 3)])
    points = np.array([-12.0, -5, -7]) + 10 * (middles + 0.5)
    seen = middles[in_view(points, HAND)]
    assert sorted(map(tuple, seen.tolist())) == [(0, 1, 0), (1, 0, 0), (3, 0, 0)]
    edges = np.array([[-2.0, -5, -7], [7.999, 4.999, 2.999], [8.0, 0, 0], [-2.001, 0, 0]])
    assert in_view(edges, HAND).tolist() == [True, True, False, False]


def test_points_of_the_scan_out_of_range_have_no_say():
    far = np.vstack([HAND, [[50.0, 0, 0], [0, -200, 0]]])
    points = np.random.default_rng(0).uniform(-60, 60, (3000, 3))
    assert_array_equal(in_view(points, far), in_view(points, HAND))
    assert in_view(np.array([[1e9, 0, 0], [1.0, 1, 1]]), HAND).tolist() == [False, True]
    with raises_line("no point of the scan is within 50 m"):
        in_view(points, far[3:])


def test_a_scan_sees_itself():
    scan = np.random.default_rng(0).uniform(-28, 28, (500, 3))
    assert in_view(scan, scan).all()


def test_the_crop_is_in_range_between_heights_and_in_the_sensor_s_frame():
    pose = random_pose(3)
    local = np.array([[49.9, 0, 0], [50.1, 0, 0], [20, 0, 4.3], [20, 0, 4.5], [20, 0, -3.9], [20, 0, -4.1], [0, 0, 0]])
    world = (local @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
    scan = np.array([[x, 0, z] for x in range(-45, 50, 5) for z in (-3.5, 0, 4)], float)
    found = ground_truth(world, pose, scan)
    assert found.dtype == np.float32
    assert_allclose(found, local[[0, 2, 4, 6]], atol=1e-5)
    assert_allclose(training_crop(world, pose), local[[0, 2, 3, 4, 6]], atol=1e-5)
    assert_allclose(ground_truth(world, pose, scan, max_range=10.0), local[[6]], atol=1e-5)
    assert len(ground_truth(world, pose, HAND[:1])) == 1


@given(seed=st.integers(0, 100))
def test_the_crop_does_not_depend_on_the_frame_of_the_map(seed):
    rng = np.random.default_rng(seed)
    points, pose, other = rng.uniform(-70, 70, (300, 3)), random_pose(seed, 20), random_pose(seed + 1, 500)
    scan = rng.uniform(-40, 40, (30, 3))
    moved = points @ other[:3, :3].T + other[:3, 3]
    assert_allclose(ground_truth(moved, other @ pose, scan), ground_truth(points, pose, scan), atol=1e-4)


def test_what_a_network_is_shown_of_a_scan():
    scan = np.array([[3.4, 0, 0], [3.6, 0, 0], [49, 0, 0], [51, 0, 0], [10, 0, -4.1], [10, 0, 9]])
    assert clean_scan(scan).tolist() == [False, True, True, False, False, True]
    labels = np.array([40, 252 + 3 * 65536, 40, 40, 40, 0], np.uint32)
    assert clean_scan(scan, labels).tolist() == [False, False, True, False, False, False]


UNIT = st.floats(0, 1, exclude_max=True)


@given(uniform=st.tuples(UNIT, UNIT, UNIT), normal=st.tuples(*[st.floats(-6, 6)] * 3))
def test_augmentation_is_a_similarity(uniform, normal):
    linear = augment(np.array(uniform), np.array(normal)).linear
    scale = 0.95 + 0.1 * uniform[1]
    assert_allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-12)
    assert_allclose(np.linalg.det(linear), scale**3 * (-1 if uniform[2] < 0.5 else 1), rtol=1e-9)
    # tilts are at most 0.18 about each axis: up stays up
    assert linear[2, 2] / scale > math.cos(0.18) ** 2 - 1e-9


def test_augmentation_of_known_numbers():
    still = augment(np.array([0.0, 0.5, 0.9]), np.zeros(3))
    assert_allclose(still.linear, np.eye(3), atol=1e-12)
    turned = augment(np.array([0.25, 0.5, 0.9]), np.zeros(3))
    assert_allclose(turned(np.array([[1.0, 0, 0]])), [[0, 1, 0]], atol=1e-12)
    mirrored = augment(np.array([0.0, 0.5, 0.1]), np.zeros(3))
    assert_allclose(mirrored.linear, np.diag([1, -1, 1]), atol=1e-12)
    clipped = augment(np.array([0.0, 0.5, 0.9]), np.array([100.0, 0, 0]))
    assert_allclose(clipped(np.array([[0.0, 1, 0]])), [[0, math.cos(0.18), math.sin(0.18)]], atol=1e-12)
    both = augment(np.array([0.25, 0.5, 0.9]), np.array([100.0, 0, 0]))  # yaw before tilt
    assert_allclose(both(np.array([[1.0, 0, 0]])), [[0, math.cos(0.18), math.sin(0.18)]], atol=1e-12)
    with raises_line("3 uniform and 3 normal"):
        augment(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("count", [3, 10, 25])
def test_clouds_are_cut_or_repeated_evenly(count):
    points = np.arange(30.0).reshape(10, 3)
    found = resized(points, count, np.random.default_rng(0))
    assert found.shape == (count, 3)
    times = np.unique(found[:, 0], return_counts=True)[1]
    assert times.max() - (times.min() if len(times) == 10 else 0) <= 1


def test_a_refiner_s_jitter_is_clipped_normal_noise():
    rng = np.random.default_rng(0)
    jitter = jittered(np.zeros((1, 3)), 100_000, 0.2, 0.3, rng)
    clipped = 0.2 * math.sqrt(1 - 2 * 1.5 * math.exp(-1.125) / math.sqrt(2 * math.pi) + 1.25 * math.erfc(1.5 / 2**0.5))
    assert jitter.dtype == np.float32
    assert abs(jitter.mean()) < 5e-3
    assert abs(jitter.std() / clipped - 1) < 0.01
    assert (np.abs(jitter) == np.float32(0.3)).mean() == pytest.approx(math.erfc(1.5 / 2**0.5), abs=5e-3)
    points = rng.uniform(-20, 20, (60, 3))
    given = jittered(points, 2000, 0.2, 0.3, rng)
    assert np.abs(given[:, None, :] - points[None]).max(axis=2).min(axis=1).max() < 0.3 + 1e-5
