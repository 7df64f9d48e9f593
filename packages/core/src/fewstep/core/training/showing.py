"""Looking at a student while it trains: samples on fixed seeds, beside the teacher's, as pictures and as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.domain import Problem, Seen
from fewstep.core.guidance import Guided
from fewstep.core.recipe import Actors, Batch, Recipe, StepPlan
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan, teacher_sample
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import World

PREVIEW_STEP, EVALUATION_STEP = 2**40, 2**41  # steps no run reaches: their randomness is their own
CHUNK = 256
Draw = Callable[[Cond, Rng], Tensor]


def sample_steps(config: RunConfig) -> tuple[int, ...]:
    """Return the step counts the student is shown at: those asked for, or the one it is trained for."""
    if config.train.sample_steps:
        return config.train.sample_steps
    return (len(config.recipe.fractions()),) if isinstance(config.recipe, StudentConfig) else (1,)


def count(steps: int) -> str:
    """Return ``1 step`` or ``n steps``."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def along(plan: StepPlan, student: Denoiser, actors: Actors) -> Draw:
    """Return a way to draw the student's samples; they start from the noise a teacher's start from."""
    return lambda cond, rng: run_plan(student, plan, rng.normal("noise", actors.shape, actors.dtype), cond, rng)


def generated(actors: Actors) -> Draw:
    """Return a way to draw from a student that is no denoiser."""

    def draw(cond: Cond, rng: Rng) -> Tensor:
        if actors.generate is None:
            raise TypeError("the student of these actors is a denoiser")
        return actors.generate(Batch(len(rng.ids), cond, device=rng.device), rng)[0]

    return draw


class Show:
    """Samples of the student and the teacher of a problem.

    Raises UserError for step counts the student has no plan for.
    """

    def __init__(self, config: RunConfig, problem: Problem, recipe: Recipe, world: World) -> None:
        self.config, self.problem, self.recipe, self.world = config, problem, recipe, world
        actors = problem.actors
        self.plans: dict[int, StepPlan] = {}
        if actors.generate is None:
            for steps in sample_steps(config):
                self.plans[steps] = recipe.plan(config.recipe, actors.process, steps)
        self._teacher_row: Tensor | None = None

    def preview(self, stem: Path, step: int, logged: Mapping[str, float]) -> tuple[Path, Seen]:
        """Write teacher row and student rows next to ``stem``; returns the file, and what the domain sees in them.

        ``logged``: the newest numbers after ``step`` steps. Raises TrainingError where the domain ends the run.
        """
        n = self.config.train.preview_samples
        cond = self._conditions(n)
        rows: list[tuple[str, Tensor]] = []
        if self._teacher_row is None:
            self._teacher_row = self._teacher(n, cond)
        if self._teacher_row is not None:
            rows.append((f"teacher, {count(self.config.train.teacher_steps)}", self._teacher_row))
        rows += [(f"student, {count(k)}", x) for k, x in self._students(n, cond, PREVIEW_STEP).items()]

        def show() -> tuple[Path, Seen]:
            path, watch = self.problem.render(rows, stem), self.problem.watch
            return path, Seen() if watch is None else watch(step, rows, {**logged, **self._guidance()})

        return self.world.on_main(show)

    def _guidance(self) -> dict[str, float]:
        scales = [getattr(self.config.recipe, name, None) for name in ("guidance_scale", "guidance_max")]
        return {"guidance_scale": float(max(found))} if (found := [s for s in scales if s is not None]) else {}

    def evaluate(self) -> dict[str, float]:
        """Return the domain's metrics of the student at every step count, named ``eval/<steps>/<metric>``."""
        n = self.config.train.eval_samples
        cond = self._conditions(n)
        found: dict[str, float] = {}
        for steps, x in self._students(n, cond, EVALUATION_STEP).items():
            values = self.world.on_main(partial(self.problem.evaluate, x, cond))
            found |= {f"eval/{steps}/{name}": value for name, value in values.items()}
        return found

    def _conditions(self, n: int) -> Cond:
        return self.problem.conditions(n, self.config.seed)

    def _students(self, n: int, cond: Cond, step: int) -> dict[int, Tensor]:
        actors = self.problem.actors
        if actors.generate is not None:
            return {1: self._in_shares(n, cond, step, generated(actors))}
        student = self.recipe.student_view(self.config.recipe, actors.denoiser("student"))
        return {
            steps: self._in_shares(n, cond, step, along(plan, student, actors)) for steps, plan in self.plans.items()
        }

    def _teacher(self, n: int, cond: Cond) -> Tensor | None:
        actors, steps = self.problem.actors, self.config.train.teacher_steps
        role = actors.roles.get("teacher")
        if not isinstance(role, Denoiser):
            return None
        scale = getattr(self.config.recipe, "guidance_scale", 1.0)  # the teacher as the student is taught by it
        guided = Guided(role, scale)

        def draw(cond: Cond, rng: Rng) -> Tensor:
            return teacher_sample(guided, actors.shape, cond, rng, steps=steps, dtype=actors.dtype)

        return self._in_shares(n, cond, PREVIEW_STEP, draw)

    @torch.no_grad()
    def _in_shares(self, n: int, cond: Cond, step: int, draw: Draw) -> Float[Tensor, "n *d"]:
        """Draw every process's share of ``n`` samples in chunks and join them; the split changes no number."""
        world = self.world
        each = -(-n // world.size)
        parts = []
        for start in range(world.rank * each, (world.rank + 1) * each, CHUNK):
            ids = [min(i, n - 1) for i in range(start, min(start + CHUNK, (world.rank + 1) * each))]
            rng = Rng(self.config.seed, step, tuple(ids), "show", world.device, n)
            rows = torch.tensor(ids)
            part = {name: value[rows].to(world.device) for name, value in cond.items()}
            with world.autocast(self.config.train.precision):
                parts.append(draw(part, rng))
        return world.gather(torch.cat(parts))[:n].cpu()
