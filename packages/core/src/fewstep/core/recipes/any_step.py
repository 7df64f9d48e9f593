"""Students trained at few times, most often one, and sampled at any number of them; their gradients in noise space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fewstep.core.errors import check
from fewstep.core.process import Process
from fewstep.core.recipe import StepPlan
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig
from fewstep.core.tensors import Reduction
from fewstep.core.times import TimeConfig

ALL_LEVELS = TimeConfig(low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class AnyStepConfig(GeneratorConfig):
    """Settings of students that sample at step counts they were not trained at.

    ``sampler``: how they move between their times, with fresh noise or by DDIM. ``reduction``: whether a sample's
    gradient ``eps_teacher - eps_fake`` is divided by its number of elements, as in the papers, or not. Noise levels are
    uniform over all there are, and the fake score minimises its network's own error.
    """

    sampler: Literal["renoise", "deterministic"] = "renoise"
    reduction: Reduction = "mean"
    time: TimeConfig = ALL_LEVELS
    fake: FakeScoreConfig = FakeScoreConfig(time=ALL_LEVELS, weighting="native")


def any_step_plan(config: AnyStepConfig, process: Process, num_steps: int) -> StepPlan:
    """Return the times the student was trained at where there are so many, else equal parts from the first of them.

    From the noisiest time of LiDiff's table: ``round(999 (n - i)/n)``. Raises UserError without steps, and for more
    than there are noise levels.
    """
    check(num_steps >= 1, f"a sampler needs at least one step, got {num_steps}")
    grid = config.grid(process)
    if num_steps != len(grid):
        first = process.time_to_unit(torch.tensor(grid[0], dtype=torch.float64))
        left = torch.arange(num_steps, 0, -1, dtype=torch.float64) / num_steps
        grid = tuple(process.round(process.unit_to_time(first * left)).tolist())
        check(len(set(grid)) == num_steps, f"{num_steps} steps are more than {type(process).__name__} has noise levels")
    return StepPlan(grid, config.sampler)
