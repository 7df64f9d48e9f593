"""Running averages of a role's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError, check
from fewstep.core.tensors import precise


@runtime_checkable
class DecayLaw(Protocol):
    """The decay as a function of the number of updates made, the current one included (from 1)."""

    def decay(self, update: int) -> float:
        """Return the share of the old average that is kept."""


def _ramped(decay: float, update: int, warmup: int) -> float:
    """The time constant 1/(1 - decay) grows linearly from 1, no averaging, over ``warmup`` updates."""
    if update > warmup:
        return decay
    return 1 - 1 / (1 + (1 / (1 - decay) - 1) * (update - 1) / warmup)


@dataclass(frozen=True)
class ConstantDecay:
    """``beta`` at every update; the weight of the value k updates ago is ``(1 - beta) beta^k``.

    Over the first ``warmup`` updates the time constant ``1/(1 - beta)`` grows linearly from 1.
    """

    beta: float
    warmup: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.beta < 1, f"an EMA decay must lie in [0, 1), got {self.beta:g}")
        check(self.warmup >= 0, f"EMA warm-up must be at least 0 updates, got {self.warmup}")

    def decay(self, update: int) -> float:
        """Return ``beta``, less of it during the warm-up."""
        return _ramped(self.beta, update, self.warmup)


@dataclass(frozen=True)
class HalfLife:
    """The weight of a value halves every ``samples`` training samples: independent of the batch size."""

    samples: float
    batch: int
    warmup: int = 0

    def __post_init__(self) -> None:
        check(self.samples > 0 and self.batch > 0, "an EMA half-life needs positive samples and batch")
        check(self.warmup >= 0, f"EMA warm-up must be at least 0 updates, got {self.warmup}")

    def decay(self, update: int) -> float:
        """Return ``0.5^(batch/samples)``, less during the warm-up."""
        return _ramped(0.5 ** (self.batch / self.samples), update, self.warmup)


@dataclass(frozen=True)
class PowerFunction:
    """EDM2's power-function average (arXiv 2312.02696, section 3.1): after n updates the i-th weighs like ``i^gamma``.

    ``std`` is the profile's standard deviation relative to the training length, below ``1/sqrt(12)`` (gamma 0).
    """

    std: float

    def __post_init__(self) -> None:
        check(0 < self.std < 12**-0.5, f"a power-function EMA needs 0 < std < 0.2887, got {self.std:g}")

    @property
    def gamma(self) -> float:
        """Return the exponent: the positive root of ``std^2 (g+2)^2 (g+3) = g+1``."""
        inverse = self.std**-2
        roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
        return float(roots.real.max())

    def decay(self, update: int) -> float:
        """Return ``(1 - 1/n)^(gamma+1)``: the first update replaces the average."""
        return math.pow(1 - 1 / update, self.gamma + 1)


class EMA:
    """The average of a module's parameters and floating-point buffers; other buffers are copied.

    Kept in float32 at least. Starts at the module's present values; a :class:`PowerFunction` forgets them at once.
    """

    def __init__(self, module: nn.Module, law: DecayLaw) -> None:
        self.module, self.law, self.updates = module, law, 0
        self._average = {name: precise(x).clone() if x.is_floating_point() else x.clone() for name, x in self._live()}

    def _live(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, parameter.detach()
        yield from self.module.named_buffers()

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present values in."""
        self.updates += 1
        keep = self.law.decay(self.updates)
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, live in self._live():
            average = self._average[name]
            if live.is_floating_point():
                floats[0].append(average)
                floats[1].append(live.to(average.dtype))
            else:
                average.copy_(live)
        if keep == 0:
            torch._foreach_copy_(*floats)
        elif floats[0]:
            torch._foreach_lerp_(*floats, 1 - keep)

    def tensors(self) -> list[Tensor]:
        """Return the averages of the parameters, in the module's order and dtype."""
        return [self._average[name].to(live.dtype) for name, live in self.module.named_parameters()]

    def averages(self) -> list[Tensor]:
        """Return the averages themselves, buffers included."""
        return list(self._average.values())

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Put the averages into the module for what is inside, and its own values back afterwards, whatever happens."""
        own = {name: live.clone() for name, live in self._live()}
        self.copy_to(self.module)
        try:
            yield
        finally:
            _assign(self.module, own)

    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into a module of the same structure."""
        _assign(module, self._average)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name, and the number of updates."""
        return {**{f"average.{k}": v.clone() for k, v in self._average.items()}, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave; UserError when it belongs to another network."""
        found = {name.removeprefix("average."): value for name, value in state.items() if name.startswith("average.")}
        same = found.keys() == self._average.keys() and "updates" in state
        if not same or any(found[k].shape != v.shape for k, v in self._average.items()):
            raise UserError("this EMA state belongs to another network: names or shapes differ")
        for name, value in self._average.items():
            value.copy_(found[name])
        self.updates = int(state["updates"])


@torch.no_grad()
def _assign(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, target in (*module.named_parameters(), *module.named_buffers()):
        target.copy_(values[name])
