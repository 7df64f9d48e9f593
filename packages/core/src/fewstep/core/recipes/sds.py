"""SDS (DreamFusion, arXiv 2209.14988) and its relatives that need no fake score: CSD, ASD, SDS on clean samples.

They optimise samples: a scene that is rendered, a set of images. Where the domain's student is a denoiser it is trained
as a one-step generator, whose samples SDS makes collapse onto modes; that is the method, not a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.core.denoiser import Denoiser, concat
from fewstep.core.errors import check
from fewstep.core.guidance import Guided, guide
from fewstep.core.losses.integral import (
    SDSWeight,
    asd_loss,
    asd_time,
    csd_loss,
    rescale_groups,
    sds_loss,
    sds_weight,
    x0_sds_loss,
)
from fewstep.core.losses.monitors import gap
from fewstep.core.process import Process
from fewstep.core.recipe import Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.rollout import Noised, Sample, StudentConfig, noised, noised_at, student_plan, student_sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class SDSConfig(StudentConfig):
    """Settings of SDS.

    ``variant``: ``sds`` moves along ``eps_guided - noise``, ``csd`` along ``eps_cond - eps_uncond`` (arXiv 2310.19415),
    ``asd`` along ``eps_guided - eps_cond`` at a noisier time (arXiv 2407.02040; ``asd_ratio`` is how much noisier),
    ``x0`` along ``x - x0_guided`` (arXiv 2308.16512; there with weight ``uniform`` and ``rescale`` 0.5, which pulls the
    guided prediction's spread back to the unguided one's, taken over the ``views`` of one object, neighbours in the
    batch). ``guidance_scale``: in the convention ``uncond + s (cond - uncond)``: DreamFusion's 100 in threestudio means
    101. ``weight``: on the difference, per noise level. ``time``: its range may be annealed (``low_end``, ``high_end``,
    ``anneal_steps``), which sharpens results. ``reduction``: ``sum`` gives the gradient of the papers per element,
    ``mean`` that divided by their number.
    """

    variant: Literal["sds", "csd", "asd", "x0"] = "sds"
    guidance_scale: float = 7.5
    weight: SDSWeight = "sigma2"
    time: TimeConfig = TimeConfig()
    asd_ratio: float = 0.1
    rescale: float = 0.0
    views: int = 1
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.asd_ratio >= 0, f"asd_ratio must not be negative, got {self.asd_ratio:g}")
        check(0 <= self.rescale <= 1, f"rescale must lie in [0, 1], got {self.rescale:g}")
        check(self.views >= 1, f"views must be at least 1, got {self.views}")


class SDS(Recipe):
    """Pulls samples to the teacher's modes."""

    name: ClassVar[str] = "sds"
    paper: ClassVar[str] = "2209.14988"
    summary: ClassVar[str] = "score distillation sampling, CSD, ASD, x0-SDS: optimise samples, data-free, no fake score"
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
        weight = sds_weight(config.weight, at.alpha, at.sigma)
        teacher = self.actors.denoiser("teacher")
        if config.variant == "x0":
            with torch.no_grad():
                x0 = self.clean_target(teacher, detached, at)
            value = x0_sds_loss(sample.x0, x0, weight=weight, reduction=config.reduction)
        else:
            with torch.no_grad():
                above, below, x0 = self.predictions(teacher, detached, at, rng, step)
            loss_of = {"sds": sds_loss, "csd": csd_loss, "asd": asd_loss}[config.variant]
            value = loss_of(sample.x0, above, below, weight=weight, reduction=config.reduction)
        return LossTerms({config.variant: value}, metrics={"gap": gap(x0, sample.x0)})

    def predictions(
        self, teacher: Denoiser, sample: Sample, at: Noised, rng: Rng, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two noises whose difference is the direction, and the guided clean prediction."""
        config, cond = self.config, sample.cond
        if config.variant == "csd":
            x0, eps = with_and_without(teacher, sample, at)
            return *eps, guide(*x0, config.guidance_scale)
        clean = Guided(teacher, config.guidance_scale).clean(at.x_t, at.t, cond)
        if config.variant == "sds":
            return clean.eps, at.eps, clean.x0
        process = teacher.process
        low, _ = config.time.bounds(step)
        floor = float(process.unit_to_time(torch.tensor(low, dtype=torch.float64)))
        share = rng.uniform("asd")
        later = process.round(asd_time(at.t, floor, share.to(at.t), config.asd_ratio).clamp_max(process.t_max))
        noisier = noised_at(process, sample, later, at.eps)
        return clean.eps, teacher.eps(noisier.x_t, noisier.t, cond), clean.x0

    def clean_target(self, teacher: Denoiser, sample: Sample, at: Noised) -> Tensor:
        """Return the guided clean prediction, rescaled if so configured."""
        config = self.config
        if config.rescale == 0:
            return Guided(teacher, config.guidance_scale).x0(at.x_t, at.t, sample.cond)
        x0, _ = with_and_without(teacher, sample, at)
        return rescale_groups(guide(*x0, config.guidance_scale), x0[0], config.rescale, config.views)


Pair = tuple[Tensor, Tensor]


def with_and_without(teacher: Denoiser, sample: Sample, at: Noised) -> tuple[Pair, Pair]:
    """Return clean samples and noises predicted with and without the condition, in one doubled batch."""
    x_t, t, cond = (
        torch.cat([at.x_t, at.x_t]),
        torch.cat([at.t, at.t]),
        concat([sample.cond, teacher.null(sample.cond)]),
    )
    clean = teacher.clean(x_t, t, cond)
    (x0, x0_uncond), (eps, eps_uncond) = clean.x0.chunk(2), clean.eps.chunk(2)
    return (x0, x0_uncond), (eps, eps_uncond)
