"""Trajectory distribution matching (TDM, arXiv 2503.06674): few deterministic steps, each matched in distribution.

The student's trajectory ``x_{t_1} .. x_{t_K}`` is rolled out by DDIM. At one step per sample, the point it lands on is
noised further, to a time inside the interval the step crossed, and compared there with the teacher. The intervals do
not overlap, so one fake score serves all steps. What the fake score learns is told in
:mod:`fewstep.core.losses.trajectory_matching`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.guidance import Guided
from fewstep.core.losses.denoising import denoising_loss, denoising_weight
from fewstep.core.losses.monitors import gap
from fewstep.core.losses.trajectory_matching import (
    MatchingDistance,
    conditional_score_target,
    effective_noise,
    forward_kernel,
    noise_importance,
    trajectory_matching_loss,
)
from fewstep.core.prediction import Clean
from fewstep.core.process import Coefficients, Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.generator import fake_score_phases, fake_score_roles
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.rollout import StudentConfig, student_plan
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import Reduction, expand_to


@dataclass(frozen=True, kw_only=True)
class TDMConfig(StudentConfig):
    """Settings of TDM; defaults of its PixArt script, but for guidance (there 4.5, here none).

    ``guidance_scale``: of the teacher only. ``target``: what the fake score is fitted to: ``importance`` (the sample,
    weighted by ``importance``: "mean" over elements as in the script, or "sum", the exact ratio), ``conditional``
    (the score given the point landed on, arXiv 2510.27684) or ``plain`` (biased). ``snr_gamma``: the fake loss is
    weighted by min(SNR, snr_gamma). ``distance``, ``huber_c`` (None: the paper's ``0.00054 sqrt(n)``), ``normalise``:
    see :func:`~fewstep.core.losses.trajectory_matching.trajectory_matching_loss`. ``low_margin``, ``high_margin``:
    noise is drawn above that fraction of the clock, and that far below the step's own time.
    """

    student_steps: int = 4
    student_start: float = 0.9
    guidance_scale: float = 1.0
    fake_updates: int = 1
    target: Literal["importance", "conditional", "plain"] = "importance"
    importance: Reduction = "mean"
    snr_gamma: float = 5.0
    distance: MatchingDistance = "pseudo_huber_elementwise"
    huber_c: float | None = 1e-3
    normalise: bool = True
    low_margin: float = 0.02
    high_margin: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.fake_updates >= 1, f"fake_updates must be at least 1, got {self.fake_updates}")
        check(self.low_margin >= 0 and self.high_margin >= 0, "TDM's margins must not be negative")


class Landing(NamedTuple):
    """One step per sample: its ``interval`` "b" (0 is the noisiest), prediction, and where it lands."""

    interval: Tensor
    clean: Clean
    point: Tensor
    middle: Coefficients


class Diffused(NamedTuple):
    """The landing point noised up to ``t``: ``x_t`` "b *d", the noise added, the coefficients at ``t``."""

    x_t: Tensor
    t: Tensor
    fresh: Tensor
    after: Coefficients


class TDM(Recipe):
    """Matches each step of a deterministic few-step student to the teacher, inside the interval the step crosses."""

    name: ClassVar[str] = "tdm"
    paper: ClassVar[str] = "2503.06674"
    summary: ClassVar[str] = "trajectory distribution matching: deterministic students of 2-8 steps, data-free"
    config_type: ClassVar[type] = TDMConfig
    config: TDMConfig

    def __init__(self, config: TDMConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.process = actors.process
        self.grid = config.grid(self.process)
        self.intervals = noise_intervals(config, self.process)
        if actors.generate is None:
            check_sees_data(actors.denoiser("student"), self.grid[0])

    @classmethod
    def role_specs(cls, config: TDMConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher and the fake score."""
        return fake_score_roles()

    @classmethod
    def phases(cls, config: TDMConfig) -> tuple[Phase, ...]:
        """Return the fake score's phase and the student's."""
        return fake_score_phases(config.fake_updates)

    @classmethod
    def plan(cls, config: TDMConfig, process: Process, num_steps: int) -> StepPlan:
        """Return DDIM through the student's times; UserError for a number of steps it was not made for."""
        return student_plan(cls.name, config, process, num_steps, mode="deterministic")

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the fake score's weighted denoising loss, or the student's matching loss."""
        config, cond = self.config, batch.cond
        landing = self.land(batch, rng, grad=phase == "student")
        with torch.no_grad():
            at = self.diffuse(landing, batch, rng)
        fake = self.actors.denoiser("fake_score")
        if phase == "fake_score":
            target, weight = self.fake_target(landing, at)
            return LossTerms({"denoise": denoising_loss(fake.x0(at.x_t, at.t, cond), target, weight)})
        with torch.no_grad():
            x0_teacher = Guided(self.actors.denoiser("teacher"), config.guidance_scale).x0(at.x_t, at.t, cond)
            x0_fake = fake.x0(at.x_t, at.t, cond)
        value = trajectory_matching_loss(
            landing.clean.x0,
            x0_teacher,
            x0_fake,
            distance=config.distance,
            c=config.huber_c,
            normalise=config.normalise,
        )
        return LossTerms({"tdm": value}, metrics={"gap": gap(x0_teacher, x0_fake)})

    def rollout(self, batch: Batch, rng: Rng) -> Float[Tensor, "k b *d"]:
        """Return the student's inputs at all its times, made by DDIM from pure noise without gradient."""
        student, anchor = self.actors.denoiser("student"), batch.cond.get("anchor")
        x = initial_state(
            self.process, rng.normal("student/noise", self.actors.shape, self.actors.dtype), self.grid[0], batch.cond
        )
        states = [x]
        with torch.no_grad():
            for now, after in itertools.pairwise(self.grid):
                t, s = times(now, batch.size, x.device), times(after, batch.size, x.device)
                x = ddim_step(student.clean(x, t, batch.cond), s, self.process, anchor).to(x.dtype)
                states.append(x)
        return torch.stack(states)

    def land(self, batch: Batch, rng: Rng, *, grad: bool) -> Landing:
        """Return one step of each sample, with its graph when ``grad``."""
        states = self.rollout(batch, rng)
        interval = rng.integers("interval", len(self.grid)).to(states.device)
        x = states[interval, torch.arange(batch.size, device=states.device)]
        t = torch.tensor(self.grid, dtype=torch.float64, device=states.device)[interval]
        with torch.set_grad_enabled(grad):
            clean = self.actors.denoiser("student").clean(x, t, batch.cond)
        middle = self.middle(interval)
        x0, eps = clean.x0.detach(), clean.eps.detach()
        point = expand_to(middle.alpha, x0) * x0 + expand_to(middle.sigma, x0) * eps
        return Landing(interval, clean, point, middle)

    def middle(self, interval: Tensor) -> Coefficients:
        """Return the coefficients at the end of each interval: the student's next time, clean data after the last."""
        ends = torch.tensor(self.grid[1:], dtype=torch.float64, device=interval.device)
        c = self.process.coefficients(ends)
        one, zero = ends.new_ones(1), ends.new_zeros(1)
        alpha, sigma = torch.cat([c.alpha, one])[interval], torch.cat([c.sigma, zero])[interval]
        return Coefficients(alpha, sigma, torch.cat([c.anchor, zero])[interval])

    def diffuse(self, landing: Landing, batch: Batch, rng: Rng) -> Diffused:
        """Return the landing point noised to a time drawn inside its interval."""
        low, high = torch.tensor(self.intervals, dtype=torch.float64, device=landing.interval.device)[
            landing.interval
        ].T
        u = rng.uniform("tau")
        t = self.process.unit_to_time(low + u * (high - low))
        if self.process.discrete:
            ends = torch.tensor([*self.grid[1:], -1.0], dtype=torch.float64, device=t.device)[landing.interval]
            t = torch.maximum(self.process.round(t), ends + 1)  # some noise must be added
        after = self.process.coefficients(t)
        fresh = rng.normal_like("fresh", landing.point)
        kernel = forward_kernel(landing.middle, after)
        x_t = expand_to(kernel.scale, fresh) * landing.point + expand_to(kernel.std, fresh) * fresh
        return Diffused(self.process.offset(x_t, t, batch.cond.get("anchor"), sign=1.0), t, fresh, after)

    def fake_target(self, landing: Landing, at: Diffused) -> tuple[Float[Tensor, "b *d"], Float[Tensor, " b"]]:
        """Return what the fake score should predict, and the weight of each sample."""
        config, x0, eps = self.config, landing.clean.x0, landing.clean.eps
        weight = denoising_weight("min_snr", at.after.alpha, at.after.sigma, gamma=config.snr_gamma)
        if config.target == "plain":
            return x0, weight
        if config.target == "importance":
            noise = effective_noise(eps, at.fresh, landing.middle, at.after)
            return x0, weight * noise_importance(noise, at.fresh, reduction=config.importance).to(weight.dtype)
        kernel = forward_kernel(landing.middle, at.after)
        core = expand_to(kernel.scale, at.fresh) * landing.point + expand_to(kernel.std, at.fresh) * at.fresh
        target = conditional_score_target(core, landing.point, landing.middle, at.after)
        # the target's spread grows as 1/std: weighed so that all noise levels within an interval count alike
        return target, weight * (kernel.std / at.after.sigma) ** 2


def noise_intervals(config: TDMConfig, process: Process) -> list[tuple[float, float]]:
    """Return, for each student time, the fractions of the clock its noise is drawn between; disjoint, noisiest first.

    Raises UserError when steps are closer together than the margins.
    """
    starts = process.time_to_unit(torch.tensor(config.grid(process), dtype=torch.float64)).tolist()
    ends = [*starts[1:], 0.0]
    intervals = [
        (max(config.low_margin, end + 1e-3), start - config.high_margin)
        for start, end in zip(starts, ends, strict=True)
    ]
    check(
        all(low < high for low, high in intervals),
        f"TDM: {len(starts)} student times leave no room for noise between them: use fewer steps or smaller margins",
    )
    return intervals
