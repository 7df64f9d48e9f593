"""Score identity distillation (SiD, arXiv 2404.04057), adversarial (SiDA, 2410.14919) and guided (SiD-LSG, 2406.01561).

A model-based Fisher divergence between student and teacher under noise, its gradient taken through both networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.core.losses.monitors import gap
from fewstep.core.losses.score_family import sid_loss
from fewstep.core.losses.surrogate import self_normaliser
from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.recipes.adversarial import AdversarialConfig, AdversarialGeneratorConfig, AdversarialRecipe
from fewstep.core.recipes.diff_instruct import LOGNORMAL
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class SiDConfig(AdversarialGeneratorConfig):
    """Settings of SiD; defaults of its EDM recipes.

    ``alpha``: 1.2, or 1 on AFHQ, with guidance and in SiDA; 0.5 is unbiased for an exact fake score, more makes up for
    one that lags. ``normalise``: divide by ``mean |x0 - x0_teacher|`` per sample. The student starts at the middle of
    EDM's clock, noise level 2.5 (Stable Diffusion: ``student_start`` 0.626) and is judged up to level 24. SiDA is
    ``adversarial.weight`` 1e-4, which is its 0.01 beside 100 once both are means over a sample's elements, with a
    discriminator of ``head: mean``, and ``fake_warmup`` and ``adversarial.start``. Long-short guidance is
    ``guidance_scale``, ``fake_guidance_scale`` and ``fake.guidance_scale`` alike (1.5 to 4.5), ``fake.label_dropout``
    0.1.
    """

    alpha: float = 1.2
    normalise: bool = True
    student_start: float = 0.5
    time: TimeConfig = TimeConfig(low=0.0, high=0.8)
    fake: FakeScoreConfig = FakeScoreConfig(time=LOGNORMAL)
    adversarial: AdversarialConfig = AdversarialConfig(time=LOGNORMAL)


class SiD(AdversarialRecipe):
    """Descends a Fisher divergence; needs gradients through both networks, and data only for SiDA."""

    name: ClassVar[str] = "sid"
    paper: ClassVar[str] = "2404.04057"
    summary: ClassVar[str] = "score identity distillation (SiD, SiDA, SiD-LSG): 1 step, data-free without its GAN"
    config_type: ClassVar[type] = SiDConfig
    config: SiDConfig

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the SiD loss, whose value is negative in expectation for alpha above 1, and the adversarial one."""
        config = self.config
        at = self.noised(sample, config.time, rng, step, through=True)
        teacher, fake = self.clean_pair(sample, at, rng, through=True)
        value = sid_loss(sample.x0, teacher, fake, alpha=config.alpha, normalise=config.normalise, reduction="mean")
        terms = LossTerms({"sid": value}, metrics={"gap": gap(teacher, fake)})
        scale = 1 / self_normaliser(sample.x0, teacher, floor=1e-5) if config.normalise else None
        return self.with_adversary(terms, sample, rng, step, scale)
