"""Metrics of nearest distances: Chamfer distance, and precision, recall and F-score within a tolerance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.integrate import simpson

from fewstep.core.errors import check
from fewstep.core.neighbours import mutual_nearest
from fewstep.lidar.metrics.clouds import Points, both

THRESHOLDS_M = (0.05, 0.10)  # from, to
THRESHOLDS = 100


class Directed(NamedTuple):
    """Metres from every predicted point to the truth, "n", and from every true point to the prediction, "m"."""

    to_truth: np.ndarray
    to_prediction: np.ndarray


class Chamfer(NamedTuple):
    """``value`` is the mean of the two halves: metres, or square metres."""

    value: float
    to_truth: float
    to_prediction: float


class Hits(NamedTuple):
    """Percent: of predicted points near the truth, of true points near the prediction, and their harmonic mean."""

    precision: float
    recall: float
    f_score: float


def directed_distances(prediction: Points, truth: Points) -> Directed:
    """Return every point's Euclidean distance to the other cloud; UserError when one is empty or not finite."""
    of_prediction, of_truth = mutual_nearest(*both(prediction, truth))
    return Directed(of_prediction.distances[:, 0].cpu().numpy(), of_truth.distances[:, 0].cpu().numpy())


def chamfer(prediction: Points, truth: Points, *, squared: bool = False) -> Chamfer:
    """Return the mean of the two mean nearest distances; Euclidean as in all LiDAR completion tables, or ``squared``.

    Raises UserError when a cloud is empty or not finite.
    """
    return chamfer_of(directed_distances(prediction, truth), squared=squared)


def chamfer_of(distances: Directed, *, squared: bool = False) -> Chamfer:
    """Return :func:`chamfer` of distances already known."""
    halves = [float(np.mean(half**2 if squared else half)) for half in distances]
    return Chamfer((halves[0] + halves[1]) / 2, *halves)


def hit_curves(distances: Directed, thresholds_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall, percent of distances strictly below each threshold."""
    shares = [100 * np.searchsorted(np.sort(half), thresholds_m, side="left") / len(half) for half in distances]
    return shares[0], shares[1]


def harmonic(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Return ``2 p r / (p + r)``, 0 where both are."""
    total = precision + recall
    score: np.ndarray = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return score


def thresholds() -> np.ndarray:
    """Return the 100 thresholds from 0.05 to 0.10 m."""
    return np.linspace(*THRESHOLDS_M, THRESHOLDS)


def integrated(precision: np.ndarray, recall: np.ndarray) -> Hits:
    """Return curves over :func:`thresholds`, and the F-score of each point of them, averaged by Simpson's rule."""
    at = thresholds()
    curves = (precision, recall, harmonic(precision, recall))
    return Hits(*(float(simpson(curve, x=at)) / (at[-1] - at[0]) for curve in curves))


def precision_recall_f(prediction: Points, truth: Points, threshold_m: float | None = None) -> Hits:
    """Return precision, recall and F-score in percent at one threshold, or averaged over 0.05 to 0.10 m (default).

    A distance counts when strictly below. The average is Simpson's rule over 100 thresholds, divided by the range; the
    F-score is averaged, not made of averages. Raises UserError when a cloud is empty or not finite, or the threshold
    not positive.
    """
    distances = directed_distances(prediction, truth)
    if threshold_m is None:
        return integrated(*hit_curves(distances, thresholds()))
    check(threshold_m > 0, f"precision and recall: the threshold must be positive, got {threshold_m:g} m")
    precision, recall = hit_curves(distances, np.array([threshold_m]))
    return Hits(float(precision[0]), float(recall[0]), float(harmonic(precision, recall)[0]))
