"""Diff-Instruct (arXiv 2305.18455): KL(student || teacher) integrated over noise levels, the simplest of its kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.core.losses.integral import diff_instruct_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig, GeneratorRecipe
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

LOGNORMAL = TimeConfig(law="lognormal", mean=-1.2, std=1.2)


@dataclass(frozen=True, kw_only=True)
class DiffInstructConfig(GeneratorConfig):
    """Settings of Diff-Instruct; defaults of its code for EDM, where both laws of noise are EDM's log-normal one.

    The gradient ``x0_fake - x0_teacher`` grows like sigma^2: keep a law that rarely visits large noise. The code starts
    one-step students at noise level 1 (``student_start`` 0.4 of EDM's clock), its successors at 2.5 (0.5).
    """

    student_start: float = 0.5
    time: TimeConfig = LOGNORMAL
    fake: FakeScoreConfig = FakeScoreConfig(time=LOGNORMAL)


class DiffInstruct(GeneratorRecipe):
    """Moves samples along ``x0_fake - x0_teacher``; needs no data and no gradients through networks."""

    name: ClassVar[str] = "diff-instruct"
    paper: ClassVar[str] = "2305.18455"
    summary: ClassVar[str] = "integral KL with a fake score, data-free: the baseline of one-step distillation"
    config_type: ClassVar[type] = DiffInstructConfig
    config: DiffInstructConfig

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the surrogate of the integral KL."""
        at = self.noised(sample, self.config.time, rng, step)
        teacher, fake = self.clean_pair(sample, at, rng, through=False)
        value = diff_instruct_loss(sample.x0, teacher, fake, reduction="mean")
        return LossTerms({"diff_instruct": value}, metrics={"gap": gap(teacher, fake)})
