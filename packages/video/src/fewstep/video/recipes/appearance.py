"""The appearance half of motion-consistency distillation: frames against pictures (MCM, arXiv 2406.06890)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.losses.adversarial import Unpaired, discriminator_loss, generator_loss, interpolate
from fewstep.core.recipe import Actors, LossTerms
from fewstep.core.recipes.running import RunningMeans
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean
from fewstep.video.appearance.augment import DRAWS, augment_frames, crop_frames
from fewstep.video.appearance.discriminator import (
    FrameDiscriminator,
    FrameDiscriminatorConfig,
    conv_discriminator,
    feature_penalty,
)
from fewstep.video.appearance.frozen import frozen_backbone
from fewstep.video.appearance.picks import distinct_frames, pick_frames, segment_frames

IMAGES, CAPTION, IMAGE_CAPTION = "images", "caption", "image_caption"


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig:
    """How frames are judged.

    ``weight``: of the student's adversarial loss beside the motion loss; 0: no discriminator. ``start``: the step from
    which the student feels it. ``real``: ``images`` of the image set, or frames of the training clips themselves
    (``clip``: distillation alone). ``frames``: of each clip that are looked at. ``loss``: MCM's clamped loss is
    ``hinge`` less a constant. ``penalty_weight``: of the gradient penalty; ``penalty_growth``: what it is multiplied by
    whenever the penalty is ``penalty_limit`` or more and ``penalty_patience`` steps have passed since the last time
    (1: it stays; MCM: 5). ``augment``: frames and images before they
    are seen. ``backbone``: the network whose features are judged, a small one that learns (``conv``), or a frozen
    image network at ``backbone_path``, a folder or a hub id: DINOv2, as in MCM, or CLIP; ``backbone_blocks``: after
    which of its blocks (none named: four, evenly spread). ``crop_share``: of the steps at which frames and images
    larger than a frozen network's input are cropped to it instead of shrunk. ``discriminator``: heads, and the small
    network.
    """

    weight: float = 1.0
    start: int = 0
    real: Literal["images", "clip"] = "images"
    frames: int = 2
    loss: Unpaired = "hinge"
    penalty_weight: float = 1e-5
    penalty_growth: float = 1.0
    penalty_limit: float = 100.0
    penalty_patience: int = 500
    augment: bool = True
    backbone: Literal["conv", "dinov2", "clip"] = "conv"
    backbone_path: str = ""
    backbone_blocks: tuple[int, ...] = ()
    crop_share: float = 0.5
    discriminator: FrameDiscriminatorConfig = FrameDiscriminatorConfig()

    def __post_init__(self) -> None:
        check(self.weight >= 0, f"appearance.weight must not be negative, got {self.weight:g}")
        check(self.frames >= 1, f"appearance.frames must be at least 1, got {self.frames}")
        check(self.penalty_weight >= 0, f"appearance.penalty_weight must not be negative, got {self.penalty_weight:g}")
        check(self.penalty_growth >= 1, f"appearance.penalty_growth must be at least 1, got {self.penalty_growth:g}")
        check(self.penalty_limit > 0, f"appearance.penalty_limit must be positive, got {self.penalty_limit:g}")
        check(self.penalty_patience >= 1, f"appearance.penalty_patience starts at 1, got {self.penalty_patience}")
        check(0 <= self.crop_share <= 1, f"appearance.crop_share must be in [0, 1], got {self.crop_share:g}")
        check(
            self.backbone == "conv" or bool(self.backbone_path),
            f"appearance.backbone_path is missing: name the folder or the hub id of the {self.backbone} model",
        )
        check(
            self.backbone != "conv" or not (self.backbone_path or self.backbone_blocks),
            "appearance.backbone_path and backbone_blocks are of frozen networks: set appearance.backbone, too",
        )


def frame_discriminator(config: AppearanceConfig, seed: int, *, shapes: bool = False) -> FrameDiscriminator:
    """Return the discriminator of a config; UserError for a frozen network that cannot be read.

    ``shapes``: a frozen network's weights are neither read nor downloaded.
    """
    if config.backbone == "conv":
        return conv_discriminator(config.discriminator, seed)
    backbone = frozen_backbone(config.backbone, config.backbone_path, config.backbone_blocks, shapes=shapes)
    return FrameDiscriminator(backbone, config.discriminator, frozen=True, seed=seed)


class _Seen(NamedTuple):
    """Frames "n c h w" as the discriminator sees them, and each one's caption "n e" (None: it is told none)."""

    frames: Tensor
    caption: Tensor | None


