"""The state of a run in memory, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import TrainingError
from fewstep.core.networks.ema import EMA, ConstantDecay, DecayLaw, HalfLife, PowerFunction
from fewstep.core.recipe import Batch, Recipe
from fewstep.core.training.cast import Cast, networks_of
from fewstep.core.training.feed import Feed
from fewstep.core.training.phases import PhaseRunner, Update
from fewstep.core.training.settings import EMAConfig, RunConfig
from fewstep.core.training.state import RunState
from fewstep.core.training.world import World


def decay_law(config: EMAConfig, batch: int) -> DecayLaw | None:
    """Return the averaging law of a config; None for no averages."""
    if config.kind == "constant":
        return ConstantDecay(config.decay, config.warmup)
    if config.kind == "halflife":
        return HalfLife(config.halflife, batch, config.warmup)
    return PowerFunction(config.std) if config.kind == "power" else None


@dataclass
class Means:
    """Running means of the numbers of a reporting interval; of learning rates, the last."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Take numbers in."""
        for name, value in values.items():
            again = name in self.sums and not name.startswith("lr/")
            self.sums[name] = self.sums[name] + value if again else value
            self.counts[name] = self.counts[name] + 1 if again else 1

    def take(self) -> dict[str, float]:
        """Return the means and start again."""
        found = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return found


class Trainer:
    """A problem and a recipe made ready to train; :meth:`step` makes one step.

    ``step_count`` steps are done. Raises UserError for a batch the processes cannot share and for phases with nothing
    to train.
    """

    def __init__(self, config: RunConfig, problem: Problem, recipe: Recipe, world: World) -> None:
        self.config, self.problem, self.recipe, self.world = config, problem, recipe, world
        world.share(config.train.batch)
        self.specs = recipe.role_specs(config.recipe)
        self.phases = recipe.phases(config.recipe)
        world.shard(networks_of(problem.actors, self.specs))
        self.cast = Cast(problem.actors, self.specs, self.phases)
        if config.train.compile:
            self._compile()
        self.runners = {
            phase.name: PhaseRunner(phase.name, recipe, self.cast, config.optim, config.train, world)
            for phase in self.phases
        }
        self.law = decay_law(config.train.ema, config.train.batch)
        self.emas: dict[str, EMA] = {}
        self._start_averages()
        problem.actors.averaged, problem.actors.total = self.averaged, world.total
        self.state = RunState(config, recipe, self.cast, self.runners, self.emas, world.main)
        self.means = Means()
        self.step_count = 0
        self.bad_updates = 0

    def _compile(self) -> None:
        for name in self.cast.modules:
            role = self.problem.actors.roles[name]
            if isinstance(role, NetworkDenoiser):
                role.backbone.compile()

    def _start_averages(self) -> None:
        if self.law is not None:
            for spec in self.specs:
                if spec.ema and spec.name in self.cast.trained:
                    self.emas[spec.name] = EMA(self.cast.modules[spec.name], self.law)

    def averaged(self, role: str) -> list[Tensor]:
        """Return the weights of a role that would be exported now: its average where there is one."""
        if role in self.emas:
            return self.emas[role].tensors()
        return [parameter.detach() for parameter in self.cast.modules[role].parameters()]

    def step(self, batch: Batch, feed: Feed, stop: bool = False) -> bool:
        """Make one step on this process's share of the batch; returns whether some process was asked to stop.

        Raises TrainingError for a non-finite loss or gradient beyond ``train.max_bad_steps``; the weights are then
        those before the update.
        """
        step, stopped, moved = self.step_count, stop and self.world.size == 1, set[str]()
        for phase in self.phases:
            if not phase.due(step):
                continue
            update = self.runners[phase.name].run(batch, feed.rng(step, phase.name), step, stop)
            stopped = stopped or update.stop
            if update.bad:
                self._count_bad(update, step)
            self.means.add({name: value for name, value in update.values.items() if math.isfinite(value)})
            if update.moved:
                moved.update(phase.trains)
        for name in moved & self.emas.keys():
            self.emas[name].update()
        self.recipe.after_step(step)
        if self.recipe.reset_optimizers(step):
            for runner in self.runners.values():
                runner.reset()
            self._start_averages()
        self.step_count += 1
        return stopped

    def _count_bad(self, update: Update, step: int) -> None:
        self.bad_updates += 1
        allowed = self.config.train.max_bad_steps
        roles = ", ".join(self.cast.trains[update.phase])
        where = f"step {step + 1}, phase '{update.phase}' (trains {roles}): {update.bad}"
        if self.bad_updates > allowed:
            budget = f"; {allowed} updates were allowed to fail" if allowed else ""
            raise TrainingError(f"{where}{budget}: lower the learning rate, set train.grad_clip, or check the data")

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides tensors."""
        return {"bad_updates": self.bad_updates, "means": {"sums": self.means.sums, "counts": self.means.counts}}

    def resume(self, step: int, counters: Mapping[str, Any]) -> None:
        """Go on after ``step`` steps."""
        self.step_count, self.bad_updates = step, int(counters["bad_updates"])
        means = counters["means"]
        self.means = Means(
            {k: float(v) for k, v in means["sums"].items()}, {k: int(v) for k, v in means["counts"].items()}
        )
