"""VSD (ProlificDreamer, arXiv 2305.16213) and its one-step form SwiftBrush (arXiv 2312.05239).

In the papers the fake score is a LoRA over the teacher itself: give ``roles.overrides.fake_score: lora``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.core.losses.integral import SDSWeight, sds_weight, vsd_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig, GeneratorRecipe
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class VSDConfig(GeneratorConfig):
    """Settings of VSD; ``weight`` multiplies ``eps_teacher - eps_fake`` (both papers: sigma^2).

    SwiftBrush guides teacher and fake score alike, at 4.5, and therefore trains the fake score without its condition
    in a tenth of the batches; its critic minimises alpha^2 times the eps loss (``discounted_snr``). Its learning rates,
    1e-6 for the student and 1e-3 for the LoRA, are the method's two time scales. ProlificDreamer guides the teacher
    only, at 7.5, on the plain eps loss (``snr``).
    """

    weight: SDSWeight = "sigma2"
    fake: FakeScoreConfig = FakeScoreConfig(weighting="discounted_snr")


class VSD(GeneratorRecipe):
    """Moves samples along ``weight (eps_teacher - eps_fake)``; needs no data and no gradients through networks."""

    name: ClassVar[str] = "vsd"
    paper: ClassVar[str] = "2305.16213"
    summary: ClassVar[str] = "variational score distillation, SwiftBrush: data-free, fake score as LoRA, 1 step"
    config_type: ClassVar[type] = VSDConfig
    config: VSDConfig

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the surrogate of VSD."""
        at = self.noised(sample, self.config.time, rng, step)
        with torch.no_grad(), rng.network_noise("dropout"):
            teacher = self.teacher().clean(at.x_t, at.t, sample.cond)
        with torch.no_grad(), rng.network_noise("dropout"):
            fake = self.fake_score().clean(at.x_t, at.t, sample.cond)
        weight = sds_weight(self.config.weight, at.alpha, at.sigma)
        value = vsd_loss(sample.x0, teacher.eps, fake.eps, weight=weight, reduction="mean")
        return LossTerms({"vsd": value}, metrics={"gap": gap(teacher.x0, fake.x0)})
