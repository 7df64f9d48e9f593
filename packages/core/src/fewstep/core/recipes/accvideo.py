"""AccVideo (arXiv 2503.19462): regression on a teacher's stored trajectories, and heads that judge each key time.

The teacher's deterministic sampling is cut into ``m`` segments by key times. From the state at the start of a segment
the student is taught the x0 whose single step lands on the state at its end: with flow networks, the segment's average
velocity. A chain of the student's own steps from fresh noise is followed on the side, one step per update, and where
it is at a key time is judged there against the stored state by that key time's own heads on the teacher's features.
Nothing is ever noised: all real states lie on the teacher's trajectories.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.guidance import Guided
from fewstep.core.losses.adversarial import AdversarialKind, discriminator_loss, generator_loss
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.networks.discriminator import Discriminator
from fewstep.core.process import Process, times
from fewstep.core.recipe import STATES, TIMES, Actors, Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.guided import check_sees_data
from fewstep.core.recipes.queues import Entry, LatentQueues
from fewstep.core.recipes.rollout import StudentConfig, student_plan, time_of_fraction
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state, teacher_trajectory
from fewstep.core.steps import back_out, first_order_step, level
from fewstep.core.tensors import sample_mean


@dataclass(frozen=True, kw_only=True)
class AccVideoConfig(StudentConfig):
    """Settings of AccVideo.

    ``student_steps``, ``student_times``: the key times. ``segment_steps``: the teacher's per step of the student,
    under ``guidance_scale``, in trajectories made here for data that brings none (0: such data is refused).
    ``weighting``: of the squared x0 error; ``flow`` is the plain error of the average velocity. ``adversarial_weight``:
    of the heads' loss and of the student's against them (0: regression alone, no heads). ``adversarial``: the pair of
    losses. ``clean_taps``: modules whose features the heads for clean samples read, where they are others than
    ``roles.discriminator.taps`` (the paper: layer 40 of 60 instead of the last). ``queue_length``: updates, in rounds
    over all key times, that a state waits for its next step; until a queue is full, the student starts from the stored
    state.
    """

    student_steps: int = 5
    segment_steps: int = 10
    guidance_scale: float = 1.0
    weighting: Weighting = "flow"
    min_snr_gamma: float = 5.0
    sigma_data: float = 0.5
    adversarial_weight: float = 0.1
    adversarial: AdversarialKind = "softplus"
    clean_taps: tuple[str, ...] = ()
    queue_length: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.segment_steps >= 0, f"segment_steps must not be negative, got {self.segment_steps}")
        check(self.adversarial_weight >= 0, f"adversarial_weight must not be negative, got {self.adversarial_weight:g}")
        check(self.queue_length >= 1, f"queue_length must be at least 1, got {self.queue_length}")
        check(
            self.adversarial_weight > 0 or not self.clean_taps,
            "clean_taps belong to heads, and adversarial_weight 0 makes none",
        )

    @property
    def segments(self) -> int:
        """Return the number of segments, which is the student's number of steps."""
        return len(self.fractions())

    def fine_grid(self, process: Process) -> tuple[float, ...]:
        """Return the teacher's times: each segment in equal parts of the noise levels' fractions.

        Raises UserError for more of them than the process has levels.
        """
        parts, ends = self.segment_steps, itertools.pairwise([*self.fractions(), 0.0])
        levels = process.t_max - process.t_min + 1
        check(
            not process.discrete or parts * self.segments <= levels,
            f"recipe 'accvideo': {self.segments} times {parts} segment_steps on a table of {levels:g} noise levels",
        )
        return time_of_fraction(process, [a + (b - a) * i / parts for a, b in ends for i in range(parts)])


def head(key: int) -> str:
    """Return the role, and the phase, of the heads that judge key ``key``: 0 is clean, m - 1 the noisiest judged."""
    return f"head_{key}"


