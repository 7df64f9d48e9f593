"""A run put together from its config, or opened from its folder, and ways to draw from its student and its teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, Denoiser, batch_of
from fewstep.core.domain import Problem, find_domain
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.prediction import Prediction
from fewstep.core.recipe import Recipe, StepPlan
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan, teacher_sample
from fewstep.core.training.checkpoint import Refused, candidates, checkpoints_in, read_checkpoint, refusals
from fewstep.core.training.config import load_config
from fewstep.core.training.folder import CHECKPOINTS, CONFIG, check_run
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.showing import CHUNK, Draw, generated, sample_steps
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World


@dataclass
class Opened:
    """A problem with its recipe; ``step`` is that of the checkpoint in its networks (0: untrained)."""

    config: RunConfig
    problem: Problem
    recipe: Recipe
    world: World
    step: int = 0

    def student(self) -> Denoiser:
        """Return the student as it is sampled from; UserError for a domain whose student is no denoiser."""
        return self.recipe.student_view(self.config.recipe, self.problem.actors.denoiser("student"))

    def exported(self) -> Denoiser | nn.Module:
        """Return what an export is made of: the student, or the module that generates samples in its place."""
        actors = self.problem.actors
        return self.student() if actors.generate is None else actors.module("student")

    def has_teacher(self) -> bool:
        """Return whether there is a teacher to compare with."""
        return isinstance(self.problem.actors.roles.get("teacher"), Denoiser)

    def plan(self, steps: int | None = None) -> StepPlan:
        """Return how the student samples in ``steps`` (None: as trained); UserError when it was not made for that."""
        number = sample_steps(self.config)[0] if steps is None else steps
        return self.recipe.plan(self.config.recipe, self.problem.actors.process, number)


def guidance_of(config: RunConfig) -> float:
    """Return the scale the student's teacher is guided with; 1 for recipes without a fixed one."""
    return float(getattr(config.recipe, "guidance_scale", 1.0))


def assemble(config: RunConfig, world: World) -> Opened:
    """Return the problem and the recipe a config describes, untrained.

    Raises UserError for what the domain cannot give, guidance of a teacher without unconditional prediction included.
    """
    recipe_type = find_recipe(config.recipe_name)
    domain = find_domain(config.domain_name)
    problem = domain.build(config.domain, recipe_type.role_specs(config.recipe), config.seed, world.device)
    opened = Opened(config, problem, recipe_type(config.recipe, problem.actors), world)
    if opened.has_teacher() and (guidance_of(config) != 1 or getattr(config.recipe, "guidance_max", None) is not None):
        problem.actors.denoiser("teacher").null(problem.conditions(1, config.seed))  # now, and not at the first step
    return opened


def open_run(run_dir: Path, world: World, overrides: Sequence[str] = (), step: int | None = None) -> Opened:
    """Return a run with the weights of its newest checkpoint that verifies, averages in place of live weights.

    ``step``: that checkpoint and no other. Raises UserError for a folder that is no run, and when no checkpoint of it
    can be read.
    """
    check_run(run_dir)
    opened = assemble(load_config(run_dir / CONFIG, overrides), world)
    trainer = Trainer(opened.config, opened.problem, opened.recipe, world)
    refused: list[tuple[Path, str]] = []
    for path, verdict in candidates(run_dir / CHECKPOINTS, step):
        try:
            if verdict:
                raise Refused(verdict)
            snapshot = read_checkpoint(path)
            trainer.state.check_fit(snapshot)
        except Refused as error:
            refused.append((path, str(error)))
            continue
        trainer.state.restore(snapshot)
        for name, average in trainer.emas.items():
            average.copy_to(trainer.cast.modules[name])
        trainer.cast.rest()
        opened.step = int(snapshot.state["step"])
        return opened
    why = f": {refusals(refused)}" if refused else ""
    if step is not None:
        kept = ", ".join(str(number) for number, _ in checkpoints_in(run_dir / CHECKPOINTS)) or "none"
        raise UserError(f"{run_dir}: no checkpoint of step {step} to load{why}; kept are: {kept}")
    raise UserError(f"{run_dir}: no checkpoint to load{why}; go on with `resume {run_dir}`")


class Counting(Denoiser):
    """A denoiser that counts for how many samples it was evaluated."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.rows = inner, inner.process, 0

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the inner prediction."""
        self.rows += len(x_t)
        return self.inner.predict(x_t, t, cond)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)


@dataclass(frozen=True)
class Drawn:
    """Samples "n *d", their conditions, network evaluations per sample, and milliseconds per sample."""

    samples: Tensor
    cond: Cond
    evaluations: float
    ms_per_sample: float


def draw_student(opened: Opened, n: int, seed: int, steps: int | None = None, cond: Cond | None = None) -> Drawn:
    """Draw ``n`` samples of the student in ``steps`` (None: as trained).

    They are made under ``cond``, or under the domain's evaluation conditions.
    """
    if opened.problem.actors.generate is not None:
        return _timed(opened, n, seed, generated(opened.problem.actors), None, cond)
    plan, counted = opened.plan(steps), Counting(opened.student())
    shape, dtype = opened.problem.actors.shape, opened.problem.actors.dtype

    def draw(cond: Cond, rng: Rng) -> Tensor:
        return run_plan(counted, plan, rng.normal("noise", shape, dtype), cond, rng)

    return _timed(opened, n, seed, draw, counted, cond)


def draw_teacher(
    opened: Opened, n: int, seed: int, steps: int, solver: str = "ddim", cond: Cond | None = None
) -> Drawn:
    """Draw ``n`` samples of the teacher in ``steps`` solver steps, from the students' noise; UserError without one."""
    role = opened.problem.actors.roles.get("teacher")
    if not isinstance(role, Denoiser):
        raise UserError(f"recipe '{opened.config.recipe_name}' has no teacher to compare with")
    counted = Counting(role)  # below the guidance, which evaluates twice
    teacher = Guided(counted, guidance_of(opened.config))
    shape, dtype = opened.problem.actors.shape, opened.problem.actors.dtype

    def draw(cond: Cond, rng: Rng) -> Tensor:
        return teacher_sample(teacher, shape, cond, rng, steps=steps, solver=solver, dtype=dtype)

    return _timed(opened, n, seed, draw, counted, cond)


@torch.no_grad()
def _timed(opened: Opened, n: int, seed: int, draw: Draw, counted: Counting | None, given: Cond | None = None) -> Drawn:
    """Draw in chunks; the numbers of a sample depend on its index and the seed only."""
    device = opened.world.device
    wanted = opened.problem.conditions(n, seed) if given is None else given
    cond = {name: value.to(device) for name, value in wanted.items()}
    parts, since = [], time.perf_counter()
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        rng = Rng(seed, 0, tuple(range(start, stop)), "draw", device, n)
        with opened.world.autocast(opened.config.train.precision):
            parts.append(draw(batch_of(cond, start, stop), rng).cpu())  # the copy waits for the device
    seconds = time.perf_counter() - since
    return Drawn(torch.cat(parts), cond, counted.rows / n if counted else 0.0, 1000 * seconds / n)
