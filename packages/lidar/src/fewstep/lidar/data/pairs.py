"""Clouds of a given size, and with jitter, out of the points of a scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.core.errors import check


def resized(points: npt.NDArray[Any], count: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return ``count`` of the points "n 3" in random order, cut, or repeated as evenly as can be."""
    check(len(points) > 0, "no point to fill a cloud with; leave the scan out")
    rounds = -(-count // len(points))
    chosen = [rng.permutation(len(points)) for _ in range(rounds)]
    return np.asarray(points[np.concatenate(chosen)[:count]])


def jittered(
    points: npt.NDArray[Any], count: int, std: float, limit: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return ``count`` of the points, moved by N(0, std^2) metres per axis clipped at ``limit``: a refiner's input."""
    noise = (std * rng.standard_normal((count, 3))).clip(-limit, limit)
    return np.asarray((resized(points, count, rng) + noise).astype(np.float32))
