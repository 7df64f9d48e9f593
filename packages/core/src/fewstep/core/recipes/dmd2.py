"""DMD2 (arXiv 2405.14867), with the regression of DMD (arXiv 2311.18828) as an option.

The student follows ``x0_fake - x0_teacher``, scaled per sample; the fake score learns several times as often; a
discriminator on real data may join in. Students of several steps are trained at inputs they make themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check
from fewstep.core.grids import time_grid
from fewstep.core.losses.distances import l2
from fewstep.core.losses.integral import distribution_matching_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, RoleSpec, StepPlan
from fewstep.core.recipes.adversarial import AdversarialGeneratorConfig, AdversarialRecipe
from fewstep.core.recipes.guided import TeacherGuidance
from fewstep.core.recipes.rollout import Noised, Sample, student_sample
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import find_solver, solve


@dataclass(frozen=True, kw_only=True)
class DMD2Config(AdversarialGeneratorConfig, TeacherGuidance):
    """Settings of DMD2; defaults of its ImageNet recipe without discriminator.

    ``fake_updates``: 5, or 10 for Stable Diffusion (section 4.2). ``adversarial.weight``: 3e-3 there, 1e-3 and 5e-3 for
    Stable Diffusion and SDXL. ``normalise``: divide by ``mean |x0 - x0_teacher|`` per sample (DMD, equation 8).
    ``backward_simulation``: students of several steps start from their own samples (section 4.5), not noised data.
    ``regression_weight``: DMD's loss on pairs of noise and the teacher's sample from it (there 0.25, with a perceptual
    distance; here squared), made by ``regression_solver`` in ``regression_steps`` at every student update: costly.
    ``guidance_max``: with it, the teacher's scale is drawn for each sample and told to student and fake score.
    ``real_lora_scale``: share of the fake score's LoRA that acts in the teacher where it judges (weak-to-strong
    distribution matching, arXiv 2503.13319: 0.25): the two are closer, and so is the student's target to itself.
    """

    fake_updates: int = 5
    normalise: bool = True
    backward_simulation: bool = True
    regression_weight: float = 0.0
    regression_steps: int = 18
    regression_solver: str = "heun"
    real_lora_scale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        TeacherGuidance.__post_init__(self)
        check(0 <= self.real_lora_scale <= 1, f"real_lora_scale must lie in [0, 1], got {self.real_lora_scale:g}")
        check(
            self.real_lora_scale == 0 or self.guidance_max is None,
            "real_lora_scale and guidance_max: a fake score that is told a scale cannot act in part, give one of them",
        )
        check(self.regression_weight >= 0, f"regression_weight must not be negative, got {self.regression_weight:g}")
        check(self.regression_steps >= 1, f"regression_steps must be at least 1, got {self.regression_steps}")
        find_solver(self.regression_solver)


class DMD2(AdversarialRecipe):
    """Distribution matching with a fake score on its own time scale, and optional adversarial and regression parts."""

    name: ClassVar[str] = "dmd2"
    paper: ClassVar[str] = "2405.14867"
    summary: ClassVar[str] = "distribution matching distillation (DMD, DMD2): 1-8 steps, optional GAN and regression"
    config_type: ClassVar[type] = DMD2Config
    config: DMD2Config

    def __init__(self, config: DMD2Config, actors: Actors) -> None:
        super().__init__(config, actors)
        check(
            config.regression_weight == 0 or actors.generate is None,
            f"recipe '{self.name}': this domain makes samples itself: regression on noise is not defined, set it to 0",
        )
        check(
            config.guidance_max is None or actors.generate is None,
            f"recipe '{self.name}': this domain makes samples itself and its student is told no scale: leave "
            "guidance_max out",
        )
        if config.real_lora_scale > 0:
            self.partly_fake()  # now, and not at the first step

    def partly_fake(self) -> Denoiser:
        """Return the teacher with a share of the fake score's LoRA; UserError where that is no LoRA over it."""
        fake, teacher = self.actors.denoiser("fake_score"), self.actors.denoiser("teacher")
        if not (isinstance(fake, NetworkDenoiser) and isinstance(teacher, NetworkDenoiser)):
            raise UserError(f"recipe '{self.name}': real_lora_scale is for networks: leave it out")
        view, base = fake.backbone, teacher.backbone
        if not (isinstance(view, AdapterView) and isinstance(base, AdapterView) and view.shared is base.shared):
            raise UserError(
                f"recipe '{self.name}': real_lora_scale needs a fake score that is a LoRA over the teacher: set "
                "roles.overrides.fake_score=lora, or leave it out"
            )
        return fake.with_backbone(view.weakened(self.config.real_lora_scale))

    @classmethod
    def role_specs(cls, config: Any) -> tuple[RoleSpec, ...]:
        """Return the roles; student and fake score are told the scale where it is drawn."""
        told = ("student", "fake_score")
        specs = super().role_specs(config)
        return tuple(replace(spec, extras=config.extras()) if spec.name in told else spec for spec in specs)

    @classmethod
    def plan(cls, config: Any, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at the student's times, told a scale where it was trained at drawn ones."""
        return replace(super().plan(config, process, num_steps), extras=config.plan_extras())

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the phase on fresh samples of the student, at drawn scales where there is a range."""
        return super().loss(phase, replace(batch, cond=self.config.condition(batch.cond, rng)), rng, step)

    def teacher(self) -> Denoiser:
        """Return the teacher under its guidance, at the scale the student is told where it is drawn."""
        return self.config.teacher(self.actors.denoiser("teacher"))

    def real_score(self) -> Denoiser:
        """Return the teacher under its guidance, with the set share of the fake score's LoRA."""
        return self.config.teacher(self.partly_fake()) if self.config.real_lora_scale > 0 else self.teacher()

    def sample(self, batch: Batch, rng: Rng, *, grad: bool) -> Sample:
        """Return samples of the student, from simulated inputs unless told otherwise."""
        simulate = self.config.backward_simulation
        return student_sample(self.actors, self.config, batch, rng, grad=grad, simulate=simulate)

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the matching surrogate, and the regression and adversarial losses where they have a weight."""
        config = self.config
        at = self.noised(sample, config.time, rng, step)
        terms = self.matching(sample, at, self.clean_pair(sample, at, rng, through=False), step)
        if config.regression_weight > 0:
            regression = self.regression_loss(batch, rng)
            terms = LossTerms(
                {**terms.terms, "regression": regression}, {"regression": config.regression_weight}, terms.metrics
            )
        return self.with_adversary(terms, sample, rng, step)

    def matching(self, sample: Sample, at: Noised, pair: tuple[Tensor, Tensor], step: int) -> LossTerms:
        """Return the matching surrogate for teacher's and fake score's clean predictions; f-distill weighs it."""
        value = distribution_matching_loss(sample.x0, *pair, normalise=self.config.normalise)
        return LossTerms({"matching": value}, metrics={"gap": gap(*pair)})

    def regression_loss(self, batch: Batch, rng: Rng) -> Float[Tensor, " b"]:
        """Return the squared distance of the student's first prediction from the teacher's sample of the same noise."""
        config, process, cond = self.config, self.process, batch.cond
        noise = rng.normal("regression/noise", self.actors.shape, self.actors.dtype)
        grid = time_grid(process, config.regression_steps)
        with torch.no_grad():
            start = initial_state(process, noise, grid[0], cond)
            target = solve(
                self.teacher(), start, grid, cond, config.regression_solver, rng=rng, stream="regression/solver"
            ).x
        first = config.grid(process)[0]
        x = initial_state(process, noise, first, cond)
        return l2(self.actors.denoiser("student").x0(x, times(first, batch.size, x.device), cond), target)
