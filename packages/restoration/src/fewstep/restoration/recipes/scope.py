"""How far a sample is re-noised before it is judged: always as far, ever less far, or as far as it is from its target.

A scope maps ``(z, reference, step)`` to the greatest fraction of the process's clock a sample's noise level is drawn
up to. It is a controller, not a loss: nothing is differentiated through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check


class NoiseScope(Protocol):
    """Anything that can be called like this; ``reference``: the target of each sample, None where there is no data."""

    def __call__(
        self, z: Float[Tensor, "b *d"], reference: Float[Tensor, "b *d"] | None, step: int
    ) -> Float[Tensor, " b"]:
        """Return the upper end of each sample's noise levels, a fraction of the clock, float64, detached."""


@dataclass(frozen=True)
class ConstantScope:
    """The same range for every sample at every step: plain distribution matching."""

    high: float

    def __call__(self, z: Tensor, reference: Tensor | None, step: int) -> Float[Tensor, " b"]:
        """Return ``high``."""
        return torch.full((len(z),), self.high, dtype=torch.float64, device=z.device)


@dataclass(frozen=True)
class LinearScope:
    """From ``high`` to ``low`` over the first ``steps`` steps."""

    low: float
    high: float
    steps: int

    def __call__(self, z: Tensor, reference: Tensor | None, step: int) -> Float[Tensor, " b"]:
        """Return what is in force at ``step``."""
        value = self.high + min(step / self.steps, 1.0) * (self.low - self.high)
        return torch.full((len(z),), value, dtype=torch.float64, device=z.device)


class Discrepancy:
    """How far samples are from their targets, ``|z - reference| / |reference|``, in units of how far they once were.

    The unit is the mean over the first ``steps`` steps, each step's over all samples of all processes; until then that
    of the steps so far, and before the first one ends every ratio is 1. So no number depends on how a batch is cut.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.value = torch.zeros(2, dtype=torch.float64)  # sum of the steps' means, their number
        self._sums = torch.zeros(2, dtype=torch.float64)  # of this step: sum over samples, their number
        self._seen = False

    @staticmethod
    def distance(z: Float[Tensor, "b *d"], reference: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return the relative distance of each sample, float64, detached."""
        made, target = (x.detach().double().flatten(1) for x in (z, reference))
        found: Tensor = (made - target).norm(dim=1) / target.norm(dim=1).clamp_min(1e-6)
        return found

    def ratio(self, z: Float[Tensor, "b *d"], reference: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return the distance in units of the first ones."""
        found = self.distance(z, reference)
        total, count = self.value.to(found.device)
        unit = (total / count.clamp_min(1)).clamp_min(1e-12)
        return torch.where(count > 0, found / unit, torch.ones_like(found))

    def add(self, z: Float[Tensor, "b *d"], reference: Float[Tensor, "b *d"]) -> None:
        """Count the samples of a (micro-)batch."""
        found = self.distance(z, reference)
        self._sums = self._sums.to(found.device) + torch.stack([found.sum(), torch.ones_like(found).sum()])
        self._seen = True

    def finish(self, total: Callable[[Tensor], Tensor] | None) -> None:
        """Take this step's mean in, summed over processes by ``total``, if it is one of the first, and finite."""
        if not self._seen:
            return
        sums = self._sums if total is None else total(self._sums)
        old, (added, count) = self.value.to(sums.device), sums
        mean = added / count.clamp_min(1)
        # an update with a value that is not finite is skipped by the loop and must not live on here
        counts = (old[1] < self.steps) & mean.isfinite()
        self.value = torch.where(counts, old + torch.stack([mean, torch.ones_like(mean)]), old)
        self._sums, self._seen = torch.zeros_like(self._sums), False

    def state(self) -> Tensor:
        """Return what a checkpoint keeps."""
        return self.value.cpu().clone()

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Restore it from ``state[name]`` and forget this step's samples; UserError when it does not fit."""
        found = state.get(name)
        if found is None or found.shape != self.value.shape:
            raise UserError(f"the checkpoint has no '{name}' of two numbers: another config?")
        self.value, self._seen = found.double(), False
        self._sums = torch.zeros(2, dtype=torch.float64)


@dataclass(frozen=True)
class DiscrepancyScope:
    """From ``low`` for samples on their target to ``high`` for those as far from it as at first, or farther."""

    low: float
    high: float
    discrepancy: Discrepancy

    def __call__(self, z: Tensor, reference: Tensor | None, step: int) -> Float[Tensor, " b"]:
        """Return ``low + (high - low) min(ratio, 1)``; UserError without targets."""
        if reference is None:
            raise UserError("recipe.scope.mode: 'discrepancy' compares samples with data and there is none")
        return self.low + (self.high - self.low) * self.discrepancy.ratio(z, reference).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class ScopeConfig:
    """Which scope; the paper's map is not published.

    ``mode``: ``discrepancy`` (the sample's own, see :class:`Discrepancy`), ``linear`` in the step, or ``constant``.
    ``low``: the narrowest upper end, a fraction of the clock (100 of 1000 steps). ``first_steps``: over how many the
    discrepancy's unit is taken. ``decay_steps``: of the linear one.
    """

    mode: Literal["discrepancy", "linear", "constant"] = "discrepancy"
    low: float = 0.1
    first_steps: int = 100
    decay_steps: int = 10_000

    def __post_init__(self) -> None:
        check(0 < self.low <= 1, f"scope.low must lie in (0, 1], got {self.low:g}")
        check(self.first_steps >= 1, f"scope.first_steps must be at least 1, got {self.first_steps}")
        check(self.decay_steps >= 1, f"scope.decay_steps must be at least 1, got {self.decay_steps}")

    def make(self, high: float, discrepancy: Discrepancy) -> NoiseScope:
        """Return the scope whose widest upper end is ``high``."""
        if self.mode == "constant":
            return ConstantScope(high)
        if self.mode == "linear":
            return LinearScope(self.low, high, self.decay_steps)
        return DiscrepancyScope(self.low, high, discrepancy)
