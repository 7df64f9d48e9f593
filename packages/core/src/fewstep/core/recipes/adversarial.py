"""The adversarial half of some generator recipes: a discriminator of noised real and generated samples.

It is trained in the fake score's phase, on real and generated samples under the same noise, and gives the student a
loss of its own. Where it reads features of the fake score it trains that network, too, as in DMD2 and SiDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.losses.adversarial import discriminator_loss, generator_loss
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.recipe import Batch, LossTerms, Phase, RoleSpec
from fewstep.core.recipes.generator import GeneratorConfig, GeneratorRecipe, fake_score_phases, fake_score_roles
from fewstep.core.recipes.rollout import Sample, noised_at
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """How the discriminator takes part.

    ``weight``: of the student's adversarial loss beside its main one (0: none, and no discriminator unless the recipe
    needs its density ratio). ``discriminator_weight``: beside the fake score's loss (DMD2's code: 1e-2). ``features``:
    whose features it reads, the ``fake_score``'s, which then learns from it (DMD2's code, SiDA), or the frozen
    ``teacher``'s (LADD). ``time``: the law of noise levels it is shown. ``start``: the step from which the student
    feels it.
    """

    weight: float = 0.0
    discriminator_weight: float = 1e-2
    features: Literal["fake_score", "teacher"] = "fake_score"
    time: TimeConfig = TimeConfig(low=0.0, high=1.0)
    start: int = 0

    def __post_init__(self) -> None:
        check(self.weight >= 0, f"adversarial.weight must not be negative, got {self.weight:g}")
        check(self.discriminator_weight > 0, "adversarial.discriminator_weight must be positive")


@dataclass(frozen=True, kw_only=True)
class AdversarialGeneratorConfig(GeneratorConfig):
    """Settings of generator recipes that may have a discriminator: see :class:`AdversarialConfig`."""

    adversarial: AdversarialConfig = AdversarialConfig()


class AdversarialRecipe(GeneratorRecipe):
    """A generator recipe with a discriminator where the config or the method (``needs_ratio``) wants one."""

    config: AdversarialGeneratorConfig
    needs_ratio: bool = False

    @classmethod
    def has_discriminator(cls, config: AdversarialGeneratorConfig) -> bool:
        """Return whether there is a discriminator."""
        return cls.needs_ratio or config.adversarial.weight > 0

    @classmethod
    def role_specs(cls, config: AdversarialGeneratorConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher, the fake score, and a discriminator where there is one."""
        roles = fake_score_roles()
        if not cls.has_discriminator(config):
            return roles
        return (*roles, RoleSpec("discriminator", kind="discriminator", features_of=config.adversarial.features))

    @classmethod
    def phases(cls, config: AdversarialGeneratorConfig) -> tuple[Phase, ...]:
        """Return the fake score's phase, which trains the discriminator as well, and the student's."""
        also = tuple(spec.name for spec in cls.role_specs(config) if spec.kind == "discriminator")
        return fake_score_phases(config.fake_updates, config.update_mode, also, warmup=config.fake_warmup)

    def discriminator(self) -> Discriminator:
        """Return the discriminator; UserError when the role is something else."""
        role = self.actors.module("discriminator")
        if not isinstance(role, Discriminator):
            raise UserError(f"role 'discriminator' of recipe '{self.name}' must be one, got {type(role).__name__}")
        return role

    def fake_score_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the fake score's denoising loss and the discriminator's."""
        terms = super().fake_score_loss(sample, batch, rng, step)
        if not self.has_discriminator(self.config):
            return terms
        real, fake = self.logits(sample, batch, rng, step)
        accuracy = ((real.mean(1) > 0).float() + (fake.mean(1) < 0).float()) / 2
        return LossTerms(
            {**terms.terms, "discriminator": discriminator_loss(real, fake)},
            weights={"discriminator": self.config.adversarial.discriminator_weight},
            metrics={"discriminator_accuracy": accuracy},
        )

    def logits(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> tuple[Tensor, Tensor]:
        """Return the logits "b p" of data and of the sample at the same noise; UserError without data."""
        data = Sample(batch.clean_samples(self.name), batch.cond)
        t = self.config.adversarial.time.draw(self.process, rng, "adversarial/t", step)
        eps = rng.normal_like("adversarial/eps", sample.x0)
        real, fake = (noised_at(self.process, each, t, eps) for each in (data, sample))
        judge = self.discriminator()
        return judge.patch_logits(real.x_t, t, data.cond), judge.patch_logits(fake.x_t, t, sample.cond)

    def adversarial_loss(self, sample: Sample, rng: Rng, step: int) -> Float[Tensor, " b"]:
        """Return the student's non-saturating loss against the discriminator, attached to the sample."""
        t = self.config.adversarial.time.draw(self.process, rng, "adversarial/t", step)
        at = noised_at(self.process, sample, t, rng.normal_like("adversarial/eps", sample.x0))
        return generator_loss(self.discriminator().patch_logits(at.x_t, t, sample.cond))

    def with_adversary(
        self, terms: LossTerms, sample: Sample, rng: Rng, step: int, scale: Float[Tensor, " b"] | None = None
    ) -> LossTerms:
        """Return the student's terms with the adversarial one, times ``scale``, once it has started."""
        config = self.config.adversarial
        if config.weight == 0 or step < config.start:
            return terms
        value = self.adversarial_loss(sample, rng, step)
        value = value if scale is None else value * scale.detach()
        weights = {**terms.weights, "adversarial": config.weight}
        return LossTerms({**terms.terms, "adversarial": value}, weights, terms.metrics)
