"""Gaussian data under any process: posterior, score, density and flow map in closed form."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.analytic.exact import ExactDenoiser, Level
from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.prediction import Clean, Kind
from fewstep.core.process import Process
from fewstep.core.rng import Rng

Number = float | Tensor


class GaussianTeacher(ExactDenoiser):
    """The exact denoiser of data ``N(mean, covariance)`` (score-divergence theory, test bed A).

    ``mean``: a number or "*d". The covariance is ``std^2 I`` for a number, diagonal for ``std`` "*d", or
    ``covariance`` "n n" over the flattened sample. Gradients reach ``mean`` and ``std``; :meth:`frozen` cuts them.
    Raises UserError when neither or both of ``std`` and ``covariance`` are given, or ``covariance`` is not positive
    definite.
    """

    def __init__(
        self,
        process: Process,
        mean: Number,
        std: Number | None = None,
        *,
        covariance: Float[Tensor, "n n"] | None = None,
        kind: Kind = Kind.X0,
    ) -> None:
        super().__init__(process, kind)
        check((std is None) != (covariance is None), "GaussianTeacher: give either std or covariance")
        self.mean = torch.as_tensor(mean, dtype=None if isinstance(mean, Tensor) else torch.float64)
        self.basis: Tensor | None = None
        if covariance is not None:
            variances, self.basis = torch.linalg.eigh(covariance)
            check(bool((variances > 0).all()), "GaussianTeacher: covariance must be positive definite")
            std = variances.sqrt()
        self.std = torch.as_tensor(std, dtype=None if isinstance(std, Tensor) else torch.float64)

    def frozen(self) -> GaussianTeacher:
        """Return the same law with parameters that receive no gradient; the input stays attached."""
        copy = GaussianTeacher(self.process, self.mean.detach().clone(), self.std.detach().clone(), kind=self.kind)
        copy.basis = None if self.basis is None else self.basis.detach().clone()
        return copy

    def _into(self, x: Tensor) -> Tensor:
        """Return ``x`` in the coordinates in which the covariance is diagonal."""
        return x if self.basis is None else x.flatten(1) @ self.basis.to(x)

    def _out_of(self, y: Tensor, like: Tensor) -> Tensor:
        return y if self.basis is None else (y @ self.basis.to(y).mT).reshape(like.shape)

    def _parts(self, level: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean and, in diagonal coordinates, the offset ``x - alpha mean``, data variance, variance of x_t."""
        mean = self.mean.to(level.core)
        offset = self._into(level.core - level.alpha * mean)
        square = self.std.to(offset) ** 2
        alpha, sigma = (x.reshape(-1, *([1] * (offset.ndim - 1))) for x in (level.alpha, level.sigma))
        return mean, offset, square, alpha**2 * square + sigma**2

    def exact_clean(self, level: Level, cond: Cond) -> Clean:
        """Return ``mean + alpha v (x - alpha mean)/V`` and ``sigma (x - alpha mean)/V``, V = alpha^2 v + sigma^2."""
        mean, offset, square, variance = self._parts(level)
        x0 = mean + level.alpha * self._out_of(square / variance * offset, level.core)
        return Clean(x0, level.sigma * self._out_of(offset / variance, level.core))

    def exact_score(self, level: Level, cond: Cond) -> Tensor:
        """Return ``-(x - alpha mean)/V``."""
        _, offset, _, variance = self._parts(level)
        return -self._out_of(offset / variance, level.core)

    def log_density(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """Return the log-density of ``x_t``, normalised, "b"."""
        _, offset, _, variance = self._parts(self.level(x_t, t, cond))
        terms = -(offset**2 / variance + (2 * math.pi * variance).log()) / 2
        return terms.reshape(len(x_t), -1).sum(1)

    def _jacobian(self, level: Level, diagonal: Tensor, offset: Tensor) -> Tensor:
        matrix = torch.diag_embed(diagonal.expand_as(offset).reshape(len(offset), -1))
        return matrix if self.basis is None else self.basis.to(matrix) @ matrix @ self.basis.to(matrix).mT

    def score_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return ``-1/V``, the same everywhere."""
        level = self.level(x_t, t, cond)
        _, offset, _, variance = self._parts(level)
        return self._jacobian(level, -1 / variance, offset)

    def x0_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return ``alpha v / V``, the same everywhere."""
        level = self.level(x_t, t, cond)
        _, offset, square, variance = self._parts(level)
        alpha = level.alpha.reshape(-1, *([1] * (offset.ndim - 1)))
        return self._jacobian(level, alpha * square / variance, offset)

    def flow_map(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], s: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        """Return ``alpha_s mean + sqrt(V_s/V_t) (x_t - alpha_t mean)`` (trajectory theory, section 6)."""
        anchor = (cond or {}).get("anchor")
        start = self.level(x_t, t, cond)
        end = self.level_of(start.core, s)
        mean, offset, _, before = self._parts(start)
        after = self._parts(end)[3]
        moved = end.alpha * mean + self._out_of((after / before).sqrt() * offset, start.core)
        return self.process.offset(moved, s, anchor, sign=1.0)

    def sample(
        self, rng: Rng, cond: Cond | None = None, *, stream: str = "data", dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b *d"]:
        """Return one sample of the data law per sample of ``rng``; ``mean`` or ``std`` must have the sample's shape."""
        shape = (self.mean + self.std).shape if self.basis is None else self.mean.shape
        noise = rng.normal(stream, tuple(shape), dtype)
        std = self.std.to(noise)
        if self.basis is None:
            return self.mean.to(noise) + std * noise
        return self.mean.to(noise) + self._out_of(std * noise.flatten(1), noise)


def linear_generator_score(process: Process, k: Number, b: Number, *, kind: Kind = Kind.X0) -> GaussianTeacher:
    """Return the exact fake score of the generator ``x0 = k z + b``, z unit normal: the denoiser of ``N(b, k^2)``.

    ``k``, ``b``: numbers or "*d", elementwise. Attached to both; losses want it :meth:`GaussianTeacher.frozen`.
    """
    return GaussianTeacher(process, b, k, kind=kind)
