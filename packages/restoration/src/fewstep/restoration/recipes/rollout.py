"""What students that jump to the end of a teacher's trajectory learn from: where each starts, and where it should end.

The start is noise around the low-quality input (plain noise where the process has no anchor); the end is what the
teacher's sampler makes of that very start, run on the fly or read from a prepared set, whose batches carry it in their
condition together with the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError, check
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import solve

NOISE, TARGET = "noise", "target"
"""Entries of a prepared batch's condition: the unit noise sampling starts from, and what the teacher made of it."""

SHORT_TABLE, USUAL_STEPS = 100, 50

Target = Literal["deterministic", "ancestral", "prepared", "data"]
"""What a student regresses on: the teacher's samples by DDIM or by ancestral steps, those of a prepared set, or data.

On a residual shift the deterministic step is SinSR's (arXiv 2311.14760).
"""


def levels_of(process: Process) -> int:
    """Return the number of noise levels of a table; 0 for a process with a continuous clock."""
    return round(process.t_max - process.t_min) + 1 if process.discrete else 0


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher makes targets.

    ``target``: see :data:`Target`. ``teacher_steps``: of the sampler; 0 is every level of a table of up to 100, and 50
    of any other process. ``guidance_scale``: ``uncond + guidance_scale (cond - uncond)``. A prepared set was made with
    steps of its own.
    """

    target: Target = "deterministic"
    teacher_steps: int = 0
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.teacher_steps >= 0, f"teacher_steps must not be negative, got {self.teacher_steps}")

    def steps(self, process: Process) -> int:
        """Return the number of steps of the teacher's sampler."""
        levels = levels_of(process)
        return self.teacher_steps or (levels if 0 < levels <= SHORT_TABLE else USUAL_STEPS)


class Start(NamedTuple):
    """Where a student starts: the state ``x`` "b *d" at ``t``, the same for all, and the networks' condition."""

    x: Tensor
    t: float
    cond: Cond

    def times(self) -> Tensor:
        """Return ``t`` per sample."""
        return times(self.t, len(self.x), self.x.device)


def network_cond(batch: Batch) -> Cond:
    """Return the condition without what a prepared set adds to it."""
    return {name: value for name, value in batch.cond.items() if name not in (NOISE, TARGET)}


def start_at_noise(actors: Actors, batch: Batch, rng: Rng) -> Start:
    """Return the state sampling starts from at ``t_max``, of the batch's own noise where it brings some."""
    process, cond = actors.process, network_cond(batch)
    noise = batch.cond[NOISE] if NOISE in batch.cond else rng.normal("noise", actors.shape, actors.dtype)
    noise = noise.to(actors.dtype)
    return Start(initial_state(process, noise, process.t_max, cond), process.t_max, cond)


def start_within(actors: Actors, batch: Batch, rng: Rng, t: float, who: str) -> Start:
    """Return noised clean samples at ``t``, below ``t_max``."""
    x0, cond = batch.clean_samples(who), network_cond(batch)
    noise = rng.normal("noise", actors.shape, actors.dtype)
    x = actors.process.add_noise(x0, noise, times(t, len(x0), x0.device), cond.get("anchor"))
    return Start(x.to(actors.dtype), t, cond)


@torch.no_grad()
def rollout(teacher: Denoiser, start: Start, steps: int, rng: Rng, *, ancestral: bool = False) -> Float[Tensor, "b *d"]:
    """Return what the teacher's sampler makes of the start, along its grid of ``steps`` from ``t_max``.

    A start within the grid goes on from where it is.
    """
    grid = (start.t, *(t for t in time_grid(teacher.process, steps) if t < start.t))
    return solve(teacher, start.x, grid, start.cond, "ddpm" if ancestral else "ddim", rng=rng).x


def teacher_of(config: TeacherConfig, actors: Actors) -> Denoiser:
    """Return the teacher under its guidance."""
    return Guided(actors.denoiser("teacher"), config.guidance_scale)


def target_of(config: TeacherConfig, actors: Actors, start: Start, batch: Batch, rng: Rng) -> Float[Tensor, "b *d"]:
    """Return the teacher's sample of the start; UserError where batch and config disagree about who makes it."""
    made = batch.cond.get(TARGET)
    if config.target == "prepared":
        if made is None:
            raise UserError("recipe.target: the data brings no prepared targets: set domain.targets to their folder")
        return made
    check(made is None, "the data brings the teacher's samples along: set recipe.target to prepared to learn from them")
    teacher, ancestral = teacher_of(config, actors), config.target == "ancestral"
    return rollout(teacher, start, config.steps(actors.process), rng.fork("rollout"), ancestral=ancestral)
