"""Metrics of completed scans against hand-worked examples, brute force and dense histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist, jensenshannon

from fewstep.core.errors import UserError
from fewstep.lidar.metrics import CompletionIoU, chamfer, jsd_3d, jsd_bev, precision_recall_f
from fewstep.lidar.metrics.occupancy import cells


def uniform(n, half=50.0, seed=0):
    return np.random.default_rng(seed).uniform(-half, half, (n, 3))


# Points on a lattice of 0.1 m have ties, duplicates and coordinates on cell borders.
clouds = st.integers(1, 15).flatmap(lambda n: arrays(np.int64, (n, 3), elements=st.integers(-100, 100)))


# Chamfer, precision, recall


def test_chamfer_by_hand():
    a = uniform(50)
    assert chamfer(a, a) == (0, 0, 0)
    assert chamfer(np.zeros((1, 3)), np.array([[1.0, -2, 2]])).value == pytest.approx(3, abs=1e-12)
    two = np.array([[0.0, 0, 0], [2, 0, 0]])
    assert chamfer(two, two[:1]) == (0.5, 1, 0)
    assert chamfer(two[:1], two) == (0.5, 0, 1)
    assert chamfer(two, two[:1], squared=True) == (1, 2, 0)


@given(clouds, clouds)
def test_distances_agree_with_brute_force(p, q):
    p, q = p / 10, q / 10
    d = cdist(p, q)
    near = d.min(1), d.min(0)
    assert chamfer(p, q).value == pytest.approx((near[0].mean() + near[1].mean()) / 2, abs=1e-9)
    found = precision_recall_f(p, q, 0.55)
    precision, recall = (100 * (x < 0.55).mean() for x in near)
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert found == pytest.approx((precision, recall, expected), abs=1e-9)


def test_precision_and_recall_average_over_thresholds():
    # a point at 0.08 m counts from there on: 2/5 of the range
    near = precision_recall_f(np.array([[0.08, 0, 0]]), np.zeros((1, 3)))
    assert near == pytest.approx((40, 40, 40), abs=1)
    assert precision_recall_f(np.array([[0.04, 0, 0]]), np.zeros((1, 3))) == pytest.approx((100, 100, 100), abs=1e-9)
    assert precision_recall_f(np.array([[0.2, 0, 0]]), np.zeros((1, 3))) == (0, 0, 0)
    exact = precision_recall_f(np.array([[0.5, 0, 0]]), np.zeros((1, 3)), 0.5)
    assert exact == (0, 0, 0)  # strictly below


# Jensen-Shannon


def test_jsd_by_hand():
    a, b, c = ([[x, 0.1, 0.1]] for x in (0.1, 10.1, 20.1))
    for jsd in (jsd_3d, jsd_bev):
        assert jsd(np.array(a + b), np.array(b + a)) == 0
        assert jsd(np.array(a), np.array(b)) == pytest.approx(math.sqrt(math.log(2)), abs=1e-12)
        assert jsd(np.array(a + b), np.array(a + c)) == pytest.approx(0.588705, abs=1e-6)


def test_repeated_points_move_only_the_jsd_of_counts():
    a = uniform(5000)
    repeated = np.concatenate([a, np.repeat(a[:100], 49, axis=0)])
    assert jsd_bev(a, repeated) == 0
    assert jsd_3d(a, repeated) > 0.4


def dense(points, size, half, bev):
    side = round(2 * half / size)
    hist = np.histogramdd(points, bins=(side,) * 3, range=[(-half, half)] * 3)[0]
    return (np.clip(hist, 0, 1).sum(2) if bev else hist).ravel()


@pytest.mark.parametrize("seed", range(5))
def test_sparse_cells_are_the_dense_histogram(seed):
    p, q = uniform(400, 6, seed), uniform(300, 6, seed + 100)  # some lie outside of the 5 m cube
    for bev, jsd in ((False, jsd_3d), (True, jsd_bev)):
        expected = jensenshannon(dense(p, 0.5, 5, bev), dense(q, 0.5, 5, bev))
        assert jsd(p, q, range_m=5) == pytest.approx(expected, abs=1e-12)
    iou = CompletionIoU((0.5, 0.2), 5)
    iou.update(p, q)
    for size, value in iou.value().items():
        a, b = (dense(x, size, 5, False) > 0 for x in (p, q))
        assert value == pytest.approx(100 * (a & b).sum() / (a | b).sum(), abs=1e-12)


@pytest.mark.parametrize("size", [0.5, 0.2, 0.1])
def test_cells_are_half_open(size):
    """Multiples of the cell lie in the cell they begin, the cube has its lower faces and not its upper ones."""
    half = round(50 / size)
    edges = np.arange(-half, half + 1)
    points = np.stack([edges / (1 / size), 0 * edges, 0 * edges], 1)
    found = cells(points, size)
    assert (found.keys // found.side**2).tolist() == list(range(2 * half))
    assert found.counts.tolist() == [1] * (2 * half)


# completion IoU


def test_iou_sums_cells_before_it_divides():
    spot = np.array([[0.1, 0.1, 0.1]])
    line = np.stack([np.arange(1, 10) + 0.1, np.zeros(9), np.zeros(9)], 1)
    iou = CompletionIoU((0.5,))
    assert iou.update(spot, spot)[0.5].iou == 1
    assert iou.update(np.zeros((0, 3)), line)[0.5] == (0, 0, 9)
    assert iou.value()[0.5] == pytest.approx(10)
    nothing = CompletionIoU((0.5,))
    nothing.update(spot + 1000, spot + 1000)
    with pytest.raises(UserError, match="must be metres"):
        nothing.value()
