"""Progressive distillation (arXiv 2202.00512): one student step learns two teacher steps, round after round.

A round with N steps: from ``x_t`` at a knot of the N-step sampler the round's teacher makes two DDIM steps of half the
length; the student is taught the x0 whose single step lands where they did (:func:`fewstep.core.steps.back_out`). Then
the student's averaged weights become the next round's teacher and N is halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import time_grid
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.process import Coefficients, Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import TeacherGuidance, check_sees_data
from fewstep.core.recipes.weights import copy_weights, set_parameters
from fewstep.core.rng import Rng
from fewstep.core.steps import back_out, ddim_step, first_order_step


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(TeacherGuidance):
    """Settings of progressive distillation.

    ``start_steps``: steps of the first round's student (its teacher makes twice as many); halved each round down to
    ``final_steps``. ``round_steps``: updates per round, times ``last_factor`` for rounds of at most two steps.
    ``weighting``: of the squared x0 error (the paper's is max(SNR, 1)). ``anneal``: learning rate to 0 within a round.
    Guidance is in the first round's teacher; with a range, every round is told the same scales.
    """

    start_steps: int = 8
    final_steps: int = 1
    round_steps: int = 5000
    last_factor: int = 2
    weighting: Weighting = "truncated_snr"
    sigma_data: float = 0.5
    min_snr_gamma: float = 5.0
    anneal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.final_steps >= 1 and self.round_steps >= 1, "final_steps and round_steps must be at least 1")
        check(self.last_factor >= 1, "last_factor must be at least 1")
        halvings = [self.final_steps * 2**k for k in range(16)]
        check(
            self.start_steps in halvings,
            f"start_steps must be final_steps times a power of two, got {self.start_steps} and {self.final_steps}",
        )

    def rounds(self) -> list[tuple[int, int, int]]:
        """Return for each round the student's steps, its first update and the update after its last."""
        found, start, steps = [], 0, self.start_steps
        while steps >= self.final_steps:
            end = start + self.round_steps * (self.last_factor if steps <= 2 else 1)
            found.append((steps, start, end))
            start, steps = end, steps // 2
        return found

    def round_at(self, step: int) -> tuple[int, int, int]:
        """Return the round of an update; the last one goes on for ever."""
        return next((each for each in self.rounds() if step < each[2]), self.rounds()[-1])


class Progressive(Recipe):
    """Halves the number of deterministic steps, round after round."""

    name: ClassVar[str] = "progressive"
    paper: ClassVar[str] = "2202.00512"
    summary: ClassVar[str] = "progressive distillation: halves the steps in rounds, keeps the teacher's layout"
    config_type: ClassVar[type] = ProgressiveConfig
    config: ProgressiveConfig

    def __init__(self, config: ProgressiveConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        check_sees_data(actors.denoiser("student"))
        self.process = actors.denoiser("student").process
        copy_weights(actors.module("round_teacher"), actors.module("student"))

    @classmethod
    def role_specs(cls, config: ProgressiveConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the first round's teacher, and the one that later rounds promote students to."""
        extras = config.extras()
        return (
            RoleSpec("student", extras=extras, ema=True),
            RoleSpec("teacher", init="frozen"),
            RoleSpec("round_teacher", extras=extras),
        )

    @classmethod
    def phases(cls, config: ProgressiveConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the weighted error of the student's x0 against the one that makes two teacher steps in one."""
        config, x0 = self.config, batch.clean_samples(self.name)
        cond, steps = config.condition(batch.cond, rng), config.round_at(step)[0]
        first = step < config.rounds()[0][2]
        teacher = config.teacher(self.actors.denoiser("teacher")) if first else self.actors.denoiser("round_teacher")
        index = rng.integers("knot", steps).to(x0.device)
        with torch.no_grad():
            eps = rng.normal_like("eps", x0)
            t, middle, after = halves(self.process, steps, index)
            x_t = self.process.add_noise(x0, eps, t, cond.get("anchor")).to(x0.dtype)
            target = two_steps_in_one(teacher, x_t, t, middle, after, cond)
        c = self.process.coefficients(t)
        weight = denoising_weight(
            config.weighting, c.alpha, c.sigma, gamma=config.min_snr_gamma, sigma_data=config.sigma_data
        )
        with rng.network_noise("dropout"):
            predicted = self.actors.denoiser("student").x0(x_t, t, cond)
        return LossTerms({"progressive": denoising_loss(predicted, target, weight)})

    def after_step(self, step: int) -> None:
        """At the end of a round, make the student's (averaged) weights the next teacher's, and the student's own."""
        if not self.reset_optimizers(step):
            return
        student = self.actors.module("student")
        if self.actors.averaged is not None:
            set_parameters(student, self.actors.averaged("student"))
        copy_weights(self.actors.module("round_teacher"), student)

    def reset_optimizers(self, step: int) -> bool:
        """Return whether ``step`` was the last of a round that another one follows."""
        return any(step + 1 == end for _, _, end in self.config.rounds()[:-1])

    def lr_factor(self, step: int) -> float:
        """Return the linear decay to 0 within a round."""
        _, start, end = self.config.round_at(step)
        return max(0.0, 1 - (step - start) / (end - start)) if self.config.anneal else 1.0

    @classmethod
    def plan(cls, config: ProgressiveConfig, process: Process, num_steps: int) -> StepPlan:
        """Return DDIM at the knots of the last round; UserError for another number of steps."""
        check(
            num_steps == config.final_steps,
            f"recipe 'progressive': this student ends at {config.final_steps} step(s) and cannot sample in "
            f"{num_steps}: train one with that final_steps",
        )
        return StepPlan(time_grid(process, num_steps, "trailing"), "deterministic", extras=config.plan_extras())


def halves(
    process: Process, steps: int, index: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Coefficients]:
    """Return, for the ``index``-th of ``steps`` sampler steps: its start, its middle, and the coefficients at its end.

    Both samplers use trailing grids, one of twice the steps; the last step ends at clean data.
    """
    times = torch.tensor(time_grid(process, 2 * steps, "trailing"), dtype=torch.float64, device=index.device)
    starts, middles = times[0::2], times[1::2]
    ends = process.coefficients(starts.roll(-1))
    last = torch.arange(steps, device=index.device) == steps - 1
    clean = (1.0, 0.0, 0.0)  # alpha, sigma, anchor
    after = (torch.where(last, value, each) for value, each in zip(clean, ends, strict=True))
    return starts[index], middles[index], Coefficients(*(each[index] for each in after))


def two_steps_in_one(
    teacher: Denoiser,
    x_t: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    middle: Float[Tensor, " b"],
    after: Coefficients,
    cond: Cond,
) -> Float[Tensor, "b *d"]:
    """Return the x0 whose one DDIM step lands where two of the teacher's do (arXiv 2202.00512, algorithm 2)."""
    process = teacher.process
    anchor = cond.get("anchor") if process.has_anchor else None
    x = ddim_step(teacher.clean(x_t, t, cond), middle, process, anchor).to(x_t.dtype)
    x = first_order_step(teacher.clean(x, middle, cond), after, anchor=anchor)
    return back_out(x_t, x, process.coefficients(t), after, anchor)
