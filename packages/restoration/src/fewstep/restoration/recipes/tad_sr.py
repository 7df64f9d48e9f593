"""Time-aware distillation for super-resolution (TAD-SR, arXiv 2408.07476): a many-step teacher becomes one step.

Three signals: regression on what the teacher's own sampler makes of the student's noise; a difference of the teacher's
scores of the two under one and the same small noise, which stresses high frequencies and vanishes where they agree;
and a discriminator on the teacher's features of noised samples, which is told the noise level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.check.declarations import Claims
from fewstep.core.errors import UserError, check
from fewstep.core.losses.adversarial import discriminator_loss, generator_loss
from fewstep.core.losses.distances import l2
from fewstep.core.losses.integral import score_difference_loss
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.rollout import StudentConfig, student_plan
from fewstep.core.rng import Rng
from fewstep.core.tensors import sample_mean
from fewstep.restoration.recipes.rollout import (
    Start,
    TeacherConfig,
    levels_of,
    start_at_noise,
    start_within,
    target_of,
    teacher_of,
)

LEAST_NOISE = 0.02  # of a continuous clock: below it a score is a rounding error divided by sigma


@dataclass(frozen=True, kw_only=True)
class TADSRConfig(TeacherConfig, StudentConfig):
    """Settings of TAD-SR; defaults of the paper's code for general super-resolution (faces: hsd 0.1, gan 0.2).

    ``mse_weight``: of the regression on ``target``; ``hsd_weight``: of the score difference to ``hsd_target``, which is
    the ``teacher``'s sample, the clean sample (``data``), or none (``sds``: plain score distillation against the noise
    itself, for comparison); ``gan_weight``: of the adversarial hinge loss. A term of weight 0 is not computed, and
    takes its networks with it. ``hsd_share``: the part of the noise levels, from the least, at which scores are
    compared; at least one level, 1 for all. ``student_times``: with several, each step starts from one of them, by
    noised clean samples where that is not pure noise.
    """

    mse_weight: float = 1.0
    hsd_weight: float = 1.0
    gan_weight: float = 0.02
    hsd_share: float = 0.2
    hsd_target: Literal["teacher", "data", "sds"] = "teacher"

    def __post_init__(self) -> None:
        TeacherConfig.__post_init__(self)
        StudentConfig.__post_init__(self)
        weights = (self.mse_weight, self.hsd_weight, self.gan_weight)
        check(min(weights) >= 0, f"mse_weight, hsd_weight and gan_weight must not be negative, got {weights}")
        check(max(weights) > 0, "mse_weight, hsd_weight and gan_weight are all 0: nothing to learn from")
        check(0 < self.hsd_share <= 1, f"hsd_share must lie in (0, 1], got {self.hsd_share:g}")
        check(
            self.hsd_weight == 0 or self.hsd_target != "teacher" or self.target != "data",
            "hsd_target 'teacher' compares with the teacher's sample and target is 'data': set hsd_target to data too",
        )
        check(
            self.target != "prepared" or len(self.fractions()) == 1,
            "prepared targets were made from pure noise: a student of several times needs another target",
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term asks the teacher's network."""
        rolls_out = self.mse_weight > 0 and self.target in ("deterministic", "ancestral")
        return rolls_out or self.hsd_weight > 0 or self.gan_weight > 0


class _Judged(NamedTuple):
    """The student's sample, where it started, and the level and noise under which the discriminator sees it."""

    x0: Tensor
    start: Start
    t: Tensor
    eps: Tensor


