"""Distances between samples, one value per sample, and between a field and zero with the derivative written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import Reduction, expand_to, numel_per_sample, precise, reduce_sample, sample_sum


def l1(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"], *, reduction: Reduction = "mean") -> Float[Tensor, " b"]:
    """Return ``|x - y|``, averaged or summed over a sample's elements."""
    return reduce_sample((precise(x) - precise(y)).abs(), reduction)


def l2(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"], *, reduction: Reduction = "mean") -> Float[Tensor, " b"]:
    """Return ``(x - y)^2``, averaged or summed over a sample's elements; no factor 1/2."""
    return reduce_sample((precise(x) - precise(y)).square(), reduction)


def huber_scale(x: Float[Tensor, "b *d"], factor: float = 0.00054) -> float:
    """Return ``factor sqrt(n)``, n elements per sample: iCT's ``c`` of the pseudo-Huber distance (arXiv 2310.14189)."""
    return float(factor * numel_per_sample(x) ** 0.5)


def pseudo_huber(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"], c: float) -> Float[Tensor, " b"]:
    """Return ``sqrt(|x - y|^2 + c^2) - c`` with the norm over the whole sample (arXiv 2310.14189).

    Raises UserError unless ``c > 0``.
    """
    check(c > 0, f"pseudo-Huber: c must be positive, got {c:g}")
    square = sample_sum((precise(x) - precise(y)).square())
    return square / ((square + c**2).sqrt() + c)  # no difference of near-equal numbers for x close to y


def pseudo_huber_elementwise(
    x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"], c: float, *, reduction: Reduction = "mean"
) -> Float[Tensor, " b"]:
    """Return ``sqrt((x - y)^2 + c^2) - c`` element by element, then averaged or summed (LCM's and TDM's code).

    Not the loss of :func:`pseudo_huber`: it clips elements, not samples. Raises UserError unless ``c > 0``.
    """
    check(c > 0, f"pseudo-Huber: c must be positive, got {c:g}")
    square = (precise(x) - precise(y)).square()
    return reduce_sample(square / ((square + c**2).sqrt() + c), reduction)


class Distance(ABC):
    """A function ``d`` of a vector "b *d", as score-implicit matching needs it: its value and its derivative."""

    @abstractmethod
    def value(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return ``d(y)`` per sample."""

    @abstractmethod
    def gradient(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return ``d'(y)``, differentiable in ``y``."""


@dataclass(frozen=True)
class SquaredL2(Distance):
    """``d(y) = |y|^2``, summed over a sample's elements."""

    def value(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return the squared norm."""
        return sample_sum(precise(y).square())

    def gradient(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return ``2 y``."""
        return 2 * precise(y)


@dataclass(frozen=True)
class PseudoHuber(Distance):
    """``d(y) = sqrt(|y|^2 + c^2) - c``, norm over the whole sample (arXiv 2410.16794)."""

    c: float

    def __post_init__(self) -> None:
        check(self.c > 0, f"pseudo-Huber: c must be positive, got {self.c:g}")

    def value(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return the distance of ``y`` from zero."""
        return pseudo_huber(y, torch.zeros_like(y), self.c)

    def gradient(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return ``y / sqrt(|y|^2 + c^2)``: of length below 1 whatever ``y``."""
        y = precise(y)
        return y / expand_to((sample_sum(y.square()) + self.c**2).sqrt(), y)


@dataclass(frozen=True)
class Power(Distance):
    """``d(y) = (|y|^2 + floor)^(p/2)``; ``floor`` keeps the derivative finite at zero for ``p < 2``."""

    p: float
    floor: float = 1e-12

    def __post_init__(self) -> None:
        check(self.p >= 1, f"power distance: p must be at least 1, got {self.p:g}")

    def value(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """Return the distance of ``y`` from zero."""
        return (sample_sum(precise(y).square()) + self.floor) ** (self.p / 2)

    def gradient(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """Return ``p (|y|^2 + floor)^(p/2 - 1) y``."""
        y = precise(y)
        return expand_to(self.p * (sample_sum(y.square()) + self.floor) ** (self.p / 2 - 1), y) * y
