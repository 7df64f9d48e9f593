"""Motion-consistency distillation (MCM, arXiv 2406.06890): motion from the teacher, appearance from pictures.

The student is taught to be constant along the teacher's trajectories, as in consistency distillation, but the distance
is taken on a representation of motion; how its frames look is left to a discriminator of single frames, whose real side
may be any image set. Trajectories start from the data at some steps and from the student's own samples at others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.losses.trajectory import DistanceName, gap_weight
from fewstep.core.process import times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, RoleSpec
from fewstep.core.recipes.consistency import Consistency, ConsistencyConfig
from fewstep.core.recipes.weights import average_weights, copy_weights
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import Move
from fewstep.video.motion.differences import relative_motion
from fewstep.video.motion.head import MotionHead, head_deviation
from fewstep.video.motion.representation import MotionConfig, Represent, motion_consistency_loss, represent
from fewstep.video.recipes.appearance import (
    Appearance,
    AppearanceConfig,
    PenaltyAdaptation,
    frame_discriminator,
    network_condition,
)


@dataclass(frozen=True, kw_only=True)
class MotionConsistencyConfig(ConsistencyConfig):
    """Settings of motion-consistency distillation, besides those of consistency distillation; defaults of MCM's code.

    ``guidance_scale`` to ``guidance_max``: MCM draws w in [5, 15], scales of 6 to 16. ``tell_guidance``: give the
    student the drawn scale (MCM's adapters are not told). ``motion``: what the loss is taken on; ``motion_weight`` of
    that loss; ``clip_weight`` of the same loss on the clip itself (0: left out). ``self_share``: of the steps whose
    trajectories start from the student's own one-step samples, one draw per step. ``noise_at_top``: states at the
    greatest time are pure noise, as in sampling. ``appearance``: the frame discriminator.
    """

    boundary: Literal["edm", "lcm", "jump"] = "lcm"
    distance: DistanceName = "huber_element"
    guidance_scale: float = 6.0
    guidance_max: float | None = 16.0
    tell_guidance: bool = False
    time_scale: float = 4.0
    motion: MotionConfig = MotionConfig()
    motion_weight: float = 1.0
    clip_weight: float = 0.0
    self_share: float = 0.5
    noise_at_top: bool = True
    appearance: AppearanceConfig = AppearanceConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.mode == "distillation", "motion-consistency needs a teacher: use recipe 'consistency' to train alone"
        )
        check(0 <= self.self_share <= 1, f"self_share must lie in [0, 1], got {self.self_share:g}")
        for name in ("motion_weight", "clip_weight"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")
        check(
            self.motion_weight + self.clip_weight > 0,
            "motion_weight and clip_weight are both 0: the teacher would teach nothing",
        )
        check(
            self.motion.head.layers == 0 or self.motion_weight > 0,
            "motion.head learns from the motion loss: set motion_weight, or head.layers to 0",
        )
        check(
            not self.tell_guidance or self.guidance_max is not None,
            "tell_guidance is for drawn scales: set guidance_max",
        )

    def extras(self) -> tuple[str, ...]:
        """Return the extra inputs of the student."""
        return super().extras() if self.tell_guidance else ()

    def plan_extras(self) -> dict[str, float]:
        """Return what a plan tells the student at every step."""
        return super().plan_extras() if self.tell_guidance else {}

    def student_condition(self, cond: Cond) -> Cond:
        """Return the condition without a scale the student is not told."""
        return cond if self.tell_guidance else {name: value for name, value in cond.items() if name != "guidance"}


class _Start(NamedTuple):
    """Where a step begins: the state "b c f h w" at ``t`` and the less noisy ``s`` "b"; whether it is self-made."""

    x_t: Tensor
    t: Tensor
    s: Tensor
    own: bool


class MotionConsistency(Consistency):
    """Teaches motion along trajectories of clips, and appearance by single frames."""

    name: ClassVar[str] = "motion-consistency"
    paper: ClassVar[str] = "2406.06890"
    summary: ClassVar[str] = "motion from a video teacher, frames from an image set (MCM): 1-8 steps"
    config_type: ClassVar[type] = MotionConsistencyConfig
    config: MotionConsistencyConfig

    def __init__(self, config: MotionConsistencyConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        if len(actors.shape) != 4:
            raise UserError(
                f"recipe '{self.name}' needs clips 'c f h w', this domain's samples are {list(actors.shape)}"
            )
        if config.motion.head.layers:
            copy_weights(actors.module("motion_head_average"), actors.module("motion_head"))
        self.appearance = Appearance(config.appearance, actors) if config.appearance.weight > 0 else None

    @classmethod
    def role_specs(cls, config: MotionConsistencyConfig) -> tuple[RoleSpec, ...]:  # type: ignore[override]
        """Return the roles of consistency distillation, the learned head and its average, and the discriminator."""
        roles = list(super().role_specs(config))
        if config.motion.head.layers:
            build = partial(MotionHead, config.motion.head)
            roles += [RoleSpec(name, kind="module", build=build) for name in ("motion_head", "motion_head_average")]
        if config.appearance.weight > 0:
            judge = partial(frame_discriminator, config.appearance)
            roles.append(RoleSpec("discriminator", kind="module", build=judge))
        return tuple(roles)

    @classmethod
    def phases(cls, config: MotionConsistencyConfig) -> tuple[Phase, ...]:  # type: ignore[override]
        """Return the student's phase, which trains the head as well, and the discriminator's."""
        learned = ("student", "motion_head") if config.motion.head.layers else ("student",)
        student = Phase("student", learned)
        if config.appearance.weight == 0:
            return (student,)
        return (student, Phase("discriminator", ("discriminator",)))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the student, or of the discriminator."""
        cond = self.config.condition(network_condition(batch.cond), rng)
        with torch.no_grad():
            start = self.start(batch, self.config.student_condition(cond), rng, step)
        if phase == "student":
            return self.student_terms(start, cond, batch, rng, step)
        with torch.no_grad(), rng.network_noise("dropout"):
            clip = self.evaluate("student", start.x_t, start.t, self.config.student_condition(cond))
        assert self.appearance is not None  # the phase exists with it only
        return self.appearance.discriminator_terms(clip, batch.x0, batch.cond, rng)

    def start(self, batch: Batch, cond: Cond, rng: Rng, step: int) -> _Start:
        """Return noised data, or the student's own noised samples (mixed trajectories)."""
        process = self.process
        own = rng.shared_uniform("own") < self.config.self_share
        x0 = self.own_samples(cond, rng) if own else batch.clean_samples(self.name)
        t, s = (each.to(x0.device) for each in self.levels(rng, step))
        eps = rng.normal_like("eps", x0)
        x_t = process.add_noise(x0, eps, t, cond.get("anchor")).to(x0.dtype)
        if self.config.noise_at_top:
            top = (t >= process.t_max).reshape(-1, *[1] * (x_t.ndim - 1))
            x_t = torch.where(top, initial_state(process, eps, process.t_max, cond), x_t)
        return _Start(x_t, t, s, own)

    def own_samples(self, cond: Cond, rng: Rng) -> Float[Tensor, "b c f h w"]:
        """Return the student's x0 from pure noise, without boundary scalings."""
        noise = rng.normal("own/noise", self.actors.shape, self.actors.dtype)
        x = initial_state(self.process, noise, self.process.t_max, cond)
        with rng.network_noise("own/dropout"):
            x0 = self.actors.denoiser("student").x0(x, times(self.process.t_max, len(x), x.device), cond)
        return x0.to(noise.dtype)

    def student_terms(self, start: _Start, cond: Cond, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the consistency losses and the adversarial one."""
        config, told = self.config, self.config.student_condition(cond)
        with torch.no_grad():
            teacher = config.teacher(self.actors.denoiser("teacher"))
            x_s, _ = self.solver.step(Move(teacher, start.x_t, start.t, start.s, cond))
            with rng.network_noise("dropout"):  # the same dropout masks on both sides
                role = "target" if config.target == "ema" else "student"
                target = self.evaluate(role, x_s.to(start.x_t.dtype), start.s, told)
        with rng.network_noise("dropout"):
            online = self.evaluate("student", start.x_t, start.t, told)
        terms, metrics = self.consistency_terms(online, target, start)
        if batch.x0 is not None:
            metrics["data_motion"] = relative_motion(batch.x0)
        weights = {"motion": config.motion_weight, "clip": config.clip_weight}
        if self.appearance is not None and step >= config.appearance.start:
            terms["adversarial"] = self.appearance.student_loss(online, batch.cond, rng)
            weights["adversarial"] = config.appearance.weight
        return LossTerms(terms, weights, metrics)

    def consistency_terms(
        self, online: Tensor, target: Tensor, start: _Start
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses on the motion and on the clip, and what is logged of them."""
        config = self.config
        weight = gap_weight(start.t, start.s, self.process) if config.weight == "gap" else None
        terms: dict[str, Tensor] = {}
        gap = (online.detach() - target).flatten(1).square().mean(1).sqrt()
        metrics = {"gap": gap, "own": torch.full_like(gap, float(start.own))}
        head, average = self.heads()
        loss = partial(motion_consistency_loss, online, target, weight=weight, distance=config.distance)
        if config.motion_weight > 0:
            terms["motion"] = loss(config.motion, head=head, target_head=average, c=config.huber_c)
            if head is not None:
                with torch.no_grad():
                    seen = represent(online.detach(), config.motion)
                    metrics["head_deviation"] = head_deviation(head(seen), seen)
        if config.clip_weight > 0:
            terms["clip"] = loss(MotionConfig(), c=config.huber_c)
        return terms, metrics

    def heads(self) -> tuple[Represent | None, Represent | None]:
        """Return the learned head and its average."""
        if not self.config.motion.head.layers:
            return None, None
        return self.actors.module("motion_head"), self.actors.module("motion_head_average")

    def after_step(self, step: int) -> None:
        """Move the averages."""
        super().after_step(step)
        if self.config.motion.head.layers:
            decay = self.config.motion.head.ema_decay
            average_weights(self.actors.module("motion_head_average"), self.actors.module("motion_head"), decay)
        if self.adaptation is not None:
            self.adaptation.after_step(self.actors.total)

    @property
    def adaptation(self) -> PenaltyAdaptation | None:
        """What lets the weight of the gradient penalty grow, where it may."""
        return None if self.appearance is None else self.appearance.adaptation

    def state(self) -> dict[str, Tensor]:
        """Return the weight of the gradient penalty, where it may grow."""
        return {} if self.adaptation is None else self.adaptation.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave; UserError when it is missing."""
        if self.adaptation is None:
            return super().load_state(state)
        self.adaptation.load_state(state)


__all__ = ["MotionConsistency", "MotionConsistencyConfig"]
