"""Jumps along trajectories: TCD (arXiv 2402.19159), PCM (2405.18407), trajectory-segmented distillation (2404.13686).

The student's DDIM jump from ``t`` to an end ``e`` must be the one its target makes from a neighbouring ``s``:

    loss = d(J(x_t, t -> e), stopgrad J'(x_s, s -> e)),      J(x, t -> e) = alpha_e x0 + sigma_e eps,

``x_s`` one solver step of the (guided) teacher from ``x_t``. Where ``e`` lies is the method: at the end of the knot's
phase (PCM), or drawn between that and ``s`` (TCD with one phase, segments with more). A network that is not told ``e``
can be exact for one end per time only, so that drawn ends are over-determined without the ``end_time`` input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import knot_grid
from fewstep.core.losses.trajectory import (
    DistanceName,
    consistency_loss,
    even_knots,
    phase_ends,
    phase_starts,
    random_end,
)
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import TeacherGuidance, check_sees_data
from fewstep.core.recipes.weights import average_weights, copy_weights
from fewstep.core.rng import Rng
from fewstep.core.solvers import Move, find_solver
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import expand_to


@dataclass(frozen=True, kw_only=True)
class TCDConfig(TeacherGuidance):
    """Settings of jump distillation.

    ``num_knots``: solver steps the range is cut into (50). ``num_phases``: pieces of the trajectory. ``end``:
    ``phase``, every jump goes to the end of its phase and sampling takes one deterministic step per phase (PCM);
    ``random``, ends are drawn (TCD with one phase). ``end_time``: tell the student where its jump ends (an extra
    network input). ``gamma``: share of fresh noise when a student of one phase samples (TCD; 0 deterministic, 1
    re-noising). ``huber_c``: see :func:`~fewstep.core.losses.trajectory.consistency_loss`.
    """

    num_knots: int = 50
    num_phases: int = 1
    end: Literal["phase", "random"] = "random"
    end_time: bool = False
    gamma: float = 0.3
    solver: Literal["ddim", "heun", "dpmpp_2s"] = "ddim"
    target: Literal["stopgrad", "ema"] = "stopgrad"
    ema_decay: float = 0.95
    distance: DistanceName = "huber_element"
    huber_c: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.num_phases <= self.num_knots, f"num_phases must lie in 1..num_knots, got {self.num_phases}")
        check(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], got {self.gamma:g}")
        check(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay:g}")

    def extras(self) -> tuple[str, ...]:
        """Return the extra inputs of the student."""
        return super().extras() + (("end_time",) if self.end_time else ())


class TCD(Recipe):
    """Teaches a student to jump along the teacher's trajectories, phase by phase or anywhere."""

    name: ClassVar[str] = "tcd"
    paper: ClassVar[str] = "2402.19159"
    summary: ClassVar[str] = "jumps along trajectories: TCD, phased consistency (PCM), segments: 1-16 steps"
    config_type: ClassVar[type] = TCDConfig
    config: TCDConfig

    def __init__(self, config: TCDConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.process = actors.denoiser("student").process
        self.solver = find_solver(config.solver)
        self.knots = knot_grid(self.process, config.num_knots)
        self.ends = phase_ends(self.knots, config.num_phases)
        check_sees_data(actors.denoiser("student"))
        if config.target == "ema":
            copy_weights(actors.module("target"), actors.module("student"))

    @classmethod
    def role_specs(cls, config: TCDConfig) -> tuple[RoleSpec, ...]:
        """Return student and teacher, and the student's average when that is the target."""
        roles = (RoleSpec("student", extras=config.extras(), ema=True), RoleSpec("teacher", init="frozen"))
        return (*roles, RoleSpec("target", extras=config.extras())) if config.target == "ema" else roles

    @classmethod
    def phases(cls, config: TCDConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the distance between the student's jump and its target's, to one end per sample."""
        config, x0 = self.config, batch.clean_samples(self.name)
        cond = config.condition(batch.cond, rng)
        index = rng.integers("knot", len(self.knots.times)).cpu()
        t, s, end = (each[index].to(x0.device) for each in (*self.knots, self.ends))
        if config.end == "random":
            end = random_end(rng.uniform("end").to(x0.device), end, s, self.process)
        with torch.no_grad():
            x_t = self.process.add_noise(x0, rng.normal_like("eps", x0), t, cond.get("anchor")).to(x0.dtype)
            teacher = config.teacher(self.actors.denoiser("teacher"))
            x_s = self.solver.step(Move(teacher, x_t, t, s, cond))[0].to(x0.dtype)
        with rng.network_noise("dropout"):
            online = self.jump(self.actors.denoiser("student"), x_t, t, end, cond)
        with torch.no_grad(), rng.network_noise("dropout"):  # the same dropout masks on both sides
            role = self.actors.denoiser("target" if config.target == "ema" else "student")
            target = self.jump(role, x_s, s, end, cond)
            # a jump to where one stands is the state itself, whatever the network says
            target = torch.where(expand_to((s == end).to(target.dtype), target) > 0, x_s.to(target.dtype), target)
        value = consistency_loss(online, target, distance=config.distance, c=config.huber_c)
        gap = (online.detach() - target).flatten(1).square().mean(1).sqrt()
        return LossTerms({"jump": value}, metrics={"gap": gap})

    def jump(
        self, role: Denoiser, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], end: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b *d"]:
        """Return ``J(x, t -> end)`` of a role."""
        told = {"end_time": self.process.time_input(end).to(x.dtype)} if self.config.end_time else {}
        return ddim_step(role.clean(x, t, dict(cond) | told), end, self.process, cond.get("anchor"))

    def after_step(self, step: int) -> None:
        """Move the target's average."""
        if self.config.target == "ema":
            average_weights(self.actors.module("target"), self.actors.module("student"), self.config.ema_decay)

    @classmethod
    def plan(cls, config: TCDConfig, process: Process, num_steps: int) -> StepPlan:
        """Return one deterministic step per phase, or jumps between even knots for one phase with drawn ends.

        Raises UserError when a phased student is asked for another number of steps than it has phases.
        """
        knots, extras = knot_grid(process, config.num_knots), config.plan_extras()
        if config.end == "random" and config.num_phases == 1:
            grid = even_knots(knots, num_steps)
            return StepPlan(grid, "jump", config.gamma, extras, end="t_min", end_time=config.end_time)
        check(
            num_steps == config.num_phases,
            f"recipe 'tcd': this student jumps from phase to phase and samples in {config.num_phases} step(s), "
            f"not {num_steps}: train one with that num_phases",
        )
        grid = phase_starts(knots, config.num_phases)
        return StepPlan(grid, "deterministic", extras=extras, end="t_min", end_time=config.end_time)
