"""SDS (DreamFusion, arXiv 2209.14988) and its relatives without a fake score: SJC, CSD, ASD, ISM, NFSD, SDI.

They optimise samples: a scene that is rendered, a set of images. Where the domain's student is a denoiser it is trained
as a one-step generator, whose samples SDS makes collapse onto modes; that is the method, not a fault.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from fewstep.core.losses.integral import normalizing_weight, sds_weight
from fewstep.core.losses.monitors import gap
from fewstep.core.process import Process
from fewstep.core.recipe import Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.rollout import Sample, noised, student_plan, student_sample
from fewstep.core.recipes.sds_settings import SDSConfig
from fewstep.core.recipes.sds_variants import PULLS, Question
from fewstep.core.rng import Rng


class SDS(Recipe):
    """Pulls samples to the teacher's modes."""

    name: ClassVar[str] = "sds"
    paper: ClassVar[str] = "2209.14988"
    summary: ClassVar[str] = "score distillation: SDS, SJC, CSD, ASD, ISM, NFSD, SDI: optimise samples, data-free"
    config_type: ClassVar[type] = SDSConfig
    config: SDSConfig

    @classmethod
    def role_specs(cls, config: SDSConfig) -> tuple[RoleSpec, ...]:
        """Return whatever the domain optimises, and the frozen teacher."""
        return (RoleSpec("student", ema=True), RoleSpec("teacher", init="frozen"))

    @classmethod
    def phases(cls, config: SDSConfig) -> tuple[Phase, ...]:
        """Return the one phase."""
        return (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: SDSConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at the student's times; UserError for a number of steps it was not made for."""
        return student_plan(cls.name, config, process, num_steps)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the surrogate of the variant."""
        config, process = self.config, self.actors.process
        sample = student_sample(self.actors, config, batch, rng, grad=True)
        detached = Sample(sample.x0.detach(), sample.cond)
        at = noised(process, detached, config.time, rng, "noised", step)
        with torch.no_grad():
            teacher = self.actors.denoiser("teacher")
            pull = PULLS[config.variant](Question(teacher, config, detached, at, rng, step))
        at, eps = pull.at, pull.guided.eps
        weight = sds_weight(config.weight_name(), at.alpha, at.sigma)
        weight = weight * normalizing_weight(config.normalizer, detached.x0, eps, at.eps, at.alpha, at.sigma)
        value = pull.loss(sample.x0, weight=weight, reduction=config.reduction)
        return LossTerms({config.variant: value}, metrics={"gap": gap(pull.guided.x0, sample.x0)})


__all__ = ["SDS", "SDSConfig"]
