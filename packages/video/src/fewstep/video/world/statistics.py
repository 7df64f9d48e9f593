"""Distributions of speed and direction, how far two are apart, and whether motion is what captions say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import TrainingError
from fewstep.video.world.captions import read
from fewstep.video.world.config import DIRECTIONS, PACES, WorldConfig
from fewstep.video.world.tracking import Measured

STILL = 0.1  # pixels a frame, where the shorter side is 32, below which a thing has no direction
QUANTILES = 256  # at which distributions of speed are compared


@dataclass(frozen=True)
class MotionStatistics:
    """Speeds, sorted, pixels a frame; shares of the eight directions among what moves; shares that move, are found."""

    speeds: Float[Tensor, " m"]
    directions: Float[Tensor, " d"]
    moving: float
    found: float

    @property
    def mean_speed(self) -> float:
        """Pixels a frame."""
        return float(self.speeds.mean())


def statistics(config: WorldConfig, measured: Measured, captions: Sequence[str]) -> MotionStatistics:
    """Return the statistics over all things, clips and pairs of frames; TrainingError when nothing is found."""
    found = measured.found
    if not found.any():
        raise TrainingError("motion: none of the things that captions name is seen in any clip")
    steps = measured.displacement[found]
    speeds = steps.norm(dim=-1)
    moving = speeds >= STILL * config.unit
    counts = torch.bincount(_eighth(steps[moving]), minlength=len(DIRECTIONS)).double()
    named = sum(len(read(caption).things) for caption in captions) * found.shape[-1]
    return MotionStatistics(
        speeds=speeds.sort().values,
        directions=counts / counts.sum().clamp_min(1),
        moving=float(moving.double().mean()),
        found=float(found.sum()) / named,
    )


def compare(student: MotionStatistics, teacher: MotionStatistics) -> dict[str, float]:
    """Return how far a student's motion is from a teacher's, every value 0 when they are the same.

    ``speed``: change of the mean speed, as a share. ``speed_distribution``: Wasserstein-1 distance of the speeds over
    the teacher's mean. ``direction_distribution``: total variation, in 0..1; between two samples of n independent
    things it is about 1.5 / sqrt(n), less under the same captions. A still student has ``speed`` 1.
    """
    scale = max(teacher.mean_speed, 1e-12)
    at = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    apart = torch.quantile(student.speeds, at) - torch.quantile(teacher.speeds, at)
    return {
        "speed": abs(student.mean_speed - teacher.mean_speed) / scale,
        "speed_distribution": float(apart.abs().mean()) / scale,
        "direction_distribution": float((student.directions - teacher.directions).abs().sum() / 2),
        "moving": abs(student.moving - teacher.moving),
        "found": abs(student.found - teacher.found),
    }


def agreement(config: WorldConfig, measured: Measured, captions: Sequence[str]) -> dict[str, float]:
    """Return the shares of all named things whose direction, and whose pace, is nearest the caption's word.

    Over the mean displacement in the first half of a clip, before things bounce; a thing that is not found agrees with
    nothing.
    """
    half = max(1, config.frames // 2)
    limit = (config.slow[1] + config.fast[0]) / 2 * config.unit
    right_direction = right_pace = total = 0
    for row, caption in enumerate(captions):
        for slot, thing in enumerate(read(caption).things):
            total += 1
            seen = measured.found[row, slot, :half]
            if not seen.any():
                continue
            steps = measured.displacement[row, slot, :half][seen]
            mean = steps.mean(0)
            moves = bool(mean.norm() >= STILL * config.unit)
            right_direction += moves and DIRECTIONS[int(_eighth(mean))] == thing.direction
            right_pace += moves and PACES[int(steps.norm(dim=-1).mean() > limit)] == thing.pace
    return {"direction": right_direction / total, "pace": right_pace / total}


def _eighth(steps: Float[Tensor, "*b 2"]) -> Tensor:
    """Return the nearest of the eight directions of displacements (x, y), y downward."""
    turn = torch.atan2(-steps[..., 1], steps[..., 0]) / math.tau
    return (turn * len(DIRECTIONS)).round().long() % len(DIRECTIONS)