class AccVideo(Recipe):
    """Teaches each step of a deterministic few-step student by stored trajectories, and judges where it leads."""

    name: ClassVar[str] = "accvideo"
    paper: ClassVar[str] = "2503.19462"
    summary: ClassVar[str] = "regression on stored teacher trajectories with a discriminator per key time: 5-10 steps"
    config_type: ClassVar[type] = AccVideoConfig
    config: AccVideoConfig

    def __init__(self, config: AccVideoConfig, actors: Actors) -> None:
        super().__init__(config, actors)
        self.process, self.grid = actors.process, config.grid(actors.process)
        self.queues = LatentQueues(len(self.grid), config.queue_length)
        self._segment: int | None = None
        for name in (spec.name for spec in self.role_specs(config) if spec.kind == "discriminator"):
            if not isinstance(actors.roles[name], Discriminator):
                raise UserError(f"role '{name}' must be a Discriminator, got {type(actors.roles[name]).__name__}")
            found = next(actors.roles[name].parameters(), None)
            check(
                found is not None, "the teacher's features are frozen: accvideo needs discriminators with learned heads"
            )
        check_sees_data(actors.denoiser("student"), self.grid[0])

    @classmethod
    def role_specs(cls, config: AccVideoConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the frozen teacher, and heads on its features for every key time but the first."""
        keys = range(config.segments) if config.adversarial_weight > 0 else ()
        heads = (
            RoleSpec(head(k), kind="discriminator", features_of="teacher", taps=() if k else config.clean_taps)
            for k in keys
        )
        return (RoleSpec("student", ema=True), RoleSpec("teacher", init="frozen"), *heads)

    @classmethod
    def phases(cls, config: AccVideoConfig) -> tuple[Phase, ...]:
        """Return the phases of the heads, which take turns, and the student's, every step."""
        m = config.segments
        keys = range(m) if config.adversarial_weight > 0 else ()
        heads = (Phase(head(k), (head(k),), every=m, offset=(m - k) % m) for k in keys)
        return (*heads, Phase("student", ("student",)))

    @classmethod
    def plan(cls, config: AccVideoConfig, process: Process, num_steps: int) -> StepPlan:
        """Return deterministic steps on exactly the key times; UserError for any other number of steps."""
        return student_plan(cls.name, config, process, num_steps, mode="deterministic")

    def segment(self, step: int) -> int:
        """Return the segment an update is about; they take turns, the noisiest first."""
        return step % len(self.grid)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of one key time's heads, or the student's."""
        states = self.trajectory(batch, rng)
        cond = {name: value for name, value in batch.cond.items() if name not in (STATES, TIMES)}
        if phase != "student":
            segment = len(self.grid) - 1 - int(phase.removeprefix("head_"))
            return self.head_terms(segment, self.start(segment, states, cond, rng))
        segment = self._segment = self.segment(step)
        terms, weights = {"trajectory": self.regression(segment, states, cond)}, {}
        metrics: dict[str, Tensor] = {}
        if self.config.adversarial_weight > 0:
            start = self.start(segment, states, cond, rng)
            landed = self.land(segment, start)
            on_fake = self.judge(segment, landed, start.cond)
            real = self.judge(segment, start.ahead[:, 0], start.cond) if self._relative else None
            terms["adversarial"] = generator_loss(on_fake, self.config.adversarial, real)
            weights = {"adversarial": self.config.adversarial_weight}
            metrics["fake_logit"] = sample_mean(on_fake).detach()
            self.push(segment, landed, start)
        return LossTerms(terms, weights, metrics)

    def trajectory(self, batch: Batch, rng: Rng) -> Float[Tensor, "b k *d"]:
        """Return the stored trajectories, or fresh ones of the guided teacher; UserError for what does not fit."""
        found, keys = batch.cond.get(STATES), len(self.grid)
        if found is None:
            check(
                self.config.segment_steps > 0,
                f"recipe 'accvideo': no trajectories in this data: prepare it with --keys {keys}, or set segment_steps",
            )
            fine = self.config.fine_grid(self.process)
            guided = Guided(self.actors.denoiser("teacher"), self.config.guidance_scale)
            fork, shape, dtype = rng.across_phases("trajectory"), self.actors.shape, self.actors.dtype
            with torch.no_grad():
                return teacher_trajectory(guided, shape, batch.cond, fork, grid=fine, keys=keys, dtype=dtype)
        check(
            tuple(found.shape[1:]) == (keys + 1, *self.actors.shape),
            f"recipe 'accvideo': {keys} student steps need trajectories of {keys + 1} states {self.actors.shape}, "
            f"got {tuple(found.shape[1:])}",
        )
        stored = batch.cond.get(TIMES)
        if stored is not None and not stored.is_meta:
            own = torch.tensor(self.grid, dtype=torch.float64)
            check(
                torch.allclose(stored.cpu().double(), own.expand(len(stored), -1), rtol=1e-4, atol=1e-6),
                f"recipe 'accvideo': trajectories were stored at the times {_short(stored[0])} and the student steps "
                f"from {_short(own)}: set student_times, or prepare them again",
            )
        return found

    def regression(self, segment: int, states: Tensor, cond: Cond) -> Float[Tensor, " b"]:
        """Return the weighted error of the x0 whose single step lands on the segment's end."""
        x, end, config = states[:, segment], states[:, segment + 1], self.config
        t = times(self.grid[segment], len(x), x.device)
        before, anchor = self.process.coefficients(t), self.anchor(cond)
        target = back_out(x, end, before, level(self.process, self.end(segment, x), x), anchor)
        predicted = self.actors.denoiser("student").x0(x.to(self.actors.dtype), t, cond)
        weight = denoising_weight(
            config.weighting, before.alpha, before.sigma, gamma=config.min_snr_gamma, sigma_data=config.sigma_data
        )
        return denoising_loss(predicted, target, weight)

    def start(self, segment: int, states: Tensor, cond: Cond, rng: Rng) -> Entry:
        """Return where the student's step over a segment starts: fresh noise, or the oldest state in the queue."""
        dtype, batch = self.actors.dtype, rng.batch or len(rng.ids)
        if segment == 0:
            noise = rng.across_phases("accvideo").normal("noise", self.actors.shape, dtype)
            x = initial_state(self.process, noise, self.grid[0], cond)
            return Entry(rng.ids, x, states[:, 1:].to(dtype), cond, batch)
        waiting = self.queues.oldest(segment, rng.ids, states.device)
        own = Entry(rng.ids, states[:, segment].to(dtype), states[:, segment + 1 :].to(dtype), cond, batch)
        return waiting or own

    def land(self, segment: int, start: Entry) -> Float[Tensor, "b *d"]:
        """Return where one step of the student over the segment leads."""
        t = times(self.grid[segment], len(start.x), start.x.device)
        clean = self.actors.denoiser("student").clean(start.x, t, start.cond)
        after = level(self.process, self.end(segment, start.x), start.x)
        return first_order_step(clean, after, anchor=self.anchor(start.cond)).to(start.x.dtype)

    def push(self, segment: int, landed: Tensor, start: Entry) -> None:
        """Keep where the student is for its next step; states that are not finite are replaced by the real ones."""
        if segment + 1 == len(self.grid):
            return
        real = start.ahead[:, 0]
        good = landed.flatten(1).isfinite().all(1).reshape(-1, *[1] * (landed.ndim - 1))
        kept = torch.where(good, landed, real)
        self.queues.put(segment + 1, Entry(start.ids, kept, start.ahead[:, 1:], start.cond, start.batch))

    def judge(self, segment: int, x: Tensor, cond: Cond) -> Float[Tensor, "b p"]:
        """Return the logits of states at the end of a segment, by the heads of that key time."""
        end = self.end(segment, x)
        t = times(self.process.t_min, len(x), x.device) if end is None else end  # clean is what least noise is told
        found = self.actors.roles[head(len(self.grid) - 1 - segment)]
        assert isinstance(found, Discriminator)
        return found.patch_logits(x, t, cond)

    def head_terms(self, segment: int, start: Entry) -> LossTerms:
        """Return the loss of the heads on the stored state and on the student's."""
        with torch.no_grad():
            landed = self.land(segment, start)
        real, fake = (self.judge(segment, x, start.cond) for x in (start.ahead[:, 0], landed))
        right = (real > 0).double().mean(1) / 2 + (fake < 0).double().mean(1) / 2
        metrics = {"real_logit": sample_mean(real), "fake_logit": sample_mean(fake), "accuracy": right}
        return LossTerms(
            {"discriminator": discriminator_loss(real, fake, self.config.adversarial)},
            {"discriminator": self.config.adversarial_weight},
            {name: value.detach() for name, value in metrics.items()},
        )

    def end(self, segment: int, like: Tensor) -> Float[Tensor, " b"] | None:
        """Return the time a segment ends at, None for clean data."""
        last = segment + 1 == len(self.grid)
        return None if last else times(self.grid[segment + 1], len(like), like.device)

    def anchor(self, cond: Cond) -> Tensor | None:
        """Return the condition's anchor where the process has one."""
        return cond.get("anchor") if self.process.has_anchor else None

    def after_step(self, step: int) -> None:
        """Move on: states that were stepped from are gone, those the student reached wait in the next queue."""
        self.queues.finish(self._segment)
        self._segment = None

    def state(self) -> dict[str, Tensor]:
        """Return the entries of the queues."""
        return self.queues.state(self.actors.total)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the queues; UserError for those of another number of steps."""
        self._segment = None
        self.queues.load(state)

    @property
    def _relative(self) -> bool:
        return self.config.adversarial == "relativistic"


def _short(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.tolist())
