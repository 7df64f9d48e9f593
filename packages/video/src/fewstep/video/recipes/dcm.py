"""Dual-expert consistency distillation (DCM, arXiv 2506.03123): one expert for motion, one for detail.

The trajectory is cut at one noise level. The semantic expert, a whole network, learns to jump from any noisier point
to the cut; the detail expert, the same network with layers of its own, from any other point to the end. Both are taught
to be constant along the teacher's trajectories,

    y = J(x_t, t -> e),   y' = stopgrad J'(x_s, s -> e),   x_s one step of the (guided) teacher from x_t,

``J(x, t -> e) = alpha_e x0 + sigma_e eps`` and ``y' = x_s`` where s is e. The semantic expert is also held to the
target's differences of frames, the detail expert to what the frozen teacher's features say of the target. One run does
both, one after the other: the network no longer moves once the layers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check
from fewstep.core.losses.trajectory import consistency_loss
from fewstep.core.networks.experts import ExpertConfig, ExpertLayers, RoutedExperts, TwoExperts
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import TeacherGuidance, check_sees_data
from fewstep.core.recipes.weights import average_weights, copy_weights, set_parameters
from fewstep.core.rng import Rng
from fewstep.core.solvers import Move, find_solver
from fewstep.core.steps import ddim_step
from fewstep.core.tensors import expand_to
from fewstep.video.motion.coherence import coherence_loss
from fewstep.video.recipes.cut import CutGrid, cut_grid
from fewstep.video.recipes.target_judge import Ends, JudgeConfig, TargetJudge


@dataclass(frozen=True, kw_only=True)
class DCMConfig(TeacherGuidance):
    """Settings of dual-expert consistency distillation; defaults of DCM's code.

    ``num_knots``: solver steps the range is cut into; ``kappa``: index of the knot at the cut, from which the range of
    either expert, where it ends and who samples where follow. ``shift``: of the knots of a flow teacher (0: the
    teacher's own; DCM: 17). ``end``: fraction of the clock the detail expert ends at; beyond 0, sampling still goes to
    clean data from there (DCM: 0.001). ``semantic_steps``: the step from which the detail expert learns, and the other
    no longer does. ``target``: the expert itself without gradient, or its average with ``ema_decay``.
    ``coherence_weight``: of the difference of frames ``coherence_lag`` latent frames apart. ``judge``: how the detail
    expert is judged; ``detail``: its own layers.
    """

    num_knots: int = 50
    kappa: int = 37
    shift: float = 0.0
    end: float = 0.0
    semantic_steps: int = 1000
    solver: Literal["ddim", "heun", "dpmpp_2s"] = "ddim"
    target: Literal["stopgrad", "ema"] = "stopgrad"
    ema_decay: float = 0.999
    huber_c: float = 1e-3
    coherence_weight: float = 1.0
    coherence_lag: int = 3
    judge: JudgeConfig = JudgeConfig()
    detail: ExpertConfig = ExpertConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_knots >= 2, f"num_knots must be at least 2, got {self.num_knots}")
        check(0 <= self.kappa < self.num_knots - 1, f"kappa must lie in 0..num_knots-2, got {self.kappa}")
        check(0 <= self.end < 1, f"end is a fraction of the clock in [0, 1), got {self.end:g}")
        check(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay:g}")
        check(self.coherence_lag >= 1, f"coherence_lag must be at least 1, got {self.coherence_lag}")
        for name in ("shift", "semantic_steps", "huber_c", "coherence_weight"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")

    def grid(self, process: Process) -> CutGrid:
        """Return the knots and the cut."""
        return cut_grid(process, self.num_knots, self.kappa, self.shift, self.end)


class DCM(Recipe):
    """Teaches one network to jump to a noise level, and layers in it to jump on from there."""

    name: ClassVar[str] = "dcm"
    paper: ClassVar[str] = "2506.03123"
    summary: ClassVar[str] = "two experts in one network, for motion and for detail (DCM): 2-8 steps"
    config_type: ClassVar[type] = DCMConfig
    config: DCMConfig

    def __init__(self, config: DCMConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        student = actors.denoiser("student")
        self.process, self.grid = student.process, config.grid(student.process)
        self.solver = find_solver(config.solver)
        check_sees_data(student)
        self._check_clips()
        self.judge = TargetJudge(config.judge, actors, self.grid) if config.judge.used else None
        self.layers: dict[str, ExpertLayers] = {}
        if isinstance(student, NetworkDenoiser):  # experts given by hand are used as they are
            self._attach(student)
        if config.semantic_steps == 0:
            self.begin_detail()

    def _attach(self, student: NetworkDenoiser) -> None:
        names = ("detail", "detail_target") if self.config.target == "ema" else ("detail",)
        for name in names:
            found = self.actors.module(name)
            if not isinstance(found, ExpertLayers):
                raise UserError(f"role '{name}' of recipe 'dcm' must be an expert's layers, got {type(found).__name__}")
            found.attach(student.backbone)
            self.layers[name] = found
        self.actors.roles["student"] = TwoExperts(student, self.layers["detail"])
        if self.config.target == "ema":
            copy_weights(self.actors.module("target"), student.backbone)

    def _check_clips(self) -> None:
        config, shape = self.config, self.actors.shape
        check(len(shape) == 4, f"recipe 'dcm' needs clips 'c f h w', this domain's samples are {list(shape)}")
        check(
            config.coherence_weight == 0 or config.coherence_lag < shape[1],
            f"recipe.coherence_lag is {config.coherence_lag} and clips have {shape[1]} latent frame(s): set a smaller "
            "lag, or coherence_weight to 0",
        )

    @classmethod
    def role_specs(cls, config: DCMConfig) -> tuple[RoleSpec, ...]:
        """Return the semantic expert, the layers of the detail expert, the teacher, its heads, and averages."""
        layers = partial(ExpertLayers, config.detail)
        roles = [
            RoleSpec("student", extras=config.extras(), ema=True),
            RoleSpec("detail", kind="module", build=layers, ema=True),
            RoleSpec("teacher", init="frozen"),
        ]
        if config.judge.used:
            roles.append(RoleSpec("discriminator", kind="discriminator", features_of="teacher"))
        if config.target == "ema":
            roles.append(RoleSpec("target", extras=config.extras()))
            roles.append(RoleSpec("detail_target", kind="module", build=layers))
        return tuple(roles)

    @classmethod
    def phases(cls, config: DCMConfig) -> tuple[Phase, ...]:
        """Return the semantic expert's phase, and from its end on those of the detail expert and of the heads."""
        since = config.semantic_steps
        phases = [Phase("detail", ("detail",), start=since)]
        if since > 0:
            phases.insert(0, Phase("semantic", ("student",), stop=since))
        if config.judge.adversarial_weight > 0:
            phases.append(Phase("discriminator", ("discriminator",), start=since))
        return tuple(phases)

    @classmethod
    def student_view(cls, config: DCMConfig, student: Denoiser) -> Denoiser:
        """Return both experts, each for its own times; UserError for a student that is not from a run of this."""
        if not isinstance(student, TwoExperts):
            raise UserError(
                f"recipe 'dcm' samples from a network with two experts, not from a {type(student).__name__}"
            )
        return RoutedExperts(student, student.second(), config.grid(student.process).cut)

    @classmethod
    def plan(cls, config: DCMConfig, process: Process, num_steps: int) -> StepPlan:
        """Return deterministic steps, half of them on either side of the cut; UserError for fewer than two."""
        end: Literal["clean", "t_min"] = "t_min" if config.end == 0 else "clean"
        grid = config.grid(process).steps(num_steps)
        return StepPlan(grid, "deterministic", extras=config.plan_extras(), end=end)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of an expert, or of the heads."""
        cond = self.config.condition(batch.cond, rng)
        with torch.set_grad_enabled(phase != "discriminator"):
            ends = self.ends(phase == "semantic", batch, cond, rng)
        if phase == "discriminator":
            assert self.judge is not None  # the phase exists with it only
            return self.judge.discriminator_terms(ends, cond, rng)
        value = consistency_loss(ends.made, ends.target, distance="huber_element", c=self.config.huber_c)
        terms = {"consistency": value}
        metrics = {"gap": (ends.made.detach() - ends.target).flatten(1).square().mean(1).sqrt()}
        if phase == "semantic" and self.config.coherence_weight > 0:
            terms["coherence"] = coherence_loss(ends.made, ends.target, self.config.coherence_lag)
        if phase == "detail" and self.judge is not None:
            terms |= self.judge.terms(ends, cond, rng)
        weights = {
            "coherence": self.config.coherence_weight,
            "adversarial": self.config.judge.adversarial_weight,
            "features": self.config.judge.feature_weight,
        }
        return LossTerms(terms, weights, metrics)

    def ends(self, semantic: bool, batch: Batch, cond: Cond, rng: Rng) -> Ends:
        """Return where an expert's jump leads from noised data, and its target's from where the teacher gets."""
        x0 = batch.clean_samples(self.name)
        t, s, end = (each.to(x0.device) for each in self.grid.draw(semantic, rng))
        with torch.no_grad():
            x_t = self.process.add_noise(x0, rng.normal_like("eps", x0), t, cond.get("anchor")).to(x0.dtype)
            teacher = self.config.teacher(self.actors.denoiser("teacher"))
            x_s = self.solver.step(Move(teacher, x_t, t, s, cond))[0].to(x0.dtype)
        with rng.network_noise("dropout"):
            made = self.jump(self.expert(semantic), x_t, t, end, cond)
        with torch.no_grad(), rng.network_noise("dropout"):  # the same dropout masks on both sides
            target = self.jump(self.expert(semantic, target=True), x_s, s, end, cond)
            # a jump to where one stands is the state itself, whatever the network says
            target = torch.where(expand_to((s == end).to(target.dtype), target) > 0, x_s.to(target.dtype), target)
        return Ends(made, target, end)

    def jump(
        self, role: Denoiser, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], end: Float[Tensor, " b"], cond: Cond
    ) -> Float[Tensor, "b *d"]:
        """Return ``J(x, t -> end)`` of an expert."""
        return ddim_step(role.clean(x, t, cond), end, self.process, cond.get("anchor"))

    def expert(self, semantic: bool, target: bool = False) -> Denoiser:
        """Return an expert, or what its jumps are compared with."""
        averaged = target and self.config.target == "ema"
        if semantic:
            return self.actors.denoiser("target" if averaged else "student")
        name = "detail_target" if averaged else "detail"
        student = self.actors.denoiser("student")
        return student.second(self.layers[name]) if isinstance(student, TwoExperts) else self.actors.denoiser(name)

    def begin_detail(self) -> None:
        """Make the semantic expert's (averaged) weights its own for good, and let the detail expert start from them."""
        student = self.actors.denoiser("student")
        if not isinstance(student, TwoExperts):
            return
        if self.actors.averaged is not None:
            set_parameters(student.backbone, self.actors.averaged("student"))
        for layers in self.layers.values():
            layers.follow(student.backbone)
        if self.config.target == "ema":  # factors start from random numbers: the average must share them
            copy_weights(self.layers["detail_target"], self.layers["detail"])
        self.layers["detail"].started = True

    def after_step(self, step: int) -> None:
        """Move the average, and go over to the detail expert once the other is done."""
        if self.config.target == "ema":
            names = ("target", "student") if step < self.config.semantic_steps else ("detail_target", "detail")
            average, live = (self.actors.module(name) for name in names)
            average_weights(average, live, self.config.ema_decay)
        if self.reset_optimizers(step):
            self.begin_detail()

    def reset_optimizers(self, step: int) -> bool:
        """Return whether ``step`` was the last of the semantic expert."""
        return step + 1 == self.config.semantic_steps

    def state(self) -> dict[str, Tensor]:
        """Return whether the detail expert has started."""
        return {"detail_started": torch.tensor(self.layers["detail"].started)} if self.layers else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave; UserError when it is missing."""
        if not self.layers:
            return super().load_state(state)
        if "detail_started" not in state:
            raise UserError("the checkpoint does not say whether the detail expert had started: another recipe's?")
        self.layers["detail"].started = bool(state["detail_started"])


__all__ = ["DCM", "DCMConfig"]
