"""Score implicit matching (SIM, arXiv 2410.16794): any distance between scores, differentiated through the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fewstep.core.losses.distances import Distance, Power, PseudoHuber, SquaredL2, huber_scale
from fewstep.core.losses.monitors import distance_of, gap
from fewstep.core.losses.score_family import conditional_score, sim_loss
from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.recipes.diff_instruct import LOGNORMAL
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig, GeneratorRecipe
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to
from fewstep.core.times import TimeConfig


@dataclass(frozen=True, kw_only=True)
class SIMConfig(GeneratorConfig):
    """Settings of SIM.

    ``distance``: of the difference of the two predictions; ``huber_c`` of the pseudo-Huber distance (default
    ``0.00054 sqrt(n)``, iCT's rule), ``power`` of the other. ``space``: where ``distance`` and ``huber_c`` live, clean
    samples (steadier) or scores; in scores, ``c`` means another thing at each noise level. ``weight_power`` p weighs
    noise levels by ``(sigma^2/alpha)^p``: in scores, p = 1 (pseudo-Huber) or 2 (L2) brings the loss to the size it has
    in clean samples. The student starts in the middle of EDM's levels, noise level 2.5, and is judged up to 24 (paper;
    SiD).
    """

    student_start: float = 0.5
    distance: Literal["pseudo_huber", "l2", "power"] = "pseudo_huber"
    huber_c: float | None = None
    power: float = 2.0
    space: Literal["x0", "score"] = "x0"
    weight_power: float = 0.0
    time: TimeConfig = TimeConfig(low=0.0, high=0.8)
    fake: FakeScoreConfig = FakeScoreConfig(time=LOGNORMAL)


class SIM(GeneratorRecipe):
    """Descends ``E d(fake - teacher)`` at a held sampling law; needs no data, but gradients through both networks."""

    name: ClassVar[str] = "sim"
    paper: ClassVar[str] = "2410.16794"
    summary: ClassVar[str] = "score implicit matching with pseudo-Huber, L2 or power distances, data-free, 1 step"
    config_type: ClassVar[type] = SIMConfig
    config: SIMConfig

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the SIM loss; its expectation is zero, so log ``distance``."""
        at = self.noised(sample, self.config.time, rng, step, through=True)
        teacher, fake = self.clean_pair(sample, at, rng, through=True)
        clean_gap, target, distance = gap(teacher, fake), sample.x0, self.distance(sample)
        if self.config.space == "score":
            x_t = self.process.offset(at.x_t, at.t, sample.cond.get("anchor"))
            target = conditional_score(x_t, sample.x0, at.alpha, at.sigma)
            teacher, fake = (
                (expand_to(at.alpha, x_t) * x0 - x_t) / expand_to(at.sigma**2, x_t) for x0 in (teacher, fake)
            )
        weight = (at.sigma**2 / at.alpha) ** self.config.weight_power
        value = sim_loss(target, teacher, fake, distance, weight=weight, reduction="mean")
        return LossTerms({"sim": value}, metrics={"distance": distance_of(teacher, fake, distance), "gap": clean_gap})

    def distance(self, sample: Sample) -> Distance:
        """Return the configured distance."""
        if self.config.distance == "l2":
            return SquaredL2()
        if self.config.distance == "power":
            return Power(self.config.power)
        c = self.config.huber_c
        return PseudoHuber(huber_scale(sample.x0) if c is None else c)
