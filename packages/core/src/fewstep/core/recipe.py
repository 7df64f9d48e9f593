"""What a distillation method is: roles, phases, and a loss per phase. No optimizer, no device, no file, no logger.

The loop (:mod:`fewstep.core.training`) reads a recipe and does the rest. To write a recipe: subclass :class:`Recipe`,
declare ``role_specs`` and ``phases``, and write ``loss``. Every random number comes from the ``rng`` passed in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Backbone, Cond, Denoiser, NetworkDenoiser, batch_of
from fewstep.core.errors import UserError, nearest
from fewstep.core.process import Process
from fewstep.core.rng import Rng

STATES, TIMES = "trajectory", "trajectory_times"
"""Condition entries of data that keeps a teacher's trajectories: states "b k+1 *d", noise first and clean last, and the
times "b k" of all but that."""


@dataclass(frozen=True)
class Batch:
    """What the data gives one step: a condition, and clean samples "b *d" where the domain has them."""

    size: int
    cond: Cond = field(default_factory=dict)
    x0: Tensor | None = None
    device: torch.device | str = "cpu"

    def select(self, start: int, stop: int) -> Batch:
        """Return a slice of the samples (a micro-batch)."""
        x0 = None if self.x0 is None else self.x0[start:stop]
        return Batch(stop - start, batch_of(self.cond, start, stop), x0, self.device)

    def clean_samples(self, who: str) -> Tensor:
        """Return ``x0``; UserError naming the recipe when the domain gives none."""
        if self.x0 is None:
            raise UserError(
                f"recipe '{who}' needs clean samples and this data has none: use a data-free recipe or give data"
            )
        return self.x0


Judge = Callable[[Tensor, Batch], Tensor]
"""Maps samples "b *d" and the batch they were made under to numbers "b", lower is better.

Called under no_grad on detached samples: it need not be differentiable, nor smooth.
"""


@dataclass(frozen=True)
class RoleSpec:
    """A network a recipe needs.

    ``kind``: a denoiser, a discriminator on features of a denoiser, or an auxiliary module that the recipe itself
    makes: ``build(seed)``. ``init``: a copy of the teacher, fresh weights, or the frozen teacher itself. A role that no
    phase trains is frozen, and saved with the others. ``extras``: additional network inputs ("guidance", "end_time").
    ``ema``: keep an EMA copy that samples and is exported. ``features_of``: the denoiser role whose features a
    discriminator reads; ``taps``: which, where that is the recipe's to say and not ``roles.discriminator``'s.
    """

    name: str
    kind: Literal["denoiser", "discriminator", "module"] = "denoiser"
    init: Literal["teacher", "fresh", "frozen"] = "teacher"
    extras: tuple[str, ...] = ()
    ema: bool = False
    features_of: str = ""
    taps: tuple[str, ...] = ()
    build: Callable[[int], nn.Module] | None = None


@dataclass(frozen=True)
class Phase:
    """One optimizer update: which roles it trains, on every ``every``-th step, from step ``start`` to before ``stop``.

    Steps count from 0; the phase runs when ``step >= start`` and ``(step + 1) % every == offset``, but not when
    ``skip > 0`` and ``(step + 1) % skip == 0`` (phases that alternate). ``offset``: for phases that take turns. Without
    ``stop`` (None) it does not end.
    """

    name: str
    trains: tuple[str, ...]
    every: int = 1
    start: int = 0
    skip: int = 0
    offset: int = 0
    stop: int | None = None

    def due(self, step: int) -> bool:
        """Return whether the phase runs at ``step``."""
        if self.stop is not None and step >= self.stop:
            return False
        if self.skip > 0 and (step + 1) % self.skip == 0:
            return False
        return step >= self.start and (step + 1) % self.every == self.offset


@dataclass(frozen=True)
class LossTerms:
    """Named per-sample losses "b" with weights, and per-sample quantities to log.

    What is minimised is the batch mean of ``sum_i weight_i term_i``. ``more``: whether :meth:`Recipe.losses` goes on
    after this one.
    """

    terms: Mapping[str, Float[Tensor, " b"]]
    weights: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)
    more: bool = False

    def total(self) -> Float[Tensor, " b"]:
        """Return the weighted sum, one value per sample."""
        parts = [self.weights.get(name, 1.0) * value for name, value in self.terms.items()]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class StepPlan:
    """How a student samples: its times, noisiest first, and how it moves between them.

    ``mode``: ``renoise`` (predict x0, add fresh noise at the next time), ``deterministic`` (DDIM step to the next time)
    or ``jump`` (DDIM jump to ``(1 - gamma)`` of the next time, then noise up to it: TCD).
    ``extras``: constant condition entries given at every step (e.g. an embedded guidance scale).
    ``end``: the last step returns the predicted x0 (``clean``), or jumps by DDIM to the least noise of the process
    (``t_min``), which is what students trained on jumps learn. ``end_time``: the student is told where each step ends,
    as ``cond["end_time"]`` in the network's own time units. ``start``: from noise, or from ``cond["anchor"]`` as it is,
    taken for the state at the first time.
    """

    times: tuple[float, ...]
    mode: Literal["renoise", "deterministic", "jump"] = "renoise"
    gamma: float = 0.0
    extras: Mapping[str, float] = field(default_factory=dict)
    end: Literal["clean", "t_min"] = "clean"
    end_time: bool = False
    start: Literal["noise", "anchor"] = "noise"


@dataclass
class Actors:
    """Everything a recipe plays with: built by a domain, or by hand in one's own loop.

    ``roles``: denoisers (and discriminators) by name; ``student`` and usually ``teacher`` are among them.
    ``shape``: of one sample. ``generate``: for domains whose student is not a denoiser (a scene that is rendered): maps
    ``(batch, rng)`` to teacher-space samples with gradient and the condition they are to be judged under.
    ``penalties``: what such a student has against itself after ``generate``, named numbers with gradient that the loop
    adds to the loss of phases that train it. ``averaged``: set by the loop; gives the weights of a role that would be
    exported now (its EMA, parameters in order), for recipes that promote a student. Without it, the live weights are
    taken. ``total``: set by the loop; sums a tensor over all processes, for recipes that keep running means over the
    global batch. Without it, this process is taken to be alone. ``dtype``: of the noise recipes draw. ``judges``: what
    samples are ranked by where a method learns from preferences, the usual one first.
    """

    roles: dict[str, Any]
    process: Process
    shape: tuple[int, ...]
    generate: Callable[[Batch, Rng], tuple[Tensor, Cond]] | None = None
    penalties: Callable[[Rng], Mapping[str, Tensor]] | None = None
    averaged: Callable[[str], list[Tensor]] | None = None
    total: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32
    judges: Mapping[str, Judge] = field(default_factory=dict)

    def denoiser(self, name: str) -> Denoiser:
        """Return a denoiser role; UserError when it is absent or something else."""
        role = self.roles.get(name)
        if not isinstance(role, Denoiser):
            raise UserError(f"role '{name}' must be a denoiser here; this domain gives {sorted(self.roles)}")
        return role

    def judge(self, name: str = "") -> Judge:
        """Return a judge by name, the first for ""; UserError naming the nearest one, and where there is none."""
        if not self.judges:
            raise UserError("this recipe ranks samples and this domain gives no judge: fill in Actors.judges")
        if name and name not in self.judges:
            raise UserError(f"recipe.metric: no judge '{name}' in this domain: {nearest(name, self.judges)}")
        return self.judges[name] if name else next(iter(self.judges.values()))

    def module(self, name: str) -> nn.Module:
        """Return the module that holds a role's parameters."""
        role = self.roles.get(name)
        if isinstance(role, NetworkDenoiser):
            return role.backbone
        if isinstance(role, nn.Module):
            return role
        raise UserError(f"role '{name}' has no parameters to train; this domain gives {sorted(self.roles)}")


