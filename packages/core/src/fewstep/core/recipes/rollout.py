"""How a generator recipe makes its samples, and the grammar of a student's times that all recipes share.

**Times of a student.** They are fractions of the process's noise levels, noisiest first. ``student_steps = K`` means
the uniform trailing grid ``start, start (K-1)/K, ... start/K``; ``student_times`` lists the fractions instead. Fraction
``u`` is index ``round(u T) - 1`` of a table of T levels (1 is 999 of 1000, 0.75 is 749), and ``unit_to_time(u)`` of any
other process.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The times a student is trained and sampled at; see the module for the grammar.

    ``student_steps``: number of uniform steps. ``student_start``: fraction the grid starts from (1 is the noisiest).
    ``student_times``: explicit fractions, falling; they replace the two others.
    """

    student_steps: int = 1
    student_start: float = 1.0
    student_times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check(self.student_steps >= 1, f"student_steps must be at least 1, got {self.student_steps}")
        check(0 < self.student_start <= 1, f"student_start must lie in (0, 1], got {self.student_start:g}")
        listed, steps = self.student_times, self.student_steps
        check(all(0 < u <= 1 for u in listed), f"student_times are fractions in (0, 1], got {list(listed)}")
        check(all(a > b for a, b in itertools.pairwise(listed)), f"student_times must fall, got {list(listed)}")
        check(
            not listed or steps in (type(self).student_steps, len(listed)),
            f"student_steps is {steps} but student_times lists {len(listed)}: give one of the two",
        )

    def fractions(self) -> tuple[float, ...]:
        """Return the student's times as fractions, noisiest first."""
        steps = self.student_steps
        return self.student_times or tuple(self.student_start * (steps - i) / steps for i in range(steps))

    def grid(self, process: Process) -> tuple[float, ...]:
        """Return the student's times on the process's clock, noisiest first; UserError when two of them coincide."""
        return time_of_fraction(process, self.fractions())


def time_of_fraction(process: Process, fractions: Sequence[float]) -> tuple[float, ...]:
    """Return the times of falling ``fractions`` of a process's noise levels; UserError when two of them coincide."""
    u = torch.tensor(list(fractions), dtype=torch.float64)
    if process.discrete:
        levels = process.t_max - process.t_min + 1
        # 0.9 * 1000 / 4 is 224.99..: the tolerance keeps halves of products of decimals on one side
        t = process.t_min + ((u * levels + 1e-9).round() - 1).clamp_min(0)
    else:
        t = process.unit_to_time(u)
    grid = tuple(t.tolist())
    check(
        all(a > b for a, b in itertools.pairwise(grid)),
        f"student times {list(fractions)} coincide on {type(process).__name__}: it has too few noise levels",
    )
    return grid


def student_plan(
    recipe: str,
    config: StudentConfig,
    process: Process,
    num_steps: int,
    mode: Literal["renoise", "deterministic"] = "renoise",
) -> StepPlan:
    """Return the plan of a student trained at the configured times; UserError for another number of steps."""
    grid = config.grid(process)
    check(
        num_steps == len(grid),
        f"recipe '{recipe}': this student was made for {len(grid)} step(s) and cannot sample in {num_steps}: "
        "train one with that student_steps",
    )
    return StepPlan(times=grid, mode=mode)


class Sample(NamedTuple):
    """A student's sample ``x0`` "b *d" and the condition it is to be judged under."""

    x0: Tensor
    cond: Cond


def student_sample(
    actors: Actors,
    config: StudentConfig,
    batch: Batch,
    rng: Rng,
    *,
    grad: bool,
    simulate: bool = True,
    noise_scale: float = 1.0,
) -> Sample:
    """Return a sample of the student, with its graph when ``grad``.

    The domain's ``generate`` where there is one. Otherwise the student's x0 at one of its times, drawn for the whole
    global batch: the input there is what the student itself makes of noise in the steps before, without gradient and
    with fresh noise at each step (backward simulation, arXiv 2405.14867, section 4.5), or noised data when ``simulate``
    is false. ``noise_scale``: of the noise sampling starts from; two calls that differ in it alone make samples of one
    noise direction. Raises UserError when data is called for and there is none.
    """
    if actors.generate is not None:
        with torch.set_grad_enabled(grad):
            x0, cond = actors.generate(batch, rng)
        return Sample(x0 if grad else x0.detach(), cond)
    student, grid = actors.denoiser("student"), config.grid(actors.process)
    index = rng.shared_integer("student/index", len(grid))
    with torch.no_grad():
        if simulate or index == 0:
            x = simulated_input(actors, student, grid[: index + 1], batch.cond, rng, noise_scale)
        else:
            x = renoised(
                actors.process, batch.clean_samples("backward_simulation: false"), batch.cond, grid[index], rng
            )
    with torch.set_grad_enabled(grad):
        x0 = student.x0(x, times(grid[index], batch.size, x.device), batch.cond)
    return Sample(x0, batch.cond)


def simulated_input(
    actors: Actors, student: Denoiser, grid: Sequence[float], cond: Cond, rng: Rng, noise_scale: float = 1.0
) -> Float[Tensor, "b *d"]:
    """Return the student's input at ``grid[-1]`` as sampling makes it: pure noise when that is the first time."""
    process = actors.process
    noise = noise_scale * rng.normal("student/noise", actors.shape, actors.dtype)
    x = initial_state(process, noise, grid[0], cond)
    for now, after in itertools.pairwise(grid):
        x0 = student.x0(x, times(now, len(x), x.device), cond)
        x = renoised(process, x0, cond, after, rng).to(noise.dtype)
    return x


def renoised(process: Process, x0: Float[Tensor, "b *d"], cond: Cond, t: float, rng: Rng) -> Float[Tensor, "b *d"]:
    """Return ``x0`` under fresh noise at ``t``; each time has its own stream of noise."""
    eps = rng.normal_like(f"student/renoise/{t:.6f}", x0)
    return process.add_noise(x0, eps, times(t, len(x0), x0.device), cond.get("anchor"))


class Noised(NamedTuple):
    """A sample under noise: ``x_t`` and ``eps`` "b *d", ``t``, ``alpha`` and ``sigma`` "b"."""

    x_t: Tensor
    eps: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def noised(process: Process, sample: Sample, law: TimeConfig, rng: Rng, stream: str, step: int) -> Noised:
    """Return the sample noised at times drawn from ``law``; differentiable in the sample."""
    t = law.draw(process, rng, f"{stream}/t", step)
    eps = rng.normal_like(f"{stream}/eps", sample.x0)
    return noised_at(process, sample, t, eps)


def noised_at(process: Process, sample: Sample, t: Float[Tensor, " b"], eps: Float[Tensor, "b *d"]) -> Noised:
    """Return the sample noised with ``eps`` at ``t``."""
    c = process.coefficients(t)
    x_t = process.add_noise(sample.x0, eps, t, sample.cond.get("anchor"))
    return Noised(x_t, eps, t, c.alpha, c.sigma)
