"""Preference metrics of completed scenes: which of two samples is better, by a metric no gradient goes through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.recipe import Batch, Judge
from fewstep.lidar.metrics.distances import chamfer
from fewstep.lidar.metrics.occupancy import agreement, jsd_bev
from fewstep.lidar.metrics.transport import emd

IOU_VOXEL = 0.5
EMD_POINTS = 500


def judges(points: int) -> dict[str, Judge]:
    """Return the judges by name, Chamfer distance first, each looking at ``points`` points of a scene.

    The rows looked at are the same for both samples of a pair. Lower is better: IoU is taken as 1 - IoU.
    """
    single: dict[str, Callable[[Tensor, Tensor], float]] = {
        "chamfer": lambda made, scene: chamfer(made, scene).value,
        "jsd": jsd_bev,
        "iou": lambda made, scene: 1 - (agreement(made, scene, IOU_VOXEL).iou or 0.0),
        "emd": lambda made, scene: emd(made, scene, size=EMD_POINTS),
    }
    return {name: _judge(metric, points) for name, metric in single.items()}


def _judge(metric: Callable[[Tensor, Tensor], float], points: int) -> Judge:
    def judge(x0: Float[Tensor, "b n 3"], batch: Batch) -> Float[Tensor, " b"]:
        scenes = batch.clean_samples("the judge of scenes")
        values = [metric(_some(made, points), _some(scene, points)) for made, scene in zip(x0, scenes, strict=True)]
        return torch.tensor(values, device=x0.device, dtype=torch.float64)

    return judge


def _some(cloud: Float[Tensor, "n 3"], points: int) -> Float[Tensor, "m 3"]:
    """Return evenly spaced rows, on the CPU: tiled scans repeat theirs in blocks, so strides see all of them."""
    step = max(1, len(cloud) // points)
    return cloud[::step].detach().cpu()
