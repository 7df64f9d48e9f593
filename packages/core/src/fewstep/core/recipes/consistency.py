"""Consistency distillation and training.

CD and CT (arXiv 2303.01469), iCT (2310.14189), ECT (2406.14548), LCM (2310.04378).

The student ``f(x_t, t)`` is taught to be constant along the teacher's trajectories, knot by knot:

    loss = weight(t) d(f(x_t, t), stopgrad f'(x_s, s)),   x_s one solver step of the (guided) teacher from x_t,

or, without a teacher, the same data sample and noise at two levels. ``f`` is the student's clean prediction under a
boundary condition (:mod:`fewstep.core.boundary`), ``f'`` the student itself or a running average of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.boundary import LCM_TIME_SCALE, ConsistencyFunction
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import Knots, knot_grid
from fewstep.core.losses.trajectory import (
    DistanceName,
    consistency_loss,
    ect_end,
    even_knots,
    exponential_schedule,
    gap_weight,
    sqrt_schedule,
    training_ema_decay,
)
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import TeacherGuidance, check_sees_data
from fewstep.core.recipes.rollout import time_of_fraction
from fewstep.core.recipes.weights import average_weights, copy_weights
from fewstep.core.rng import Rng
from fewstep.core.solvers import Move, find_solver
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import expand_to


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(TeacherGuidance):
    """Settings of consistency distillation and training.

    ``mode``: ``distillation`` steps along a teacher with ``solver``; ``training`` needs data only. ``boundary``:
    ``edm`` (CD, CT, iCT, ECT), ``lcm`` (table processes), ``jump`` (a DDIM jump to the least noise; any process).
    ``time_scale``: of ``lcm``, the same when sampling.
    ``num_knots``: pairs of neighbouring times (LCM: 50; CD: 39). ``curriculum``, in training mode: ``sqrt`` (CT),
    ``exponential`` (iCT) raise the number to ``end_knots`` over ``curriculum_steps``; ``tuning`` (ECT) pairs any time
    with an end that closes up in ``tuning_stages`` stages by the factor ``tuning_q``. ``time_law``: knots drawn
    ``uniform``, or by the mass of ``ln tau ~ N(p_mean, p_std^2)`` between them (iCT); ECT draws from the latter.
    ``target``: the student itself without gradient, or its average with ``ema_decay``. ``weight``: 1, or 1 / (tau_t -
    tau_s) (iCT, ECT). ``huber_c``: see :func:`~fewstep.core.losses.trajectory.consistency_loss`. ``student_times``:
    fractions of the noise levels to sample at (default: evenly spaced knots). ``init``: ``fresh`` weights are for
    training mode.
    """

    mode: Literal["distillation", "training"] = "distillation"
    boundary: Literal["edm", "lcm", "jump"] = "edm"
    sigma_data: float = 0.5
    time_scale: float = LCM_TIME_SCALE
    solver: Literal["ddim", "heun", "dpmpp_2s"] = "ddim"
    num_knots: int = 50
    curriculum: Literal["fixed", "sqrt", "exponential", "tuning"] = "fixed"
    end_knots: int = 150
    curriculum_steps: int = 10_000
    tuning_stages: int = 8
    tuning_q: float = 2.0
    time_law: Literal["uniform", "lognormal"] = "uniform"
    p_mean: float = -1.1
    p_std: float = 2.0
    target: Literal["stopgrad", "ema"] = "stopgrad"
    ema_decay: float = 0.95
    distance: DistanceName = "huber"
    huber_c: float | None = None
    weight: Literal["uniform", "gap"] = "uniform"
    init: Literal["teacher", "fresh"] = "teacher"
    student_times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_knots >= 2, f"num_knots must be at least 2, got {self.num_knots}")
        check(self.time_scale > 0, f"time_scale must be positive, got {self.time_scale:g}")
        check(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay:g}")
        check(self.curriculum_steps >= 1, "curriculum_steps must be at least 1")
        training = self.mode == "training"
        check(training or self.curriculum == "fixed", f"curriculum '{self.curriculum}' is for mode 'training'")
        check(training or self.init == "teacher", "distillation starts from the teacher: init 'fresh' is for training")
        check(
            not training or (self.guidance_scale == 1.0 and self.guidance_max is None),
            "consistency training has no teacher to guide: leave guidance_scale at 1",
        )


class Pair(NamedTuple):
    """Two points of one trajectory: states "b *d" and times "b", ``s`` the less noisy."""

    x_t: Tensor
    t: Tensor
    x_s: Tensor
    s: Tensor


class Consistency(Recipe):
    """Teaches a student to be constant along trajectories, so that one evaluation maps noise to data."""

    name: ClassVar[str] = "consistency"
    paper: ClassVar[str] = "2303.01469"
    summary: ClassVar[str] = "consistency distillation and training (CD, CT, iCT, ECT, LCM): 1-8 steps"
    config_type: ClassVar[type] = ConsistencyConfig
    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.process = actors.denoiser("student").process
        self.solver = find_solver(config.solver)
        self.student_view(config, actors.denoiser("student"))  # refuses boundaries this process has not
        check_sees_data(actors.denoiser("student"))
        if config.target == "ema":  # extra inputs start from random numbers: the average must share them
            copy_weights(actors.module("target"), actors.module("student"))

    @classmethod
    def role_specs(cls, config: ConsistencyConfig) -> tuple[RoleSpec, ...]:
        """Return the student, its teacher in distillation, and its average when that is the target."""
        roles = [RoleSpec("student", init=config.init, extras=config.extras(), ema=True)]
        if config.mode == "distillation":
            roles.append(RoleSpec("teacher", init="frozen"))
        if config.target == "ema":
            roles.append(RoleSpec("target", init=config.init, extras=config.extras()))
        return tuple(roles)

    @classmethod
    def phases(cls, config: ConsistencyConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def student_view(cls, config: ConsistencyConfig, student: Denoiser) -> Denoiser:
        """Return the consistency function (the student itself for jumps)."""
        if config.boundary == "jump":
            return student
        return ConsistencyFunction(student, config.boundary, config.sigma_data, config.time_scale)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the consistency loss of one pair of neighbours per sample."""
        config = self.config
        cond = config.condition(batch.cond, rng)
        with torch.no_grad():
            pair = self.pair(batch.clean_samples(self.name), cond, rng, step)
        with rng.network_noise("dropout"):
            online = self.evaluate("student", pair.x_t, pair.t, cond)
        with torch.no_grad(), rng.network_noise("dropout"):  # the same dropout masks on both sides
            name = "target" if config.target == "ema" else "student"
            target = self.evaluate(name, pair.x_s, pair.s, cond)
        weight = gap_weight(pair.t, pair.s, self.process) if config.weight == "gap" else None
        value = consistency_loss(online, target, weight=weight, distance=config.distance, c=config.huber_c)
        gap = (online.detach() - target).flatten(1).square().mean(1).sqrt()
        return LossTerms({"consistency": value}, metrics={"gap": gap})

    def evaluate(
        self, role: str, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b *d"]:
        """Return ``f(x, t)`` of a role."""
        view = self.student_view(self.config, self.actors.denoiser(role))
        if self.config.boundary != "jump":
            return view.x0(x, t, cond)
        end = times(self.process.t_min, len(x), x.device)
        return ddim_step(view.clean(x, t, cond), end, self.process, cond.get("anchor"))

    def pair(self, x0: Float[Tensor, "b *d"], cond: Cond, rng: Rng, step: int) -> Pair:
        """Return the pair of points a sample is taught on."""
        process, anchor = self.process, cond.get("anchor")
        t, s = (each.to(x0.device) for each in self.levels(rng, step))
        eps = rng.normal_like("eps", x0)
        x_t = process.add_noise(x0, eps, t, anchor).to(x0.dtype)
        if self.config.mode == "distillation":
            teacher = self.config.teacher(self.actors.denoiser("teacher"))
            x_s, _ = self.solver.step(Move(teacher, x_t, t, s, cond))
            return Pair(x_t, t, x_s.to(x0.dtype), s)
        x_s = process.add_noise(x0, eps, s, anchor)
        if self.config.curriculum == "tuning":  # an end without noise is the data sample itself
            clean = process.add_noise(x0, torch.zeros_like(x0), s, anchor)
            x_s = torch.where(expand_to((s <= process.t_min).to(x_s.dtype), x_s) > 0, clean, x_s)
        return Pair(x_t, t, x_s.to(x0.dtype), s)

    def levels(self, rng: Rng, step: int) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return a time and its less noisy neighbour per sample."""
        config, process = self.config, self.process
        if config.curriculum == "tuning":
            normal = rng.normal("level", (), torch.float64)
            t = process.time_from_tau((config.p_mean + config.p_std * normal).exp())
            least = 1.0 if process.discrete else float(process.unit_to_time(torch.tensor(1e-3)))
            t = process.round(t.clamp_min(least))  # a pair needs room below it
            stage = min(step * config.tuning_stages // config.curriculum_steps, config.tuning_stages - 1)
            s = process.round(process.time_from_tau(ect_end(process.tau(t), stage, q=config.tuning_q)))
            return t, torch.minimum(s, t - 1) if process.discrete else s
        knots = knot_grid(process, self.knots_at(step))
        index = self.draw_index(knots, rng)
        return knots.times[index], knots.previous[index]

    def knots_at(self, step: int) -> int:
        """Return the number of knots in force."""
        config = self.config
        if config.curriculum == "fixed":
            return config.num_knots
        schedule = sqrt_schedule if config.curriculum == "sqrt" else exponential_schedule
        return schedule(step, config.curriculum_steps, config.num_knots, config.end_knots)

    def draw_index(self, knots: Knots, rng: Rng) -> Tensor:
        """Return one knot per sample, by the configured law."""
        if self.config.time_law == "uniform":
            return rng.integers("knot", len(knots.times)).cpu()
        edges = torch.cat([knots.previous[:1], knots.times])
        mass = torch.special.ndtr((self.process.tau(edges).log() - self.config.p_mean) / self.config.p_std)
        share = (mass - mass[0]) / (mass[-1] - mass[0])
        index = torch.searchsorted(share, rng.uniform("knot").cpu(), right=True) - 1
        return index.clamp(0, len(knots.times) - 1)

    def after_step(self, step: int) -> None:
        """Move the target's average."""
        if self.config.target != "ema":
            return
        decay = self.config.ema_decay
        if self.config.curriculum == "sqrt":
            decay = training_ema_decay(self.knots_at(step), decay, self.config.num_knots)
        average_weights(self.actors.module("target"), self.actors.module("student"), decay)

    @classmethod
    def plan(cls, config: ConsistencyConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at evenly spaced knots; UserError for more steps than knots."""
        if len(config.student_times) == num_steps:
            grid = time_of_fraction(process, config.student_times)
        else:
            grid = even_knots(knot_grid(process, config.num_knots), num_steps)
        end: Literal["clean", "t_min"] = "t_min" if config.boundary == "jump" else "clean"
        return StepPlan(grid, extras=config.plan_extras(), end=end)
