"""Farthest-point sampling in rounds picks what picking one by one picks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lidar.cloud_bed import REAL_SCAN
from lidar.data_bed import raises_line

from fewstep.lidar.clouds import read_cloud
from fewstep.lidar.data import farthest
from fewstep.lidar.data.farthest import farthest_points


def one_by_one(xyz: np.ndarray, k: int) -> np.ndarray:
    """The definition: the farthest of all points, the lowest index among equals."""
    points = np.asarray(xyz, np.float64)
    far = np.full(len(points), np.inf)
    picks = [0]
    while len(picks) < k:
        x, y, z = (points - points[picks[-1]]).T
        far = np.minimum(far, x * x + y * y + z * z)
        far[picks] = -1.0
        picks.append(int(far.argmax()))
    return np.sort(picks)


def clouds(kind: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "lattice":  # ties everywhere
        return rng.integers(0, 4, (count, 3)).astype(np.float64)
    if kind == "line":
        return np.linspace(0, 1, count)[:, None] * np.ones(3)
    if kind == "clusters":
        return rng.normal(size=(count, 3)) * 0.01 + 50 * rng.integers(0, 3, (count, 1))
    return rng.normal(size=(count, 3)).astype(np.float32)


@given(
    kind=st.sampled_from(["normal", "lattice", "line", "clusters"]),
    count=st.integers(2, 200),
    part=st.floats(0, 1),
    share=st.sampled_from([0.02, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_what_picking_one_by_one_gives(kind, count, part, share, seed):
    xyz, k = clouds(kind, count, seed), max(1, round(part * (count - 1)))
    before = farthest.SHARE
    try:
        farthest.SHARE = share
        np.testing.assert_array_equal(farthest_points(xyz, k), one_by_one(xyz, k))
    finally:
        farthest.SHARE = before


@pytest.mark.parametrize("pairs", [0, 300])
def test_rounds_that_would_be_too_large_give_way_to_single_picks(monkeypatch, pairs):
    monkeypatch.setattr(farthest, "MAX_PAIRS", pairs)
    xyz = clouds("normal", 400, 0)
    np.testing.assert_array_equal(farthest_points(xyz, 150), one_by_one(xyz, 150))


def test_the_first_is_the_first_and_picks_only_come_closer():
    xyz = clouds("normal", 3000, 1)
    closest = np.inf
    before: set[int] = set()
    for k in (1, 2, 5, 20, 100, 500):
        picks = farthest_points(xyz, k)
        assert picks[0] == 0
        assert picks.dtype == np.int64
        assert (np.diff(picks) > 0).all()
        assert before <= set(picks.tolist())  # more picks contain fewer
        before = set(picks.tolist())
        if k > 1:
            apart = np.linalg.norm(xyz[picks][:, None] - xyz[picks][None], axis=2)
            nearest = apart[~np.eye(k, dtype=bool)].min()
            assert nearest <= closest
            closest = nearest


def test_a_small_cloud_is_repeated():
    xyz = clouds("normal", 4, 0)
    assert farthest_points(xyz, 4).tolist() == [0, 1, 2, 3]
    assert farthest_points(xyz, 10).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_copies_are_picked_last_and_in_order():
    xyz = np.zeros((6, 3))
    xyz[4] = 1.0
    assert farthest_points(xyz, 2).tolist() == [0, 4]
    assert farthest_points(xyz, 4).tolist() == [0, 1, 2, 4]


def test_what_cannot_be_sampled():
    with raises_line(r"shape \(0, 3\)"):
        farthest_points(np.zeros((0, 3)), 2)
    with raises_line("at least 1"):
        farthest_points(np.zeros((4, 3)), 0)
    with raises_line("NaN or infinite"):
        farthest_points(np.array([[0, 0, np.nan], [1, 1, 1]]), 1)


@pytest.mark.skipif(not REAL_SCAN.exists(), reason="the shared scan is not there")
def test_the_real_scan_is_sampled_as_one_by_one():
    xyz = read_cloud(REAL_SCAN).xyz
    few = farthest_points(xyz, 300)
    np.testing.assert_array_equal(few, one_by_one(xyz, 300))
    many = farthest_points(xyz, 18_000)
    assert len(np.unique(many)) == 18_000
    assert set(few.tolist()) <= set(many.tolist())
