"""Uni-Instruct (arXiv 2505.20755): expanded f-divergences, with a density ratio from a discriminator.

The student descends ``int w E_p[h(r) |D|^2]``, D the difference of fake and teacher predictions, r the ratio of
teacher's to student's density, h given by the divergence. Gradients flow through both networks and through r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.divergence import DivergenceName, FDivergence, density_ratio, find_divergence
from fewstep.core.losses.monitors import gap
from fewstep.core.losses.score_family import uni_instruct_loss
from fewstep.core.recipe import Actors, Batch, LossTerms
from fewstep.core.recipes.adversarial import AdversarialConfig, AdversarialGeneratorConfig, AdversarialRecipe
from fewstep.core.recipes.diff_instruct import LOGNORMAL
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.rollout import Noised, Sample
from fewstep.core.recipes.running import RunningMeans
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

JUDGED = TimeConfig(low=0.0, high=0.8)


@dataclass(frozen=True, kw_only=True)
class UniInstructConfig(AdversarialGeneratorConfig):
    """Settings of Uni-Instruct; noise levels are those of SiD, on EDM's clock up to 24.

    ``divergence``: the paper's best is ``forward_kl``, whose path term vanishes. ``path_term``: keep
    ``(h - r h') |D|^2``; for ``reverse_kl`` without it the method is SIM with a squared distance. ``ratio_start``: the
    step from which the ratio counts; before, h is 1 and there is no path term (the code waits for 200 thousand images,
    800 batches of 256). ``reverse_kl`` with ``adversarial.weight`` 0 knows no ratio: it has no discriminator and needs
    no data. ``ratio_limit``: bound of |log r| (code: 10). ``normalise``: divide by ``mean |x0 -
    x0_teacher|`` per sample, as SiD does; without it the expected gradient is exact. ``normalise_weight``: divide by
    the running mean of h, which moves by ``1 - weight_decay`` per student update (optional in the code, there within
    the batch). ``adversarial``: the discriminator gives r, so it must know all levels of ``time``; its ``weight`` is
    SiDA's (0.01 beside 100, over pixels).
    """

    student_start: float = 0.5
    time: TimeConfig = JUDGED
    fake: FakeScoreConfig = FakeScoreConfig(time=LOGNORMAL)
    adversarial: AdversarialConfig = AdversarialConfig(weight=1e-4, time=JUDGED)
    divergence: DivergenceName = "forward_kl"
    path_term: bool = True
    ratio_start: int = 800
    ratio_limit: float = 10.0
    normalise: bool = True
    normalise_weight: bool = False
    weight_decay: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.ratio_start >= 0, f"ratio_start must not be negative, got {self.ratio_start}")
        check(self.ratio_limit > 0, f"ratio_limit must be positive, got {self.ratio_limit:g}")


class UniInstruct(AdversarialRecipe):
    """Descends an expanded f-divergence; needs gradients through all networks, and data for the density ratio."""

    name: ClassVar[str] = "uni-instruct"
    paper: ClassVar[str] = "2505.20755"
    summary: ClassVar[str] = "expanded f-divergences with a density ratio from a discriminator, 1 step, needs data"
    config_type: ClassVar[type] = UniInstructConfig
    config: UniInstructConfig

    @classmethod
    def has_discriminator(cls, config: AdversarialGeneratorConfig) -> bool:
        """Return whether there is a discriminator: h of the reverse KL divergence is 1 whatever the ratio."""
        assert isinstance(config, UniInstructConfig)
        return config.divergence != "reverse_kl" or super().has_discriminator(config)

    def __init__(self, config: UniInstructConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.divergence = find_divergence(config.divergence)
        self.mean_weight = RunningMeans(self.divergence.h(torch.ones(1, dtype=torch.float64)), config.weight_decay)

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the expanded divergence, and the adversarial loss where it has a weight."""
        config = self.config
        at = self.noised(sample, config.time, rng, step, through=True)
        teacher, fake = self.clean_pair(sample, at, rng, through=True)
        log_ratio, divergence, weight = self.ratio(sample, at, step)
        value = uni_instruct_loss(
            sample.x0,
            teacher,
            fake,
            log_ratio,
            divergence,
            path_term=config.path_term and step >= config.ratio_start,
            weight=weight,
            normalise=config.normalise,
            ratio_limit=config.ratio_limit,
            reduction="mean",
        )
        found, difference = density_ratio(log_ratio.detach(), config.ratio_limit), gap(teacher, fake)
        metrics = {"gap": difference, "ratio": found, "divergence": divergence.h(found) * difference}
        return self.with_adversary(LossTerms({"uni_instruct": value}, metrics=metrics), sample, rng, step)

    def ratio(self, sample: Sample, at: Noised, step: int) -> tuple[Tensor, FDivergence, Float[Tensor, " b"] | None]:
        """Return the log ratio attached to ``x_t``, the divergence it is used in, and a weight per sample."""
        config = self.config
        if step < config.ratio_start or not self.has_discriminator(config):  # h = 1 whatever the ratio
            return torch.zeros_like(at.t), find_divergence("reverse_kl"), None
        log_ratio = self.discriminator().log_ratio(at.x_t, at.t, sample.cond)
        if not config.normalise_weight:
            return log_ratio, self.divergence, None
        index = torch.zeros(len(log_ratio), dtype=torch.long, device=log_ratio.device)
        self.mean_weight.add(self.divergence.h(density_ratio(log_ratio.detach(), config.ratio_limit)), index)
        return log_ratio, self.divergence, 1 / self.mean_weight.of(index)

    def after_step(self, step: int) -> None:
        """Move the running mean of the weights."""
        self.mean_weight.finish(self.actors.total)

    def state(self) -> dict[str, Tensor]:
        """Return the running mean of the weights."""
        return {"mean_weight": self.mean_weight.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore it; UserError when it is missing."""
        self.mean_weight.load("mean_weight", state)
