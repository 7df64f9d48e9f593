"""YONOS-SR's second stage (arXiv 2401.17258): the decoder learns to decode what a frozen one-step student makes.

The student's latents are not the encoder's: they have artefacts of their own, which a decoder can learn to see through.
The network and the encoder stay; each update decodes samples from fresh noise, so that the decoder serves any noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.losses.adversarial import discriminator_loss, generator_loss
from fewstep.core.losses.distances import l1, l2
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.restoration.losses import detail_loss
from fewstep.restoration.models.patches import PatchConfig, PatchDiscriminator


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Settings of the decoder's tuning; the paper's coefficients are not known.

    ``l1_weight``: of the mean absolute difference of pixels in [-1, 1]. ``detail_weight``: of that of ``levels``
    octaves (:func:`fewstep.restoration.losses.detail_loss`), in the place of a learned perceptual distance, whose
    weights do not come with this package. ``adversarial_weight``: of a hinge loss against a discriminator of patches,
    which trains from step ``adversarial_start`` on and is felt from then on (0: none).
    """

    l1_weight: float = 1.0
    detail_weight: float = 1.0
    levels: int = 4
    adversarial_weight: float = 0.1
    adversarial_start: int = 1000
    discriminator: PatchConfig = PatchConfig()

    def __post_init__(self) -> None:
        for name in ("l1_weight", "detail_weight", "adversarial_weight"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")
        check(self.l1_weight + self.detail_weight > 0, "l1_weight and detail_weight: one of them must be positive")
        check(self.levels >= 1, f"levels must be at least 1, got {self.levels}")
        check(self.adversarial_start >= 0, f"adversarial_start must not be negative, got {self.adversarial_start}")


class Decoder(Recipe):
    """Tunes a decoder on pictures ``batch.x0`` "b 3 h w" in [-1, 1] and what ``generate`` makes of their condition."""

    name: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "2401.17258"
    summary: ClassVar[str] = "YONOS-SR's second stage: the decoder tuned on a frozen one-step student's latents"
    config_type: ClassVar[type] = DecoderConfig
    config: DecoderConfig

    def __init__(self, config: DecoderConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        if actors.generate is None:
            raise UserError("recipe 'decoder' tunes an autoencoder's decoder: set domain.student to decoder")

    @classmethod
    def role_specs(cls, config: DecoderConfig) -> tuple[RoleSpec, ...]:
        """Return the decoder, and the discriminator where there is one."""
        decoder = RoleSpec("student", init="fresh", ema=True)
        if config.adversarial_weight == 0:
            return (decoder,)
        build = partial(PatchDiscriminator, config.discriminator)
        return (decoder, RoleSpec("discriminator", kind="module", build=build))

    @classmethod
    def phases(cls, config: DecoderConfig) -> tuple[Phase, ...]:
        """Return the decoder's phase, before it the discriminator's from ``adversarial_start`` on."""
        decoder = Phase("student", ("student",))
        if config.adversarial_weight == 0:
            return (decoder,)
        return (Phase("discriminator", ("discriminator",), start=config.adversarial_start), decoder)

    @classmethod
    def plan(cls, config: DecoderConfig, process: Process, num_steps: int) -> StepPlan:
        """Return a single evaluation; a decoder has no noise levels."""
        return StepPlan((process.t_max,))

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the phase's loss on freshly made pictures."""
        assert self.actors.generate is not None
        truth = batch.clean_samples(self.name)
        with torch.set_grad_enabled(phase == "student"):
            made, _ = self.actors.generate(batch, rng)
        check(
            made.shape == truth.shape,
            f"recipe 'decoder' compares pictures, got {list(made.shape)} and {list(truth.shape)} as x0",
        )
        if phase == "discriminator":
            return self.discriminator_loss(truth, made)
        return self.decoder_loss(truth, made, step)

    def decoder_loss(self, truth: Float[Tensor, "b 3 h w"], made: Float[Tensor, "b 3 h w"], step: int) -> LossTerms:
        """Return the losses that have a weight; PSNR is logged beside them, as a decoder can learn to invent."""
        config = self.config
        weights = {"l1": config.l1_weight, "detail": config.detail_weight, "adversarial": config.adversarial_weight}
        terms: dict[str, Tensor] = {}
        if config.l1_weight > 0:
            terms["l1"] = l1(made, truth)
        if config.detail_weight > 0:
            terms["detail"] = detail_loss(made, truth, config.levels)
        if config.adversarial_weight > 0 and step >= config.adversarial_start:
            terms["adversarial"] = generator_loss(self.logits(made), "hinge")
        psnr = -10 * torch.log10(l2(made, truth).detach().clamp_min(1e-12) / 4)
        return LossTerms(terms, {name: weights[name] for name in terms}, {"psnr": psnr})

    def discriminator_loss(self, truth: Float[Tensor, "b 3 h w"], made: Float[Tensor, "b 3 h w"]) -> LossTerms:
        """Return the hinge loss on true and made pictures."""
        real, fake = self.logits(truth), self.logits(made)
        accuracy = ((real > 0).float().mean(1) + (fake < 0).float().mean(1)) / 2
        return LossTerms({"discriminator": discriminator_loss(real, fake, "hinge")}, metrics={"accuracy": accuracy})

    def logits(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """Return the discriminator's logits of every patch."""
        found: Tensor = self.actors.module("discriminator")(pixels)
        return found
