"""Metrics of completed scans against hand-worked examples, brute force and dense histograms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist, jensenshannon

from fewstep.core.errors import UserError
from fewstep.lidar.metrics import (
    CompletionIoU,
    Scores,
    chamfer,
    crop_prediction,
    emd,
    emd_floor,
    jsd_3d,
    jsd_bev,
    legacy_emd,
    legacy_iou,
    legacy_rmse,
    precision_recall_f,
    sinkhorn_emd,
)
from fewstep.lidar.metrics.occupancy import cells
from fewstep.lidar.metrics.transport import _rounded


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


def test_iou_in_the_legacy_cube_ignores_points_far_away():
    far, near = np.array([[30.0, 0, 0]]), np.zeros((1, 3))
    cloud = np.concatenate([near, far])
    iou = CompletionIoU((0.5,))
    iou.update(cloud, near)
    assert iou.value()[0.5] == 50
    assert legacy_iou(cloud, near)[0.5] == (1, 0, 0)
    assert legacy_iou(cloud + 6, near + 6)[0.1] == (0, 0, 0)  # 5 m


# earth mover's distance

SHIFT = np.array([0.25, 0, 0])


def test_emd_of_a_rigid_shift_is_its_length():
    p = uniform(400)
    q = np.random.default_rng(1).permutation(p + SHIFT)
    assert emd(p, q) == pytest.approx(0.25, abs=1e-9)
    assert emd(p, p[::-1]) == 0
    for half in (50, 2):  # points far apart and close together, compared with the shift
        p = uniform(400, half, seed=2)
        found = sinkhorn_emd(p, p + SHIFT)
        assert found.lower == pytest.approx(0.25, rel=0.02)
        assert found.lower <= 0.25 + 1e-6 <= found.upper + 2e-6
        assert found.upper == pytest.approx(0.25, rel=0.1)


def test_entropic_transport_bounds_the_exact_distance(monkeypatch):
    p, q = uniform(200, 5, 1), uniform(200, 5, 2) + 1
    exact, found = emd(p, q), sinkhorn_emd(p, q)
    assert found.lower - 1e-5 <= exact <= found.upper + 1e-5
    assert found.lower == pytest.approx(exact, rel=0.02)
    assert found.upper == pytest.approx(exact, rel=0.1)
    assert found.misplaced < 0.02
    monkeypatch.setattr("fewstep.lidar.metrics.transport.PIECE", {"cpu": 700})
    assert sinkhorn_emd(p, q) == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_entropic_transport_of_different_sizes():
    two = np.array([[0.0, 0, 0], [1, 0, 0]])
    assert sinkhorn_emd(two, two[:1]) == pytest.approx((0.5, 0.5, 0), abs=1e-6)
    assert sinkhorn_emd(two[:1], np.concatenate([two, two[1:]])) == pytest.approx((2 / 3, 2 / 3, 0), abs=1e-6)
    assert sinkhorn_emd(two[:1], two[:1]) == pytest.approx((0, 0, 0), abs=1e-9)
    with pytest.raises(UserError, match=r"eps must be in \(0, 0.05\]"):
        sinkhorn_emd(two, two, eps_m=1.0)


def test_rounding_by_hand():
    """Two points at 0 send 3/4 of their mass to 0 and 1/4 to 1, where half of it belongs: 1/4 is moved."""
    p, q = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    potential = torch.tensor([math.log(3), 1])
    assert _rounded(p, q, potential, 1.0) == pytest.approx((0.5, 0.25), abs=1e-6)


def test_emd_of_subsets_is_seeded_and_has_a_floor():
    p, q = uniform(300, seed=1), uniform(250, seed=2)
    assert emd(p, q, 50, seed=1) == emd(p, q, 50, seed=1) != emd(p, q, 50, seed=2)
    assert emd(p, p, 50) > 1  # two subsets of one cloud differ
    assert emd(p, p, 50) == pytest.approx(emd_floor(p, 50), rel=0.3)
    assert emd_floor(np.repeat(p[:1], 9, axis=0), 3) == 0
    line = np.stack([np.arange(4.0), np.zeros(4), np.zeros(4)], 1)
    assert emd_floor(line, 2) > 0  # disjoint
    with pytest.raises(UserError, match="at least 2 points"):
        emd_floor(p[:1])


def test_legacy_emd_scores_a_small_shift_as_the_size_of_the_scene():
    p = uniform(3000) * [1, 1, 0.04]  # a scene of 4 m in height
    assert legacy_emd(p, p + 2 * SHIFT) == pytest.approx(52, abs=2)
    assert legacy_emd(p, p + SHIFT) == pytest.approx(26.4, abs=1.5)
    assert legacy_emd(p, p) < 0.01


def test_legacy_emd_is_the_kernel_written_out():
    p, q = uniform(60, 1.5, 1), uniform(50, 1.5, 2)
    sides = [np.unique(np.floor(x / 0.5), axis=0, return_counts=True) for x in (p, q)]
    (x, a), (y, b) = (((index + 0.5) * 0.5, counts / counts.sum()) for index, counts in sides)
    cost = cdist(x, y)
    kernel = np.exp(-cost / 0.001) + 1e-9
    v = np.ones(len(b))
    for _ in range(1000):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    assert legacy_emd(p, q) == pytest.approx((u[:, None] * kernel * v * cost).sum(), rel=1e-5)


# what is scored


def test_predictions_the_scan_cannot_have_seen_are_removed():
    scan = np.array([[5.0, 0, -2], [5, 0, 2]])  # highest 2, mean 0, deviation 2
    kept = np.array([[49.9, 0, 0], [0, -20, 1.9], [0, 3, -3.9]])
    limits = np.array([[50.0, 0, 0], [0, 0, 2], [0, 0, -4]])
    beyond = np.array([[35, 36, 0], [1, 1, 3.0], [1, 1, -5]])
    prediction = np.concatenate([limits, kept, beyond])
    assert crop_prediction(prediction, scan).tolist() == kept.tolist()
    assert chamfer(crop_prediction(prediction, scan), kept).value == 0
    assert crop_prediction(prediction[:0], scan).shape == (0, 3)
    with pytest.raises(UserError, match="the scan is empty"):
        crop_prediction(prediction, scan[:0])


# bad input and the table


@pytest.mark.parametrize(
    "metric",
    [chamfer, precision_recall_f, emd, sinkhorn_emd, jsd_bev, jsd_3d, legacy_emd, legacy_rmse, Scores().update],
)
def test_bad_clouds_are_named(metric):
    p = uniform(5)
    bad = p.copy()
    bad[1] = np.nan
    for prediction, truth, message in (
        (bad, p, "the prediction has 1 points with NaN"),
        (p, bad, "the truth has 1 points with NaN"),
        (p[:, :2], p, r"the prediction must be points of shape \(n, 3\), got \(5, 2\)"),
        (p[:0], p, "the prediction (is empty|has no point within 50 m)"),
        (p, p[:0], "the truth (is empty|has no point within 50 m)"),
    ):
        with pytest.raises(UserError, match=message) as error:
            metric(prediction, truth)
        assert "\n" not in str(error.value)


def test_tensors_and_single_precision_are_taken():
    p, q = uniform(40, seed=1).astype(np.float32), uniform(30, seed=2).astype(np.float32)
    assert chamfer(torch.from_numpy(p), torch.from_numpy(q)) == chamfer(p, q)
    assert chamfer(p, q) == pytest.approx(chamfer(p.astype(float), q.astype(float)), abs=1e-12)


def test_order_of_points_does_not_matter():
    p, q = uniform(60, 5, 1), uniform(50, 5, 2)
    p2, q2 = (np.random.default_rng(3).permutation(x) for x in (p, q))
    for metric in (chamfer, precision_recall_f, jsd_bev, jsd_3d, legacy_rmse, legacy_emd):
        assert metric(p, q) == pytest.approx(metric(p2, q2), rel=1e-9, abs=1e-12)
    assert emd(p[:50], q) == pytest.approx(emd(np.random.default_rng(4).permutation(p[:50]), q2), rel=1e-12)


def test_scores_are_the_metrics_averaged_and_json():
    pairs = [(uniform(60, 5, seed), uniform(50, 5, seed + 10)) for seed in range(3)]
    scores = Scores(emd_points=20, legacy=True)
    own = [scores.update(p, q) for p, q in pairs]
    with pytest.raises(UserError, match="the prediction is empty"):
        scores.update(pairs[0][0][:0], pairs[0][1])
    table = json.loads(json.dumps(scores.table(), allow_nan=False))
    assert (table["scans"], table["emd_points"]) == (3, 20)
    found = table["scores"]
    for name, metric in (("jsd_bev", jsd_bev), ("jsd_3d", jsd_3d), ("legacy_emd_m", legacy_emd)):
        values = [metric(p, q) for p, q in pairs]
        assert found[name]["mean"] == pytest.approx(np.mean(values))
        assert found[name]["std"] == pytest.approx(np.std(values))
    assert found["chamfer_m"]["mean"] == pytest.approx(np.mean([chamfer(p, q).value for p, q in pairs]))
    assert found["legacy_rmse_m"] == found["to_truth_m"]
    iou = CompletionIoU()
    for p, q in pairs:
        iou.update(p, q)
    assert found["iou_0.5m"] == {"mean": iou.value()[0.5], "std": None, "better": "higher"}
    assert found["chamfer_m"]["better"] == "lower"
    assert own[0]["iou_0.5m"] != found["iou_0.5m"]["mean"]
    for name in (*found, "emd_floor_m"):
        assert name.split("_m")[0] in table["protocol"] or "iou_" in name or "legacy_" in name, name
    with pytest.raises(UserError, match="no scan was added"):
        Scores().rows()


def test_f_score_of_means_is_made_of_mean_precision_and_recall():
    spot, off = np.zeros((1, 3)), np.array([[0.0, 0, 0], [9, 9, 9]])
    scores = Scores(emd_points=0)
    scores.update(off, spot)  # precision 50, recall 100
    scores.update(spot, spot)  # 100, 100
    rows = {row.name: row.mean for row in scores.rows()}
    assert rows["f_score"] == pytest.approx((200 / 3 + 100) / 2, abs=1e-9)
    assert rows["f_score_of_means"] == pytest.approx(2 * 75 * 100 / 175, abs=1e-9)
    assert "emd_m" not in rows