class PenaltyAdaptation:
    """The weight of the gradient penalty, which grows while the discriminator is too steep, as in MCM's code.

    Judged is a step's mean over the global batch. ``since``: steps since the weight last grew.
    """

    def __init__(self, config: AppearanceConfig) -> None:
        self.config, self.weight, self.since = config, config.penalty_weight, 0
        self._mean = RunningMeans(torch.zeros(1), 0.0)

    def see(self, penalty: Float[Tensor, " b"]) -> None:
        """Take note of a micro-batch's penalties."""
        self._mean.add(penalty, torch.zeros(len(penalty), dtype=torch.long))

    def after_step(self, total: Callable[[Tensor], Tensor] | None) -> None:
        """Let the weight grow where it is time; ``total`` sums over processes."""
        self._mean.finish(total)
        self.since += 1
        if float(self._mean.value) >= self.config.penalty_limit and self.since >= self.config.penalty_patience:
            self.weight, self.since = self.weight * self.config.penalty_growth, 0

    def state(self) -> dict[str, Tensor]:
        """Return the weight and how long it has been so."""
        return {"penalty": torch.tensor([self.weight, float(self.since)], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave; UserError when it is missing."""
        found = state.get("penalty")
        if found is None or found.shape != (2,):
            raise UserError("the checkpoint does not hold the gradient penalty's weight: another penalty_growth?")
        self.weight, self.since = float(found[0]), int(found[1])
        self._mean = RunningMeans(torch.zeros(1), 0.0)


def network_condition(cond: Cond) -> Cond:
    """Return a condition without what is for the discriminator only."""
    return {name: value for name, value in cond.items() if name not in (IMAGES, CAPTION, IMAGE_CAPTION)}


class Appearance:
    """Judges single frames of clips.

    Of a batch's condition it reads ``images`` "b n c h w" in [-1, 1] and, for discriminators that are told captions,
    their embeddings: ``caption`` "b e" of the clips, ``image_caption`` "b n e" (or "b e") of the images.
    ``actors.roles`` may have a ``decoder``, a module from single latent frames "n c h w" to pixels in [-1, 1], through
    which gradients flow.
    """

    def __init__(self, config: AppearanceConfig, actors: Actors) -> None:
        found = actors.roles["discriminator"]
        if not isinstance(found, FrameDiscriminator):
            raise UserError(f"role 'discriminator' must be a FrameDiscriminator, got {type(found).__name__}")
        self.config, self.actors, self.discriminator = config, actors, found
        self.adaptation = PenaltyAdaptation(config) if config.penalty_weight > 0 and config.penalty_growth > 1 else None

    def student_loss(self, clip: Float[Tensor, "b c f h w"], cond: Cond, rng: Rng) -> Float[Tensor, " b"]:
        """Return the adversarial loss of some frames of each clip."""
        fake = self.generated(clip, cond, rng)
        return generator_loss(self.logits(fake, len(clip)), self.config.loss)

    def discriminator_terms(
        self, clip: Float[Tensor, "b c f h w"], x0: Float[Tensor, "b c f h w"] | None, cond: Cond, rng: Rng
    ) -> LossTerms:
        """Return the discriminator's loss on a detached clip, the gradient penalty, and how often it is right."""
        config, size = self.config, len(clip)
        with torch.no_grad():
            fake = self.generated(clip, cond, rng)
            real = self.real(x0, cond, rng)
        on_real, on_fake = self.logits(real, size), self.logits(fake, size)
        terms = {"discriminator": discriminator_loss(on_real, on_fake, config.loss)}
        if config.penalty_weight > 0:
            terms["penalty"] = self.penalty(real, fake, size, rng)
            if self.adaptation is not None:
                self.adaptation.see(terms["penalty"].detach())
        right = (on_real > 0).double().mean(1) / 2 + (on_fake < 0).double().mean(1) / 2
        metrics = {"real_logit": sample_mean(on_real), "fake_logit": sample_mean(on_fake), "accuracy": right}
        metrics["margin"] = metrics["real_logit"] - metrics["fake_logit"]
        weights = {"penalty": config.penalty_weight if self.adaptation is None else self.adaptation.weight}
        return LossTerms(terms, weights, {name: value.detach() for name, value in metrics.items()})

    def logits(self, seen: _Seen, size: int) -> Float[Tensor, "b p"]:
        """Return the logits of all frames of each of ``size`` samples."""
        found: Tensor = self.discriminator(seen.frames, seen.caption)
        return found.reshape(size, -1)

    def generated(self, clip: Float[Tensor, "b c f h w"], cond: Cond, rng: Rng) -> _Seen:
        """Return distinct random frames of a clip, decoded."""
        picks = distinct_frames(rng.uniform("frames", (clip.shape[2],)), self.config.frames)
        return self.seen(self.decoded(pick_frames(clip, picks.to(clip.device))), cond.get(CAPTION), "fake", rng)

    def real(self, x0: Float[Tensor, "b c f h w"] | None, cond: Cond, rng: Rng) -> _Seen:
        """Return images of the image set, or frames of the training clips; UserError where there are none."""
        if self.config.real == "images":
            images = cond.get(IMAGES)
            if images is None:
                raise UserError(
                    "recipe.appearance.real is images and the batch has none: give the domain an image set, or set "
                    "it to clip"
                )
            return self.seen(images.flatten(0, 1), cond.get(IMAGE_CAPTION), "real", rng)
        if x0 is None:
            raise UserError("recipe.appearance.real is clip and the data has no clips: give clips, or an image set")
        picks = segment_frames(rng.uniform("segments", (self.config.frames,)), x0.shape[2])
        return self.seen(self.decoded(pick_frames(x0, picks.to(x0.device))), cond.get(CAPTION), "real", rng)

    def decoded(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k v u"]:
        """Return the pixels of single frames: the frames themselves where the domain has no decoder."""
        decoder = self.actors.roles.get("decoder")
        found: Tensor = latents if decoder is None else decoder(latents)
        return found

    def seen(self, frames: Tensor, caption: Tensor | None, stream: str, rng: Rng) -> _Seen:
        """Return frames augmented, each with its clip's caption."""
        each = len(frames) // len(rng.ids)
        if self.config.augment:
            frames = augment_frames(frames, rng.uniform(f"augment/{stream}", (each, DRAWS)).flatten(0, 1))
        side = self.discriminator.side
        if side and rng.shared_uniform("crop") < self.config.crop_share:  # frames and images alike
            frames = crop_frames(frames, side, (rng.shared_uniform("crop/down"), rng.shared_uniform("crop/across")))
        told = self.config.discriminator.caption > 0
        if not told or caption is None:
            return _Seen(frames, None)
        return _Seen(frames, caption.flatten(0, 1) if caption.ndim == 3 else caption.repeat_interleave(each, 0))

    def penalty(self, real: _Seen, fake: _Seen, size: int, rng: Rng) -> Float[Tensor, " b"]:
        """Return the gradient penalty halfway between real and generated frames, as many as there are of both."""
        each = min(len(real.frames), len(fake.frames)) // size
        ours, theirs = (_first(seen.frames, size, each) for seen in (real, fake))
        check(
            ours.shape == theirs.shape,
            f"images are {list(ours.shape[1:])} and decoded frames {list(theirs.shape[1:])}: the gradient penalty "
            "mixes them: prepare images of the frames' size",
        )
        u = rng.uniform("penalty", (each,)).flatten()
        with torch.no_grad():
            features = self.discriminator.features(interpolate(ours, theirs, u))
        features = [feature.detach().requires_grad_() for feature in features]
        caption = None if real.caption is None else _first(real.caption, size, each)
        logits = self.discriminator.head_logits(features, caption)
        return sample_mean(feature_penalty(logits, features).reshape(size, each))


def _first(x: Tensor, size: int, each: int) -> Tensor:
    """The first ``each`` of the rows that belong to each of ``size`` samples."""
    return x.reshape(size, -1, *x.shape[1:])[:, :each].flatten(0, 1)
