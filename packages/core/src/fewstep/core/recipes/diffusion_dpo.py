"""Diffusion-DPO (arXiv 2311.12908): a teacher tuned on ranked pairs, here pairs of its own samples.

The paper's pairs are pictures people have ranked. Here the frozen reference makes two samples of one noise, at scale 1
and at ``noise_scale``, and the domain's judge ranks them: how Distillation-DPO's teacher is refined (arXiv 2504.11447,
section 4). No data are needed. The tuned network is a teacher like any other, and samples as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.grids import Spacing, time_grid
from fewstep.core.guidance import Guided
from fewstep.core.losses.distances import l2
from fewstep.core.losses.preference import (
    PreferenceKind,
    dpo_inside,
    implicit_accuracy,
    preference_loss,
    reward_margin,
)
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.pairs import Pair, ranked
from fewstep.core.recipes.rollout import Sample, noised_at, time_of_fraction
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import find_solver, solve
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionDPOConfig:
    """Settings of Diffusion-DPO; ``beta`` of the paper, pairs as Distillation-DPO makes them.

    ``beta``: multiplies half the difference of mean squared errors of the noise, see
    :mod:`fewstep.core.losses.preference`. ``objective``: sigmoid (DPO), hinge or ipo. ``winner_anchor``: weight of the
    winner's plain denoising error, against both errors growing together. ``time``: the law of noise levels;
    ``train_times``: fractions of the noise levels instead, for networks of few steps, which uniform times would turn
    into ordinary ones (SDXL-Turbo: 1, 0.75, 0.5, 0.25). ``solver``, ``solver_steps``, ``solver_spacing``,
    ``guidance_scale``: how the reference makes the pairs; errors are of unguided predictions. ``noise_scale``: of the
    second sample's noise. ``metric``: the domain's judge by name (empty: its first).
    """

    beta: float = 5000.0
    objective: PreferenceKind = "sigmoid"
    winner_anchor: float = 0.0
    time: TimeConfig = TimeConfig(low=0.0, high=1.0)
    train_times: tuple[float, ...] = ()
    guidance_scale: float = 1.0
    solver: str = "ddim"
    solver_steps: int = 10
    solver_spacing: Spacing | None = None
    noise_scale: float = 1.1
    metric: str = ""

    def __post_init__(self) -> None:
        check(self.beta > 0, f"beta must be positive, got {self.beta:g}")
        check(self.winner_anchor >= 0, f"winner_anchor must not be negative, got {self.winner_anchor:g}")
        check(self.noise_scale > 0, f"noise_scale must be positive, got {self.noise_scale:g}")
        check(self.solver_steps >= 1, f"solver_steps must be at least 1, got {self.solver_steps}")
        check(
            all(0 < u <= 1 for u in self.train_times),
            f"train_times are fractions in (0, 1], got {list(self.train_times)}",
        )
        find_solver(self.solver)


class DiffusionDPO(Recipe):
    """One network that learns to denoise winners better, and losers worse, than the reference does."""

    name: ClassVar[str] = "diffusion-dpo"
    paper: ClassVar[str] = "2311.12908"
    summary: ClassVar[str] = "preference tuning of a teacher on pairs of its own samples, ranked by any metric"
    config_type: ClassVar[type] = DiffusionDPOConfig
    config: DiffusionDPOConfig

    def __init__(self, config: DiffusionDPOConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.judge = actors.judge(config.metric)
        check_sees_data(actors.denoiser("reference"))

    @classmethod
    def role_specs(cls, config: DiffusionDPOConfig) -> tuple[RoleSpec, ...]:
        """Return the network to tune, with an average that samples, and what it starts from."""
        return (RoleSpec("student", ema=True), RoleSpec("reference", init="frozen"))

    @classmethod
    def phases(cls, config: DiffusionDPOConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("prefer", ("student",)),)

    @classmethod
    def plan(cls, config: DiffusionDPOConfig, process: Process, num_steps: int) -> StepPlan:
        """Return DDIM sampling on the process's usual grid, or on that of a network of few steps at as many."""
        few = len(config.train_times) == num_steps
        return StepPlan(
            time_of_fraction(process, config.train_times) if few else time_grid(process, num_steps),
            mode="deterministic",
        )

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the preference loss at one time and one noise for both members of each pair."""
        config, process = self.config, self.actors.process
        pair = self.pair(batch, rng)
        t, eps = self.times(rng, step).to(pair.winner.device), rng.normal_like("eps", pair.winner)
        errors = []
        for x0 in (pair.winner, pair.loser):
            x_t = noised_at(process, Sample(x0, batch.cond), t, eps).x_t.to(x0.dtype)
            for name in ("student", "reference"):
                with torch.set_grad_enabled(name == "student"), rng.network_noise("dropout"):
                    errors.append(l2(self.actors.denoiser(name).eps(x_t, t, batch.cond), eps))
        winner, winner_reference, loser, loser_reference = errors
        inside = dpo_inside(reward_margin(winner, loser, winner_reference, loser_reference), config.beta)
        terms = {"preference": preference_loss(inside, config.objective, config.beta)}
        if config.winner_anchor > 0:
            terms["anchor"] = winner
        metrics = {
            "accuracy": implicit_accuracy(inside).to(inside.dtype),
            "switch": pair.first_won.to(inside.dtype),
            "lead": pair.lead,
            "winner_error": winner.detach() - winner_reference,
            "loser_error": loser.detach() - loser_reference,
        }
        return LossTerms(terms, {"anchor": config.winner_anchor}, metrics)

    @torch.no_grad()
    def pair(self, batch: Batch, rng: Rng) -> Pair:
        """Return two samples of the reference from one noise, at both scales, ranked."""
        config, process, actors = self.config, self.actors.process, self.actors
        reference = Guided(actors.denoiser("reference"), config.guidance_scale)
        grid = time_grid(process, config.solver_steps, config.solver_spacing)
        noise = rng.normal("pair/noise", actors.shape, actors.dtype)
        made = [
            solve(
                reference,
                initial_state(process, scale * noise, grid[0], batch.cond),
                grid,
                batch.cond,
                config.solver,
                rng=rng,
                stream="pair/solver",
            ).x
            for scale in (1.0, config.noise_scale)
        ]
        return ranked(self.judge, made[0], made[1], batch)

    def times(self, rng: Rng, step: int) -> Float[Tensor, " b"]:
        """Return one time per pair, from the law or among the times of a network of few steps."""
        config, process = self.config, self.actors.process
        if not config.train_times:
            return config.time.draw(process, rng, "time", step)
        grid = torch.tensor(time_of_fraction(process, config.train_times), dtype=torch.float64, device=rng.device)
        return grid[rng.integers("time/index", len(grid))]
