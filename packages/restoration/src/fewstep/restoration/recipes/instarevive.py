"""InstaRevive (arXiv 2504.15513): one-step enhancement by distribution matching of a limited noise range.

No noise is added to begin with: the degraded sample, ``cond["anchor"]``, is declared to be the state at a fixed noise
level, and the student's x0 there is the result. Teacher (real score) and fake score judge it under noise, as in DMD.
Under much noise a score says where the data are on the whole, and pulls what is nearly right towards their middle: so
the range is the narrower, the nearer a sample is to its target (:mod:`fewstep.restoration.recipes.scope`).

**Conditions.** All roles get the batch's condition whole and each network reads what it was made to read: a prior of
good pictures, with a prompt or without, ignores the anchor; a network that restores reads it and judges the sample as a
restoration of that very input. The released training loop is not published: controls and their defaults are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.check.declarations import Claims
from fewstep.core.errors import check
from fewstep.core.losses.distances import l2
from fewstep.core.losses.integral import distribution_matching_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.networks.backbone import entry
from fewstep.core.process import Process, times
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, RoleSpec, StepPlan
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig, GeneratorRecipe
from fewstep.core.recipes.rollout import Noised, Sample, noised_at, student_plan, student_sample
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig
from fewstep.restoration.recipes.scope import ConstantScope, Discrepancy, ScopeConfig


@dataclass(frozen=True, kw_only=True)
class InstaReviveConfig(GeneratorConfig):
    """Settings of InstaRevive.

    ``student_start``: the declared noise level, a fraction of the levels (0.401 is index 400 of 1000). ``time``: of
    judging; its upper end is the widest the ``scope`` allows. ``matching_weight``: of distribution matching (0: the
    regression alone, without fake score). ``regression_weight``: of the squared distance from the clean sample.
    ``loss_control``: multiply that weight by the discrepancy's ratio, between ``loss_floor`` and 1. ``normalise``: as
    in DMD. ``guidance_scale``: of the real score, 3 in the paper, for teachers with an unconditional prediction.
    """

    student_start: float = 0.401
    fake: FakeScoreConfig = FakeScoreConfig(time=TimeConfig(low=0.0, high=1.0), weighting="native")
    scope: ScopeConfig = ScopeConfig()
    matching_weight: float = 1.0
    regression_weight: float = 0.25
    loss_control: bool = True
    loss_floor: float = 0.2
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            len(self.fractions()) == 1, "an instarevive student makes one evaluation: leave out student_steps, _times"
        )
        for name in ("matching_weight", "regression_weight"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")
        check(
            self.matching_weight + self.regression_weight > 0,
            "matching_weight, regression_weight: one must be positive",
        )
        check(0 <= self.loss_floor <= 1, f"loss_floor must lie in [0, 1], got {self.loss_floor:g}")
        check(
            self.fake_guidance_scale == self.fake.guidance_scale == 1,
            "the fake score is never guided here: leave fake_guidance_scale and fake.guidance_scale at 1",
        )
        self._check_ranges()

    def _check_ranges(self) -> None:
        time, seen = self.time, self.fake.time
        check(
            time.law != "uniform" or seen.law != "uniform" or (seen.low <= time.low and seen.high >= time.high),
            f"fake.time must cover time, [{time.low:g}, {time.high:g}], where the fake score is asked, "
            f"got [{seen.low:g}, {seen.high:g}]",
        )
        if self.scope.mode == "constant":
            return
        plain = time.law == "uniform" and not time.shared and time.anneal_steps == 0
        check(plain, f"scope.mode '{self.scope.mode}' bounds a plain uniform law: leave time.law, shared, anneal_steps")
        check(
            time.low < self.scope.low <= time.high,
            f"scope.low must lie above time.low={time.low:g} and up to time.high={time.high:g}, got {self.scope.low:g}",
        )

    def watches(self) -> bool:
        """Return whether the discrepancy controls anything."""
        by_scope = self.scope.mode == "discrepancy" and self.matching_weight > 0
        return by_scope or (self.loss_control and self.regression_weight > 0)


class InstaRevive(GeneratorRecipe):
    """Distribution matching of a student that starts at the degraded input, and a regression to the clean sample."""

    name: ClassVar[str] = "instarevive"
    paper: ClassVar[str] = "2504.15513"
    summary: ClassVar[str] = "one-step enhancement by distribution matching with a dynamic noise range"
    config_type: ClassVar[type] = InstaReviveConfig
    # the laws of generators are about samples made of noise, and these are made of the degraded input
    claims: ClassVar[Claims] = Claims("other")
    config: InstaReviveConfig

    def __init__(self, config: InstaReviveConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.discrepancy = Discrepancy(config.scope.first_steps)
        self.scope = config.scope.make(config.time.high, self.discrepancy)

    @classmethod
    def role_specs(cls, config: InstaReviveConfig) -> tuple[RoleSpec, ...]:
        """Return student, teacher and fake score; without matching, the last has nothing to do."""
        specs = super().role_specs(config)
        return specs if config.matching_weight > 0 else tuple(s for s in specs if s.name not in cls.fakes(config))

    @classmethod
    def phases(cls, config: InstaReviveConfig) -> tuple[Phase, ...]:
        """Return the fake score's phase and the student's; the latter alone without matching."""
        return super().phases(config) if config.matching_weight > 0 else (Phase("student", ("student",)),)

    @classmethod
    def plan(cls, config: InstaReviveConfig, process: Process, num_steps: int) -> StepPlan:
        """Return the one evaluation, from the degraded sample as it is; UserError for more."""
        return replace(student_plan(cls.name, config, process, num_steps), start="anchor")

    def sample(self, batch: Batch, rng: Rng, *, grad: bool) -> Sample:
        """Return the student's x0 at the degraded sample and declared level, or what the domain makes itself."""
        if self.actors.generate is not None:
            return student_sample(self.actors, self.config, batch, rng, grad=grad)
        x = entry(batch.cond, "anchor", f"recipe '{self.name}'")
        t = times(self.config.grid(self.process)[0], batch.size, x.device)
        with torch.set_grad_enabled(grad):
            return Sample(self.actors.denoiser("student").x0(x, t, batch.cond), batch.cond)

    def student_loss(self, sample: Sample, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return matching and regression, those that have a weight."""
        config, reference = self.config, batch.x0
        if config.watches() or config.regression_weight > 0:
            reference = batch.clean_samples(self.name)
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        if reference is not None:
            metrics["discrepancy"] = self.discrepancy.distance(sample.x0, reference)
        if config.matching_weight > 0:
            at = self.noised_within(sample, reference, rng, step)
            pair = self.clean_pair(sample, at, rng, through=False)
            terms["matching"] = distribution_matching_loss(sample.x0, *pair, normalise=config.normalise)
            metrics |= {"gap": gap(*pair), "noise": self.process.time_to_unit(at.t)}
        if config.regression_weight > 0:
            value = l2(sample.x0, batch.clean_samples(self.name))
            terms["regression"] = value * self.control(sample, batch).to(value.dtype)
        if config.watches():
            self.discrepancy.add(sample.x0, batch.clean_samples(self.name))
        weights = {"matching": config.matching_weight, "regression": config.regression_weight}
        return LossTerms(terms, {name: weights[name] for name in terms}, metrics)

    def noised_within(self, sample: Sample, reference: Tensor | None, rng: Rng, step: int) -> Noised:
        """Return the detached sample under noise of a level its scope allows."""
        if isinstance(self.scope, ConstantScope):
            return self.noised(sample, self.config.time, rng, step)
        low, process = self.config.time.low, self.process
        high = self.scope(sample.x0.detach(), reference, step).detach()
        u = rng.uniform("noised/t").to(high.device)  # the streams of the constant scope
        t = process.round(process.unit_to_time(low + u * (high - low)))
        return noised_at(process, Sample(sample.x0.detach(), sample.cond), t, rng.normal_like("noised/eps", sample.x0))

    def control(self, sample: Sample, batch: Batch) -> Float[Tensor, " b"]:
        """Return what the regression's weight is multiplied with: 1, or the discrepancy's ratio within its bounds."""
        if not self.config.loss_control:
            return torch.ones(batch.size, dtype=torch.float64, device=sample.x0.device)
        ratio = self.discrepancy.ratio(sample.x0, batch.clean_samples(self.name))
        return ratio.clamp(self.config.loss_floor, 1)

    def after_step(self, step: int) -> None:
        """Take the step's discrepancies into their unit."""
        self.discrepancy.finish(self.actors.total)

    def state(self) -> dict[str, Tensor]:
        """Return the discrepancy's unit."""
        return {"discrepancy": self.discrepancy.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore it; UserError when it is missing."""
        self.discrepancy.load("discrepancy", state)
