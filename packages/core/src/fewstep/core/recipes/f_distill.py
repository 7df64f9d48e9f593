"""f-distill (arXiv 2502.15681): DMD2 whose gradient is weighted by an f-divergence of the density ratio.

With ``h(r) = r^2 f''(r)``, r the ratio of teacher's to student's density at ``x_t``, the expected gradient becomes that
of ``D_f(q_t || p_t)`` instead of the mode-seeking KL(p_t || q_t). The discriminator gives r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.divergence import DivergenceName, density_ratio, find_divergence
from fewstep.core.losses.integral import distribution_matching_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.recipe import Actors, LossTerms
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.rollout import Noised, Sample
from fewstep.core.recipes.running import RunningMeans


@dataclass(frozen=True, kw_only=True)
class FDistillConfig(DMD2Config):
    """Settings of f-distill beside DMD2's.

    ``divergence``: ``jensen_shannon`` is the paper's default. ``ratio_start``: the step from which the ratio counts;
    before, the method is DMD2. ``ratio_limit``: bound of |log r| (code: 10). ``ratio_bins``: r is divided by its
    running mean in so many bins of the clock (code: 10; 0: not at all), which takes the discriminator's own drift out
    of it; then clamped to [``ratio_low``, ``ratio_high``] (code: 0.1 and 20). ``normalise_weight``: divide h by its
    running mean. Both means are over the student's updates before this one and move by ``1 - mean_decay`` in each
    (code: 0 or 0.5 for r, the batch's own for h).
    """

    adversarial: AdversarialConfig = AdversarialConfig(weight=3e-3)
    divergence: DivergenceName = "jensen_shannon"
    ratio_start: int = 0
    ratio_limit: float = 10.0
    ratio_bins: int = 10
    ratio_low: float = 0.1
    ratio_high: float = 20.0
    normalise_weight: bool = True
    mean_decay: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.ratio_start >= 0, f"ratio_start must not be negative, got {self.ratio_start}")
        check(self.ratio_limit > 0, f"ratio_limit must be positive, got {self.ratio_limit:g}")
        check(self.ratio_bins >= 0, f"ratio_bins must not be negative, got {self.ratio_bins}")
        check(
            0 < self.ratio_low < 1 < self.ratio_high,
            f"ratio_low and ratio_high must lie on two sides of 1, got {self.ratio_low:g} and {self.ratio_high:g}",
        )


class FDistill(DMD2):
    """Distribution matching under any f-divergence; needs data for the density ratio."""

    name: ClassVar[str] = "f-distill"
    paper: ClassVar[str] = "2502.15681"
    summary: ClassVar[str] = "DMD2 under Jensen-Shannon, forward KL or any f-divergence, 1-8 steps, needs data"
    config_type: ClassVar[type] = FDistillConfig
    config: FDistillConfig
    needs_ratio = True

    def __init__(self, config: FDistillConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.divergence = find_divergence(config.divergence)
        one = torch.ones(1, dtype=torch.float64)  # what an untrained discriminator says of every sample
        self.mean_ratio = RunningMeans(one.repeat(max(config.ratio_bins, 1)), config.mean_decay)
        self.mean_weight = RunningMeans(self.divergence.h(one), config.mean_decay)

    def matching(self, sample: Sample, at: Noised, pair: tuple[Tensor, Tensor], step: int) -> LossTerms:
        """Return the weighted matching surrogate."""
        if step < self.config.ratio_start:
            return super().matching(sample, at, pair, step)
        ratio = self.ratio(sample, at)
        weight, difference = self.divergence.h(ratio), gap(*pair)
        metrics = {"gap": difference, "ratio": ratio, "divergence": weight * difference}
        if self.config.normalise_weight:
            index = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
            self.mean_weight.add(weight, index)
            weight = weight / self.mean_weight.of(index)
        value = distribution_matching_loss(sample.x0, *pair, weight=weight, normalise=self.config.normalise)
        return LossTerms({"matching": value}, metrics=metrics)

    @torch.no_grad()
    def ratio(self, sample: Sample, at: Noised) -> Float[Tensor, " b"]:
        """Return the density ratio at the samples' own noise level, over its mean there, clamped."""
        config = self.config
        ratio = density_ratio(self.discriminator().log_ratio(at.x_t, at.t, sample.cond), config.ratio_limit)
        if config.ratio_bins > 0:
            unit = self.process.time_to_unit(at.t)
            index = (unit * config.ratio_bins).long().clamp(0, config.ratio_bins - 1)
            self.mean_ratio.add(ratio, index)
            ratio = ratio / self.mean_ratio.of(index).to(ratio)
        return ratio.clamp(config.ratio_low, config.ratio_high)

    def after_step(self, step: int) -> None:
        """Move the running means of ratio and weight."""
        for means in (self.mean_ratio, self.mean_weight):
            means.finish(self.actors.total)

    def state(self) -> dict[str, Tensor]:
        """Return the running means."""
        return {"mean_ratio": self.mean_ratio.state(), "mean_weight": self.mean_weight.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them; UserError when one is missing or of another number of bins."""
        self.mean_ratio.load("mean_ratio", state)
        self.mean_weight.load("mean_weight", state)
