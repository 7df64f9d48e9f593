"""A consistency student judged against its own targets, on a frozen teacher's features (DCM, PCM).

What is real here is not data but where the target's jump leads; where a jump is already right there is nothing to tell
apart. Both are taken under the same noise to a level of the range the student works in, and the teacher is run on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.losses.adversarial import discriminator_loss, generator_loss
from fewstep.core.networks.discriminator import FeatureDiscriminator
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, LossTerms
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, precise, sample_mean
from fewstep.video.recipes.cut import CutGrid


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How jumps are judged beside their distance from the target; defaults of DCM's code.

    ``adversarial_weight``: of the saturating hinge loss of heads on the teacher's features (5 times 0.1);
    ``feature_weight``: of the squared distance of the features themselves; 0 for neither. ``renoise``: how samples get
    to the level they are judged at, ``exact``, or by DCM's ``linear`` formula, whose variance is too small.
    """

    adversarial_weight: float = 0.5
    feature_weight: float = 0.1
    renoise: Literal["exact", "linear"] = "exact"

    def __post_init__(self) -> None:
        for name in ("adversarial_weight", "feature_weight"):
            check(getattr(self, name) >= 0, f"judge.{name} must not be negative, got {getattr(self, name):g}")

    @property
    def used(self) -> bool:
        """Whether the teacher's features take part."""
        return self.adversarial_weight > 0 or self.feature_weight > 0


class Ends(NamedTuple):
    """Where a jump and its target's lead "b c f h w", and the time they are at "b"."""

    made: Tensor
    target: Tensor
    end: Tensor


class TargetJudge:
    """Judges jumps of the lower side of a cut trajectory."""

    def __init__(self, config: JudgeConfig, actors: Actors, grid: CutGrid) -> None:
        found = actors.roles["discriminator"]
        check(
            isinstance(found, FeatureDiscriminator),
            "jumps are judged by the teacher's features: set roles.discriminator.source to features, or "
            "recipe.judge.adversarial_weight and feature_weight to 0",
        )
        assert isinstance(found, FeatureDiscriminator)  # for mypy
        self.config, self.actors, self.grid, self.heads = config, actors, grid, found

    def terms(self, ends: Ends, cond: Cond, rng: Rng) -> dict[str, Tensor]:
        """Return the adversarial loss of the jump and the distance of its features from the target's."""
        fake, real, level = self.renoised(ends, cond, rng)
        found, terms = self.heads.features(fake, level, cond), dict[str, Tensor]()
        if self.config.adversarial_weight > 0:
            logits = self.heads.feature_logits(found, level, cond)
            terms["adversarial"] = torch.stack([generator_loss(each, "hinge_margin") for each in logits]).mean(0)
        if self.config.feature_weight > 0:
            with torch.no_grad():
                wanted = self.heads.features(real, level, cond)
            distances = [feature_distance(a, b, len(level)) for a, b in zip(found, wanted, strict=True)]
            terms["features"] = torch.stack(distances).mean(0)
        return terms

    def discriminator_terms(self, ends: Ends, cond: Cond, rng: Rng) -> LossTerms:
        """Return the loss of the heads, on detached samples."""
        fake, real, level = self.renoised(ends, cond, rng)
        on_real, on_fake = (self.heads.head_logits(each.detach(), level, cond) for each in (real, fake))
        losses = [discriminator_loss(r, f, "hinge_margin") for r, f in zip(on_real, on_fake, strict=True)]
        means = {
            name: torch.stack([sample_mean(each) for each in logits]).mean(0).detach()
            for name, logits in (("real_logit", on_real), ("fake_logit", on_fake))
        }
        return LossTerms({"discriminator": torch.stack(losses).mean(0)}, metrics=means)

    def renoised(self, ends: Ends, cond: Cond, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Return jump and target under one noise, and the level "b" they are at."""
        process, dtype = self.heads.trunk.process, self.actors.dtype
        level = self.grid.draw_level(rng, "adversarial/level").to(ends.end.device)
        eps = rng.normal("adversarial/eps", self.actors.shape, dtype)
        add = process.renoise if self.config.renoise == "exact" else partial(linear_renoise, process)
        fake, real = (add(x, eps, ends.end, level, cond.get("anchor")).to(dtype) for x in (ends.made, ends.target))
        return fake, real, level


def feature_distance(made: Tensor, target: Tensor, size: int) -> Float[Tensor, " b"]:
    """Return the mean square distance of features of ``size`` samples, whose frames may be folded into the batch."""
    return (precise(made) - precise(target)).square().reshape(size, -1).mean(1)


def linear_renoise(
    process: Process,
    x_s: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    s: Float[Tensor, " b"],
    t: Float[Tensor, " b"],
    anchor: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """Return ``r x_s + (sigma_t - r sigma_s) eps`` with ``r = alpha_t/alpha_s``: as if ``eps`` were x_s's own noise.

    For flows ``((1 - t) x_s + (t - s) eps)/(1 - s)``, DCM's code. With fresh noise the variance comes out short.
    """
    cs, ct = process.coefficients(s), process.coefficients(t)
    ratio = ct.alpha / cs.alpha
    core = expand_to(ratio, x_s) * process.offset(x_s, s, anchor) + expand_to(ct.sigma - ratio * cs.sigma, x_s) * eps
    return process.offset(core, t, anchor, sign=1.0)


__all__ = ["Ends", "JudgeConfig", "TargetJudge", "feature_distance", "linear_renoise"]
