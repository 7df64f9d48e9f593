"""Distillation-DPO (arXiv 2504.11447): score distillation on the student's own samples, ranked by any metric.

Each step makes two samples of one noise direction, at scale 1 and at ``noise_scale``, and has the domain's judge rank
them. The teacher is compared with two fake scores, one of winners and one of losers: winners follow
``eps_fake - eps_teacher``, losers the opposite.

**What the loser's part does.** It drives losers away from the teacher, not away from what makes them lose. A student
that cannot tell a winner's input from a loser's is moved from winners towards losers: for a shift of Gaussian samples
the teacher's mean cancels, and what is left is ``sigma (E winner - E loser)/(a^2 + sigma^2)``, against the preference.
With less weight on losers there is a place to rest, where a shift is ``b/sqrt(pi) (1 + w)/(1 - w)`` behind the teacher
(b the samples' standard deviation, w ``loser_weight``): the better of two has the teacher's mean at w = 0, and at w = 1
nothing holds. What preference gains, it gains through inputs that tell winners from losers. Watch ``switch``, the share
of pairs won at scale 1: near 0 or 1 the label says nothing of quality. ``loser_weight: 0`` and small weights are safe;
on digits 0.3 trains well and the paper's 1 diverges.

The released code multiplies the directions by ``x_t - x0``, with ``x0`` attached in both, which is a constant: its
student never moves. Here they act on ``x0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.losses.distances import l2
from fewstep.core.losses.preference import pair_gradient_loss, pair_weight, reward_margin
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, StepPlan
from fewstep.core.recipes.any_step import AnyStepConfig, any_step_plan
from fewstep.core.recipes.generator import FakeScoreRecipe
from fewstep.core.recipes.pairs import Pair, ranked
from fewstep.core.recipes.rollout import Sample, noised_at, student_sample
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean

WINNER, LOSER = "fake_winner", "fake_loser"


@dataclass(frozen=True, kw_only=True)
class DistillationDPOConfig(AnyStepConfig):
    """Settings of Distillation-DPO; defaults of the paper, whose student has one step.

    ``noise_scale``: of the second sample's noise (1.05 to 2 in the paper, best at 1.1). ``loser_weight``: of the
    loser's direction; at 0 there are no losers, and no fake score of them. ``dpo_sigmoid``: weigh pairs by
    ``sigmoid(-beta margin)`` with this beta, the margin of mean squared errors of the noise, as DPO does and the
    released code does not. ``metric``: the domain's judge by name (empty: its first).
    """

    noise_scale: float = 1.1
    loser_weight: float = 1.0
    dpo_sigmoid: float | None = None
    metric: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.noise_scale > 0, f"noise_scale must be positive, got {self.noise_scale:g}")
        check(self.loser_weight >= 0, f"loser_weight must not be negative, got {self.loser_weight:g}")
        check(
            self.dpo_sigmoid is None or self.dpo_sigmoid > 0,
            f"dpo_sigmoid is a beta and must be positive, got {self.dpo_sigmoid}",
        )

    def has_losers(self) -> bool:
        """Return whether losers play a part."""
        return self.loser_weight > 0 or self.dpo_sigmoid is not None


class Judged(NamedTuple):
    """A member under noise: the direction ``eps_teacher - eps_fake`` "b *d", and both squared errors "b"."""

    direction: Tensor
    teacher_error: Tensor
    fake_error: Tensor


class DistillationDPO(FakeScoreRecipe):
    """Moves winners to the teacher and losers away from it; needs a judge, and no gradients through networks."""

    name: ClassVar[str] = "distillation-dpo"
    paper: ClassVar[str] = "2504.11447"
    summary: ClassVar[str] = (
        "score distillation on pairs of the student's samples, ranked by any metric: any step count"
    )
    config_type: ClassVar[type] = DistillationDPOConfig
    config: DistillationDPOConfig

    def __init__(self, config: DistillationDPOConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.judge = actors.judge(config.metric)
        check(
            actors.generate is None,
            f"recipe '{self.name}': this domain makes samples itself, and pairs are made by scaling a student's noise",
        )

    @classmethod
    def fakes(cls, config: DistillationDPOConfig) -> tuple[str, ...]:
        """Return the fake scores of winners and of losers, where these play a part."""
        return (WINNER, LOSER) if config.has_losers() else (WINNER,)

    @classmethod
    def plan(cls, config: DistillationDPOConfig, process: Process, num_steps: int) -> StepPlan:
        """Return sampling at any number of steps."""
        return any_step_plan(config, process, num_steps)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the phase on a fresh pair."""
        pair = self.pair(batch, rng, grad=phase == "student")
        if phase == "student":
            return self.student_loss(pair, batch, rng, step)
        return self.fake_score_loss(pair, batch, rng, step)

    def pair(self, batch: Batch, rng: Rng, *, grad: bool) -> Pair:
        """Return two samples of one noise, at both scales, ranked."""
        first, second = (
            student_sample(self.actors, self.config, batch, rng, grad=grad, noise_scale=scale).x0
            for scale in (1.0, self.config.noise_scale)
        )
        return ranked(self.judge, first, second, batch)

    def fake_score_loss(self, pair: Pair, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the fake scores' denoising losses, each on its member at times and noise of its own."""
        terms = {}
        for name, x0 in zip(self.fakes(self.config), (pair.winner, pair.loser), strict=False):
            sample = Sample(x0, batch.cond)
            at = self.noised(sample, self.config.fake.time, rng, step, stream=f"noised/{name}")
            terms[f"denoise_{name.removeprefix('fake_')}"] = self.denoise(sample, at, rng, name)
        return LossTerms(terms)

    def student_loss(self, pair: Pair, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the surrogate of both directions, at one time and noise for both members."""
        config, has_losers = self.config, self.config.has_losers()
        at = self.noised(Sample(pair.winner, batch.cond), config.time, rng, step)
        winner = self.judged(pair.winner, batch, at.t, at.eps, rng, WINNER)
        loser = self.judged(pair.loser, batch, at.t, at.eps, rng, LOSER) if has_losers else winner
        margin = reward_margin(winner.fake_error, loser.fake_error, winner.teacher_error, loser.teacher_error)
        value = pair_gradient_loss(
            pair.winner,
            pair.loser,
            winner.direction,
            loser.direction,
            loser_weight=config.loser_weight,
            weight=None if config.dpo_sigmoid is None else pair_weight(margin, config.dpo_sigmoid),
            reduction=config.reduction,
        )
        metrics = {
            "switch": pair.first_won.to(at.eps.dtype),
            "lead": pair.lead,
            "direction_winner": sample_mean(winner.direction.abs()),
        }
        if has_losers:
            metrics |= {"direction_loser": sample_mean(loser.direction.abs()), "margin": margin}
        return LossTerms({"pair": value}, metrics=metrics)

    def judged(self, x0: Tensor, batch: Batch, t: Tensor, eps: Tensor, rng: Rng, fake: str) -> Judged:
        """Return how teacher and one fake score differ on a member noised with ``eps`` at ``t``."""
        sample = Sample(x0.detach(), batch.cond)
        teacher, own = self.eps_pair(sample, noised_at(self.process, sample, t, eps), rng, fake)
        return Judged(teacher - own, l2(teacher, eps), l2(own, eps))