class Recipe(ABC):
    """A method bound to its actors. ``config`` is a frozen dataclass of the recipe's own settings."""

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    config_type: ClassVar[type]

    def __init__(self, config: Any, actors: Actors) -> None:
        self.config, self.actors = config, actors
        for spec in self.role_specs(config):
            if spec.name not in actors.roles and not (spec.name == "student" and actors.generate is not None):
                raise UserError(
                    f"recipe '{self.name}' needs a role '{spec.name}'; this domain gives {sorted(actors.roles)}"
                )

    @classmethod
    @abstractmethod
    def role_specs(cls, config: Any) -> tuple[RoleSpec, ...]:
        """Return the roles needed under ``config``."""

    @classmethod
    @abstractmethod
    def phases(cls, config: Any) -> tuple[Phase, ...]:
        """Return the phases, in the order they run within a step."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of one phase on one (micro-)batch."""

    def losses(self, phase: str, batch: Batch, rng: Rng, step: int) -> Iterator[LossTerms]:
        """Yield losses whose sum is that of :meth:`loss`, all but the last with ``more``; by default that one.

        For methods with several graphs a step, of which no two are to be in memory: each has had its backward, and
        gave up its graph, before the next is asked for. They share one update and one stream of network noise.
        """
        yield self.loss(phase, batch, rng, step)

    @classmethod
    @abstractmethod
    def plan(cls, config: Any, process: Process, num_steps: int) -> StepPlan:
        """Return how the trained student samples in ``num_steps``; UserError when it was not made for that many."""

    @classmethod
    def student_view(cls, config: Any, student: Denoiser) -> Denoiser:
        """Return the student as it is sampled from: itself, or a parameterisation of it (a consistency function)."""
        return student

    def reset_optimizers(self, step: int) -> bool:
        """Return whether optimizers and EMA start afresh after ``step`` (a new round); asked after ``after_step``."""
        return False

    def lr_factor(self, step: int) -> float:
        """Return what the scheduled learning rate is multiplied with at ``step`` (annealing within a round)."""
        return 1.0

    def after_step(self, step: int) -> None:  # noqa: B027 (most recipes have nothing to do)
        """Do what the method does between steps (move an EMA target, promote a student); called once all phases ran."""

    def state(self) -> dict[str, Tensor]:
        """Return tensors that belong in a checkpoint besides networks and optimizers (restored by ``load_state``)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave; UserError when something is missing."""
        if state:
            raise UserError(f"recipe '{self.name}' keeps no state, but the checkpoint has {sorted(state)}")


__all__ = [
    "Actors",
    "Backbone",
    "Batch",
    "Judge",
    "LossTerms",
    "Phase",
    "Recipe",
    "RoleSpec",
    "STATES",
    "StepPlan",
    "TIMES",
]
