"""What metrics take for a point cloud: finite coordinates "n 3" in metres."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fewstep.core.errors import check

Points: TypeAlias = np.ndarray | Tensor
"""Coordinates "n 3" in metres, sensor frame: an array, or a tensor on any device."""


def as_tensor(points: Points, name: str) -> Tensor:
    """Return ``points`` as float64 "n 3" on their device; UserError, with ``name``, for other shapes, NaN and inf."""
    # a copy: arrays may be views with negative steps, or read-only
    tensor = points.detach() if isinstance(points, Tensor) else torch.from_numpy(np.array(points, dtype=np.float64))
    check(
        tensor.ndim == 2 and tensor.shape[1] == 3,
        f"the {name} must be points of shape (n, 3), got {tuple(tensor.shape)}",
    )
    tensor = tensor.double()
    bad = int((~tensor.isfinite().all(1)).sum())
    check(bad == 0, f"the {name} has {bad} points with NaN or infinite coordinates: remove them before scoring")
    return tensor


def as_array(points: Points, name: str) -> np.ndarray:
    """Return :func:`as_tensor` as a numpy array."""
    array: np.ndarray = as_tensor(points, name).cpu().numpy()
    return array


def both(prediction: Points, truth: Points) -> tuple[Tensor, Tensor]:
    """Return both clouds as tensors on the prediction's device; UserError when one of them is empty."""
    p, q = as_tensor(prediction, "prediction"), as_tensor(truth, "truth")
    for name, cloud in (("prediction", p), ("truth", q)):
        check(len(cloud) > 0, f"the {name} is empty: distances to no points are undefined")
    return p, q.to(p.device)