class TADSR(Recipe):
    """Trains a one-step student on its teacher's samples, scores and features."""

    name: ClassVar[str] = "tad-sr"
    paper: ClassVar[str] = "2408.07476"
    summary: ClassVar[str] = (
        "one-step restoration: the teacher's samples, score differences, a time-aware discriminator"
    )
    config_type: ClassVar[type] = TADSRConfig
    claims: ClassVar[Claims] = Claims("generator", through=False, at_rest=False, terms=("mse", "hsd"), inputs="data")
    config: TADSRConfig

    def __init__(self, config: TADSRConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.process, self.grid = actors.process, config.grid(actors.process)
        check_sees_data(actors.denoiser("student"), self.grid[0])
        found = actors.roles.get("discriminator")
        if config.gan_weight > 0 and not isinstance(found, Discriminator):
            raise UserError(f"role 'discriminator' must be a Discriminator, got {type(found).__name__}")
        self._discriminator = found

    @classmethod
    def role_specs(cls, config: TADSRConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher and heads on its features, those that some term needs."""
        specs = [RoleSpec("student", ema=True)]
        if config.needs_teacher:
            specs.append(RoleSpec("teacher", init="frozen"))
        if config.gan_weight > 0:
            specs.append(RoleSpec("discriminator", kind="discriminator", features_of="teacher"))
        return tuple(specs)

    @classmethod
    def phases(cls, config: TADSRConfig) -> tuple[Phase, ...]:
        """Return the discriminator's phase, which comes first, and the student's."""
        student = Phase("student", ("student",))
        return (Phase("discriminator", ("discriminator",)), student) if config.gan_weight > 0 else (student,)

    @classmethod
    def plan(cls, config: TADSRConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at the student's times, most often one; UserError for another number of steps."""
        return student_plan(cls.name, config, process, num_steps)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the heads, or of the student; both phases of a step see the same samples and noise."""
        rng = rng.across_phases(self.name)
        start = self.start(batch, rng)
        with torch.set_grad_enabled(phase == "student"):
            x0 = self.actors.denoiser("student").x0(start.x, start.times(), start.cond)
        eps = rng.normal("gan/eps", self.actors.shape, self.actors.dtype)
        judged = _Judged(x0, start, self.judged_level(rng), eps)
        if phase == "discriminator":
            return self.discriminator_terms(judged, batch)
        return self.student_terms(judged, batch, rng)

    @property
    def discriminator(self) -> Discriminator:
        """The heads; there are none where ``gan_weight`` is 0."""
        assert isinstance(self._discriminator, Discriminator)
        return self._discriminator

    def start(self, batch: Batch, rng: Rng) -> Start:
        """Return where the student starts; one time for the whole global batch."""
        index = rng.shared_integer("start", len(self.grid))
        if index == 0 and self.grid[0] == self.process.t_max:
            return start_at_noise(self.actors, batch, rng)
        return start_within(self.actors, batch, rng, self.grid[index], self.name)

    def judged_level(self, rng: Rng) -> Float[Tensor, " b"]:
        """Return levels for the discriminator, uniform; the noisiest of a table, which shows nothing, left out."""
        levels = levels_of(self.process)
        if levels:
            return self.process.t_min + rng.integers("gan/t", levels - 1).double()
        return self.process.unit_to_time(LEAST_NOISE + (1 - 2 * LEAST_NOISE) * rng.uniform("gan/t"))

    def compared_level(self, rng: Rng) -> Float[Tensor, " b"]:
        """Return levels for the score difference: uniform over the least noisy ones."""
        share, levels = self.config.hsd_share, levels_of(self.process)
        if levels:
            return self.process.t_min + rng.integers("hsd/t", max(1, round(share * levels))).double()
        least = min(LEAST_NOISE, share)
        return self.process.unit_to_time(least + (share - least) * rng.uniform("hsd/t"))

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor, start: Start) -> Float[Tensor, "b *d"]:
        """Return ``x0`` at level ``t``, in the dtype networks are run in."""
        return self.process.add_noise(x0, eps, t, start.cond.get("anchor")).to(self.actors.dtype)

    def discriminator_terms(self, judged: _Judged, batch: Batch) -> LossTerms:
        """Return the hinge loss of clean samples against the student's, under the same noise."""
        cond, t = judged.start.cond, judged.t
        pair = (batch.clean_samples(self.name), judged.x0.detach())
        real, fake = (
            self.discriminator.patch_logits(self.noised(x0, judged.eps, t, judged.start), t, cond) for x0 in pair
        )
        right = (real > 0).double().mean(1) / 2 + (fake < 0).double().mean(1) / 2
        metrics = {"real_logit": sample_mean(real), "fake_logit": sample_mean(fake), "accuracy": right}
        value = discriminator_loss(real, fake, "hinge")
        return LossTerms({"discriminator": value}, {}, {name: metric.detach() for name, metric in metrics.items()})

    def student_terms(self, judged: _Judged, batch: Batch, rng: Rng) -> LossTerms:
        """Return the terms that have a weight."""
        config, x0, start = self.config, judged.x0, judged.start
        terms, metrics = dict[str, Tensor](), dict[str, Tensor]()
        target = self.target(start, batch, rng)
        if config.mse_weight > 0:
            terms["mse"] = l2(x0, target)
        if config.hsd_weight > 0:
            terms["hsd"], metrics["hsd_direction"] = self.score_difference(x0, target, start, batch, rng)
        if config.gan_weight > 0:
            fake = self.noised(x0, judged.eps, judged.t, start)
            logits = self.discriminator.patch_logits(fake, judged.t, start.cond)
            terms["gan"] = generator_loss(logits, "hinge")
            metrics["fake_logit"] = sample_mean(logits).detach()
        weights = {"mse": config.mse_weight, "hsd": config.hsd_weight, "gan": config.gan_weight}
        return LossTerms(terms, {name: weights[name] for name in terms}, metrics)

    def target(self, start: Start, batch: Batch, rng: Rng) -> Float[Tensor, "b *d"]:
        """Return what the student regresses on; clean samples where no term asks for the teacher's."""
        config = self.config
        compared = config.hsd_weight > 0 and config.hsd_target == "teacher"
        if config.target == "data" or not (config.mse_weight > 0 or compared):
            return batch.clean_samples(self.name)
        return target_of(config, self.actors, start, batch, rng)

    def score_difference(
        self, x0: Tensor, target: Tensor, start: Start, batch: Batch, rng: Rng
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return the surrogate of the score difference at little noise, and the mean size of its direction."""
        t, eps = self.compared_level(rng), rng.normal("hsd/eps", self.actors.shape, self.actors.dtype)
        teacher, kind = teacher_of(self.config, self.actors), self.config.hsd_target
        reference = batch.clean_samples(self.name) if kind == "data" else target
        with torch.no_grad():
            of_sample = teacher.eps(self.noised(x0, eps, t, start), t, start.cond)
            below = eps if kind == "sds" else teacher.eps(self.noised(reference, eps, t, start), t, start.cond)
        return score_difference_loss(x0, of_sample, below), sample_mean((of_sample - below).abs())
