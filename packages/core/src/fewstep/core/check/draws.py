"""Draws that are not random: nodes of a quadrature, ends of a range, unit impulses.

Recipes take every number from the :class:`~fewstep.core.rng.Rng` they are given. Given one of these instead, a loss is
integrated exactly, or met at the extremes of its laws, without changing a line of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from fewstep.core.analytic import GaussGrid
from fewstep.core.rng import Rng


@dataclass(frozen=True)
class _Scripted(Rng):
    """An Rng whose uniforms are all ``u``, scalar normals (noise levels) ``level``, whole numbers a share ``pick``."""

    u: float = 0.5
    level: float = 0.0
    pick: float = 0.5

    def integers(self, stream: str, high: int) -> Int[Tensor, " b"]:
        """Return ``floor(pick high)`` for every sample."""
        return torch.full((len(self.ids),), self.shared_integer(stream, high))

    def shared_integer(self, stream: str, high: int) -> int:
        """Return ``floor(pick high)``."""
        return min(int(self.pick * high), high - 1)

    def _fill(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], normal: bool, double: bool) -> Tensor:
        dtype = torch.float64 if double else torch.float32
        if normal and shape:
            return self._noise(f"{self.scope}:{stream}", shape, ids, dtype)
        return torch.full((len(ids), *shape), self.level if normal else self.u, dtype=dtype)

    def _noise(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class LevelRng(_Scripted):
    """Draws at one place of every law of noise levels, such as an end; the noise itself is ordinary."""

    def _noise(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return Rng(self.seed, self.step, ids).normal(stream, shape, dtype)


@dataclass(frozen=True)
class StreamRng(_Scripted):
    """Ordinary noise, with a list of the streams of noise that were asked for."""

    streams: list[str] = field(default_factory=list)

    def _noise(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if stream not in self.streams:
            self.streams.append(stream)
        return Rng(self.seed, self.step, ids).normal(stream, shape, dtype)


@dataclass(frozen=True)
class GridRng(_Scripted):
    """Noise at the nodes of a quadrature: the streams of ``axes``, in this order, are its axes.

    For samples of one element; samples are the nodes.
    """

    grid: GaussGrid = GaussGrid(torch.zeros(1, 1, 1), torch.ones(1))
    axes: tuple[str, ...] = ()

    def _noise(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.grid.noise[self.axes.index(stream)].reshape(len(ids), *shape).to(dtype)


@dataclass(frozen=True)
class ImpulseRng(_Scripted):
    """Noise that is zero for every sample but one per stream, where it is 1: an affine map shows its coefficients.

    Sample 0 sees no noise; sample 1 is left to the caller; the streams asked for go to samples 2, 3, ...
    """

    streams: list[str] = field(default_factory=list)

    def _noise(self, stream: str, shape: tuple[int, ...], ids: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if stream not in self.streams:
            self.streams.append(stream)
        noise = torch.zeros(len(ids), *shape, dtype=dtype)
        noise[2 + self.streams.index(stream)] = 1
        return noise
