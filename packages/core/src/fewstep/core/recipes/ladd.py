"""Latent adversarial diffusion distillation (LADD, arXiv 2403.12015), optionally with ADD's distillation (2311.17042).

A discriminator reads features of the frozen teacher at noised samples, so no second feature network and no decoding is
needed; the noise level ``s`` says whether it judges structure or texture. Real and generated samples are judged at the
same ``s``. The student denoises noised real samples at a few fixed times; at the first one it sees pure noise, as in
sampling.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError, check
from fewstep.core.guidance import Guided
from fewstep.core.losses.adversarial import (
    AdversarialKind,
    approximate_r1,
    discriminator_loss,
    generator_loss,
    per_pair,
    r1_penalty,
    with_misaligned,
)
from fewstep.core.losses.distances import l2
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.rollout import StudentConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state, teacher_sample
from fewstep.core.tensors import sample_mean
from fewstep.core.times import TimeConfig

# LADD, section 3.2: the shares of the times 1, 0.75, 0.5, 0.25, from the start and after the warm-up
PAPER_WARMUP, PAPER_SHARES = (0.0, 0.0, 0.5, 0.5), (0.7, 0.1, 0.1, 0.1)


@dataclass(frozen=True, kw_only=True)
class LADDConfig(StudentConfig):
    """Settings of LADD.

    ``student_steps``, ``student_times``: where the student is trained, by default at 1, 0.75, 0.5 and 0.25 of the noise
    levels; ``time_shares``: how often each is drawn (empty: the paper's for four times, even for another number);
    ``warmup_shares`` instead during the first ``warmup_steps``. ``real``: samples of the ``data``, or fresh ones of the
    guided ``teacher`` in ``teacher_steps`` solver steps (the paper makes them in advance: data that a teacher made is
    the same thing). ``noise``: the law of ``s``, logit-normal(1, 1). ``adversarial``: the pair of losses.
    ``discriminator_updates`` per student update. ``misaligned``: real samples under their neighbour's condition are
    further fakes (SANA-Sprint); neighbours are those of a micro-batch. ``r1_weight``: gamma of ``gamma/2 |grad|^2`` at
    real noised samples, estimated with perturbations of size ``r1_noise``, or exact when that is 0.
    ``distill_weight``: of ``alpha_t |x0 - teacher's x0|^2`` at levels drawn from ``distill_time`` (ADD: 2.5, its
    score-distillation weighting). ``guidance_scale``: of the teacher in both its uses.
    """

    student_steps: int = 4
    time_shares: tuple[float, ...] = ()
    warmup_shares: tuple[float, ...] = ()
    warmup_steps: int = 500
    real: Literal["data", "teacher"] = "data"
    teacher_steps: int = 25
    guidance_scale: float = 1.0
    noise: TimeConfig = TimeConfig(law="logit_normal", mean=1.0, std=1.0, low=0.0, high=1.0)
    adversarial: AdversarialKind = "hinge"
    discriminator_updates: int = 1
    misaligned: bool = False
    r1_weight: float = 0.0
    r1_noise: float = 0.01
    distill_weight: float = 0.0
    distill_time: TimeConfig = TimeConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        times = len(self.fractions())
        for name, shares in (("time_shares", self.time_shares), ("warmup_shares", self.warmup_shares)):
            check(len(shares) in (0, times), f"{name} lists {len(shares)} shares for {times} student times")
            check(not shares or (min(shares) >= 0 and sum(shares) > 0), f"{name} must be positive, got {list(shares)}")
        check(self.discriminator_updates >= 1, "discriminator_updates must be at least 1")
        check(self.teacher_steps >= 1, f"teacher_steps must be at least 1, got {self.teacher_steps}")
        check(self.r1_weight >= 0 and self.r1_noise >= 0, "r1_weight and r1_noise must not be negative")
        check(
            not (self.misaligned and self.adversarial == "relativistic"),
            "misaligned pairs have no real counterpart: choose another adversarial loss than relativistic",
        )

    def shares(self, step: int) -> tuple[float, ...]:
        """Return how often each student time is drawn at ``step``, not normalised."""
        times = len(self.fractions())
        usual = self.time_shares or (PAPER_SHARES if times == 4 else (1.0,) * times)
        early = self.warmup_shares or (PAPER_WARMUP if times == 4 else usual)
        return early if step < self.warmup_steps else usual


class _Pair(NamedTuple):
    """A generated and a real sample, the condition of each, and the noise level both are judged at."""

    fake: Tensor
    fake_cond: Cond
    real: Tensor
    cond: Cond
    s: Tensor


class LADD(Recipe):
    """Trains a student against a discriminator on the teacher's features of noised samples."""

    name: ClassVar[str] = "ladd"
    paper: ClassVar[str] = "2403.12015"
    summary: ClassVar[str] = "adversarial distillation on the teacher's own features (LADD, ADD): 1-4 steps"
    config_type: ClassVar[type] = LADDConfig
    config: LADDConfig

    def __init__(self, config: LADDConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        found = actors.roles["discriminator"]
        if not isinstance(found, Discriminator):
            raise UserError(f"role 'discriminator' must be a Discriminator, got {type(found).__name__}")
        heads = next(found.parameters(), None)
        check(heads is not None, "the teacher's features are frozen: ladd needs a discriminator with learned heads")
        self.discriminator, self.process = found, actors.process
        self.grid = config.grid(actors.process)
        if actors.generate is None:
            check_sees_data(actors.denoiser("student"), self.grid[0])

    @classmethod
    def role_specs(cls, config: LADDConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher and heads on its features."""
        heads = RoleSpec("discriminator", kind="discriminator", features_of="teacher")
        return (RoleSpec("student", ema=True), RoleSpec("teacher", init="frozen"), heads)

    @classmethod
    def phases(cls, config: LADDConfig) -> tuple[Phase, ...]:
        """Return the discriminator's phase, every step, and the student's."""
        student = Phase("student", ("student",), every=config.discriminator_updates)
        return (Phase("discriminator", ("discriminator",)), student)

    @classmethod
    def plan(cls, config: LADDConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at evenly chosen student times, the noisiest first; UserError when they do not divide."""
        grid = config.grid(process)
        check(
            1 <= num_steps <= len(grid) and len(grid) % num_steps == 0,
            f"recipe '{cls.name}': a student of {len(grid)} times samples in a divisor of that many steps, "
            f"not in {num_steps}",
        )
        return StepPlan(times=grid[:: len(grid) // num_steps])

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the heads, or of the student."""
        real = self.real(batch, rng)
        with torch.set_grad_enabled(phase == "student"):
            fake, cond = self.fake(real, batch, rng, step)
        pair = _Pair(fake, cond, real, batch.cond, self.config.noise.draw(self.process, rng, "s", step))
        return self.student_loss(pair, rng, step) if phase == "student" else self.discriminator_terms(pair, rng)

    def teacher(self) -> Denoiser:
        """Return the teacher under its guidance."""
        return Guided(self.actors.denoiser("teacher"), self.config.guidance_scale)

    def real(self, batch: Batch, rng: Rng) -> Tensor:
        """Return the samples that count as real."""
        if self.config.real == "data":
            return batch.clean_samples(self.name)
        fork, shape, dtype = rng.fork("real"), self.actors.shape, self.actors.dtype
        with torch.no_grad():
            return teacher_sample(self.teacher(), shape, batch.cond, fork, steps=self.config.teacher_steps, dtype=dtype)

    def fake(self, real: Tensor, batch: Batch, rng: Rng, step: int) -> tuple[Tensor, Cond]:
        """Return the student's samples, from pure noise or from noised real ones, and their condition."""
        if self.actors.generate is not None:
            return self.actors.generate(batch, rng)
        shares = torch.tensor(self.config.shares(step), dtype=torch.float64, device=rng.device).cumsum(0)
        index = torch.searchsorted(shares / shares[-1], rng.uniform("time"), right=True).clamp_max(len(shares) - 1)
        t = torch.tensor(self.grid, dtype=torch.float64, device=rng.device)[index]
        noise = rng.normal("noise", self.actors.shape, self.actors.dtype)
        start = initial_state(self.process, noise, self.grid[0], batch.cond)
        noised = self.process.add_noise(real, noise, t, batch.cond.get("anchor")).to(start.dtype)
        first = (index == 0).reshape(-1, *[1] * (start.ndim - 1))
        x = torch.where(first, start, noised)
        return self.actors.denoiser("student").x0(x, t, batch.cond), batch.cond

    def noised(self, x: Tensor, s: Tensor, cond: Cond, rng: Rng, stream: str) -> Tensor:
        """Return ``x`` at level ``s``, in the dtype networks are run in."""
        eps = rng.normal(stream, self.actors.shape, self.actors.dtype)
        return self.process.add_noise(x, eps, s, cond.get("anchor")).to(self.actors.dtype)

    def discriminator_terms(self, pair: _Pair, rng: Rng) -> LossTerms:
        """Return the loss of the heads on detached samples, and the gradient penalty."""
        config, size = self.config, len(pair.s)
        fake = self.noised(pair.fake.detach(), pair.s, pair.fake_cond, rng, "fake/eps")
        real = self.noised(pair.real, pair.s, pair.cond, rng, "real/eps")
        exact = config.r1_weight > 0 and config.r1_noise == 0
        # attention has no second derivative outside its plain form
        with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
            on_real = self.discriminator.patch_logits(real.requires_grad_(exact), pair.s, pair.cond)
        on_fake = self.discriminator.patch_logits(fake, pair.s, pair.fake_cond)
        judged = on_fake
        if config.misaligned and size > 1:
            shifted, _ = with_misaligned(fake, real.detach())
            wrong = self.discriminator.patch_logits(shifted[size:], pair.s, pair.cond)
            judged = per_pair(torch.cat([on_fake, wrong]), size)
        terms = {"discriminator": discriminator_loss(on_real, judged, config.adversarial)}
        if config.r1_weight > 0:
            terms["r1"] = self.penalty(sample_mean(on_real), real, pair, rng)
        right = (on_real > 0).double().mean(1) / 2 + (on_fake < 0).double().mean(1) / 2
        metrics = {"real_logit": sample_mean(on_real), "fake_logit": sample_mean(on_fake), "accuracy": right}
        return LossTerms(terms, {"r1": config.r1_weight / 2}, {name: value.detach() for name, value in metrics.items()})

    def penalty(self, logits: Tensor, real: Tensor, pair: _Pair, rng: Rng) -> Tensor:
        """Return ``|grad|^2`` at the noised real samples, exact or from one perturbation of each."""
        scale = self.config.r1_noise
        if scale == 0:
            return r1_penalty(logits, real)
        near = real + scale * rng.normal("r1", self.actors.shape, self.actors.dtype)
        return approximate_r1(logits, sample_mean(self.discriminator.patch_logits(near, pair.s, pair.cond)), scale)

    def student_loss(self, pair: _Pair, rng: Rng, step: int) -> LossTerms:
        """Return the adversarial loss, and the distance to what the teacher makes of the student's noised sample."""
        config = self.config
        fake = self.noised(pair.fake, pair.s, pair.fake_cond, rng, "fake/eps")
        on_fake, on_real = self.discriminator.patch_logits(fake, pair.s, pair.fake_cond), None
        if config.adversarial == "relativistic":
            with torch.no_grad():
                real = self.noised(pair.real, pair.s, pair.cond, rng, "real/eps")
                on_real = self.discriminator.patch_logits(real, pair.s, pair.cond)
        terms = {"adversarial": generator_loss(on_fake, config.adversarial, on_real)}
        if config.distill_weight > 0:
            t = config.distill_time.draw(self.process, rng, "distill/t", step)
            with torch.no_grad():
                x_t = self.noised(pair.fake, t, pair.fake_cond, rng, "distill/eps")
                target = self.teacher().x0(x_t, t, pair.fake_cond)
            alpha = self.process.coefficients(t).alpha.to(target)
            terms["distill"] = alpha * l2(pair.fake, target)
        return LossTerms(terms, {"distill": config.distill_weight}, {"fake_logit": sample_mean(on_fake).detach()})
