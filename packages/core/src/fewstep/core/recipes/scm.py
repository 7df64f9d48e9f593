"""Continuous-time consistency distillation and training: sCM (arXiv 2410.11081), on a teacher of any process.

Teacher and student are read through TrigFlow (:class:`fewstep.core.denoiser.Reprocessed`; no training needed), where
the consistency function is the clean prediction itself. The loss moves the student's ``F`` along the tangent of its own
consistency function, which needs the derivative of ``F`` along the teacher's trajectory (:mod:`fewstep.core.jvp`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, Reprocessed
from fewstep.core.errors import check
from fewstep.core.jvp import directional_derivative, trajectory_difference
from fewstep.core.losses.tangent import (
    Normalization,
    consistency_tangent,
    jvp_tangents,
    normalize_tangent,
    prior_weight,
    tangent_loss,
    tangent_warmup,
)
from fewstep.core.networks.log_variance import LogVariance
from fewstep.core.prediction import Clean, Kind, compose
from fewstep.core.process import Process, TrigFlow
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import TeacherGuidance
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, sample_mean

EDGE = 1e-4  # angles are kept this far from 0 and pi/2, where tan t or its inverse has no value


@dataclass(frozen=True, kw_only=True)
class SCMConfig(TeacherGuidance):
    """Settings of continuous-time consistency.

    ``mode``: ``distillation`` follows the teacher's velocity, ``training`` the data's. ``sigma_data``: standard
    deviation of the data. ``p_mean``, ``p_std``: ``ln tau ~ N`` (paper: -1.0, 1.4; SANA-Sprint: 0.2, 1.6).
    ``warmup_steps``: updates over which the tangent's unstable part is faded in. ``normalization``, ``c``: see
    :func:`~fewstep.core.losses.tangent.normalize_tangent`. ``variance_head``: learn a weight per noise level;
    ``prior``: weigh by 1/(sigma_data tan t). ``derivative``: exact forward mode, or a central difference of
    ``difference_step`` radians along the (guided) teacher's trajectory. ``student_angles``: TrigFlow angles to sample
    at, falling (default: pi/2, then 1.1 for two steps, even spacing for more). ``init``: ``fresh`` weights are for
    training mode.
    """

    mode: Literal["distillation", "training"] = "distillation"
    sigma_data: float = 0.5
    p_mean: float = -1.0
    p_std: float = 1.4
    warmup_steps: int = 10_000
    normalization: Normalization = "rms"
    c: float = 0.1
    variance_head: bool = True
    prior: bool = True
    derivative: Literal["exact", "finite_difference"] = "exact"
    difference_step: float = 0.01
    student_angles: tuple[float, ...] = ()
    init: Literal["teacher", "fresh"] = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.sigma_data > 0 and self.p_std > 0, "sigma_data and p_std must be positive")
        check(
            0 < self.difference_step < 0.2,
            f"difference_step must lie in (0, 0.2) radians, got {self.difference_step:g}",
        )
        check(all(0 < a <= math.pi / 2 for a in self.student_angles), "student_angles lie in (0, pi/2]")
        training = self.mode == "training"
        check(training or self.init == "teacher", "distillation starts from the teacher: init 'fresh' is for training")
        check(
            not training or (self.guidance_scale == 1.0 and self.guidance_max is None),
            "consistency training has no teacher to guide: leave guidance_scale at 1",
        )


class SCM(Recipe):
    """Moves a student along the tangent of its own consistency function; one model for any number of steps."""

    name: ClassVar[str] = "scm"
    paper: ClassVar[str] = "2410.11081"
    summary: ClassVar[str] = "continuous-time consistency (sCM): no knots, exact derivatives: 1-4 steps"
    config_type: ClassVar[type] = SCMConfig
    config: SCMConfig

    def __init__(self, config: SCMConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.trig = TrigFlow(sigma_data=config.sigma_data)
        self.read("student")  # refuses processes with an anchor

    @classmethod
    def role_specs(cls, config: SCMConfig) -> tuple[RoleSpec, ...]:
        """Return the student, its teacher in distillation, and the variance head when there is one."""
        roles = [RoleSpec("student", init=config.init, extras=config.extras(), ema=True)]
        if config.mode == "distillation":
            roles.append(RoleSpec("teacher", init="frozen"))
        if config.variance_head:
            roles.append(RoleSpec("log_variance", kind="module", init="fresh", build=LogVariance))
        return tuple(roles)

    @classmethod
    def phases(cls, config: SCMConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student", "log_variance") if config.variance_head else ("student",)),)

    def read(self, role: str) -> Denoiser:
        """Return a role under TrigFlow."""
        denoiser = self.actors.denoiser(role)
        return denoiser if denoiser.process == self.trig else Reprocessed(denoiser, self.trig)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the tangent loss at one angle per sample."""
        config, x0 = self.config, batch.clean_samples(self.name)
        cond = config.condition(batch.cond, rng)
        t = self.angles(rng).to(x0.device)
        eps = rng.normal_like("eps", x0)
        x_t = self.trig.add_noise(x0, eps, t).to(x0.dtype)
        with torch.no_grad():
            velocity = self.velocity(x0, eps, x_t, t, cond)
        with rng.network_noise("dropout"):
            fixed, derivative = self.derivative(x_t, t, velocity, cond)
        with rng.network_noise("dropout"):  # the same dropout masks in both
            network = self.network(x_t, t, cond)
        raw = consistency_tangent(
            x_t,
            t,
            fixed,
            velocity,
            derivative,
            warmup=tangent_warmup(step, config.warmup_steps),
            sigma_data=config.sigma_data,
        )
        tangent = normalize_tangent(raw, config.normalization, config.c)
        weight = prior_weight(t, config.sigma_data) if config.prior else None
        log_variance = self.actors.module("log_variance")(t.to(x0.dtype)) if config.variance_head else None
        value = tangent_loss(network, tangent, weight=weight, log_variance=log_variance)
        return LossTerms({"tangent": value}, metrics={"tangent_rms": sample_mean(raw.square()).sqrt()})

    def angles(self, rng: Rng) -> Float[Tensor, " b"]:
        """Return one angle per sample, within the noise levels the student's network knows."""
        tau = (self.config.p_mean + self.config.p_std * rng.normal("angle", (), torch.float64)).exp()
        process = self.actors.denoiser("student").process
        ends = process.tau(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
        low, high = self.trig.time_from_tau(ends).clamp(EDGE, math.pi / 2 - EDGE).tolist()
        return self.trig.time_from_tau(tau).clamp(low, high)

    def velocity(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], t: Tensor, cond: Cond
    ) -> Float[Tensor, "b *d"]:
        """Return dx_t/dt: the guided teacher's, or that of the data sample's own path in training."""
        if self.config.mode == "training":
            return compose(Clean(x0, eps), Kind.VELOCITY, t, self.trig)
        return self.config.teacher(self.read("teacher")).velocity(x_t, t, cond)

    def network(self, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the student's ``F = velocity / sigma_data``."""
        return self.read("student").velocity(x, t, cond) / self.config.sigma_data

    def derivative(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], velocity: Float[Tensor, "b *d"], cond: Cond
    ) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
        """Return ``F`` and ``cos t sin t dF/dt`` along the trajectory, both without gradient."""

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self.network(x, t, cond)

        if self.config.derivative == "exact":
            return directional_derivative(network, x_t, t, *jvp_tangents(t, velocity))
        slope = trajectory_difference(network, x_t, t, velocity, step=self.config.difference_step)
        with torch.no_grad():
            return network(x_t, t), expand_to(t.cos() * t.sin(), x_t) * slope

    @classmethod
    def plan(cls, config: SCMConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at TrigFlow angles, on the clock of the student's own process."""
        angles = config.student_angles
        if len(angles) != num_steps:
            angles = tuple(math.pi / 2 * (num_steps - i) / num_steps for i in range(num_steps))
            angles = (math.pi / 2, 1.1) if num_steps == 2 else angles
        trig = TrigFlow(sigma_data=config.sigma_data)
        grid = process.round(process.time_from_tau(trig.tau(torch.tensor(angles, dtype=torch.float64))))
        return StepPlan(tuple(grid.tolist()), extras=config.plan_extras())
