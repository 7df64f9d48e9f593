"""Exact test beds of score distillation: Gaussian and mixture teachers, linear generators, quadrature over (z, e).

Written independently of the library's own exact teachers, from the densities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import EDM, CosineVP, Process

F64 = torch.float64


class Mixture(Denoiser):
    """Isotropic mixture data in any dimension; ``cond["label"]`` picks one component per sample."""

    def __init__(self, process: Process, weights, means, stds, kind: Kind = Kind.X0, dtype=F64) -> None:
        self.process, self.kind = process, kind
        self.weights = torch.as_tensor(weights, dtype=dtype)
        means = torch.as_tensor(means, dtype=dtype)
        self.means = means[:, None] if means.ndim == 1 else means
        self.stds = torch.as_tensor(stds, dtype=dtype)

    def null(self, cond: Cond) -> Cond:
        return {name: torch.full_like(value, -1) for name, value in cond.items()}

    def _parts(self, x: Tensor, t: Tensor, cond: Cond):
        c = self.process.coefficients(t)
        a, s = c.alpha.to(x.dtype)[:, None], c.sigma.to(x.dtype)[:, None]
        variance = a**2 * self.stds**2 + s**2  # b k
        offset = x[:, None, :] - a[..., None] * self.means  # b k d
        log_weights = self.weights.log().expand(len(x), -1)
        if "label" in cond:
            chosen = torch.nn.functional.one_hot(cond["label"].long().clamp_min(0), len(self.weights)).bool()
            chosen = chosen | (cond["label"] < 0)[:, None]
            log_weights = torch.where(chosen, log_weights, torch.full_like(log_weights, -math.inf))
            log_weights = log_weights - log_weights.logsumexp(1, keepdim=True)
        square = offset.square().sum(2)
        logs = log_weights - x.shape[1] / 2 * (2 * math.pi * variance).log() - square / (2 * variance)
        return a, s, variance, offset, logs

    def log_density(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self._parts(x, t, cond or {})[4].logsumexp(1)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        a, s, variance, offset, logs = self._parts(x_t, t, cond)
        share = logs.softmax(1)[..., None]
        gain = (a * self.stds**2 / variance)[..., None]
        x0 = (share * (self.means + gain * offset)).sum(1)
        clean = Clean(x0, (x_t - a * x0) / s)
        return Prediction(compose(clean, self.kind, t, self.process), self.kind)


def gaussian(process: Process, mean, std, kind: Kind = Kind.X0, dtype=F64) -> Mixture:
    """N(mean, std^2 I); ``mean`` a number or a vector. Tensors that require grad stay attached."""
    mean = torch.as_tensor(mean, dtype=dtype).reshape(1, -1)
    return Mixture(process, [1.0], mean, torch.as_tensor(std, dtype=dtype).reshape(1), kind, dtype)


class Detached(Denoiser):
    """A denoiser whose parameters are frozen while its input stays attached, whatever it closes over."""

    def __init__(self, mean: Tensor, std: Tensor, process: Process, kind: Kind = Kind.X0, dtype=F64) -> None:
        self.inner = gaussian(process, mean.detach().clone(), std.detach().clone(), kind, dtype)
        self.process = process

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return self.inner.predict(x_t, t, cond)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner.log_density(x, t)


TEACHERS = {
    "R1": ([1.0], [0.7], [0.5]),
    "R2": ([0.3, 0.7], [-2.0, 1.5], [0.4, 0.6]),
}
STUDENTS = {"R1": (1.3, -0.4), "R2": (1.3, 0.4)}
VP_LEVEL = 2 / math.pi * math.asin(0.6)  # alpha 0.8, sigma 0.6 of the cosine process


@dataclass
class Bed:
    """A linear generator ``x0 = k z + b`` against a teacher at one noise level, on a grid of (z, e)."""

    process: Process
    t: Tensor
    k: Tensor
    b: Tensor
    z: Tensor
    e: Tensor
    x0: Tensor
    x_t: Tensor
    alpha: Tensor
    sigma: Tensor
    mass: Tensor
    teacher: Mixture
    fake: Detached

    def mean(self, value: Tensor) -> Tensor:
        return (self.mass * value).sum()

    def gradient(self, value: Tensor) -> tuple[float, float]:
        got = torch.autograd.grad(self.mean(value), [self.k, self.b], retain_graph=True)
        return got[0].item(), got[1].item()

    def view(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return the teacher's and the fake score's predictions as ``kind``, attached to x_t."""
        return self.teacher.view(kind, self.x_t, self.t, {}), self.fake.view(kind, self.x_t, self.t, {})

    def log_ratio(self) -> Tensor:
        return self.teacher.log_density(self.x_t, self.t) - self.fake.log_density(self.x_t, self.t)


def bed(
    name: str = "R2",
    process: Process | None = None,
    t: float = VP_LEVEL,
    *,
    nodes: int = 201,
    student: tuple[float, float] | None = None,
    kind: Kind = Kind.X0,
    dtype: torch.dtype = F64,
) -> Bed:
    """The beds R1 and R2 at alpha 0.8, sigma 0.6 by default."""
    process = process or CosineVP()
    axis = torch.linspace(-9, 9, nodes, dtype=F64)
    density = torch.exp(-(axis**2) / 2)
    density = density / density.sum()
    z, e = (part.reshape(-1, 1) for part in torch.meshgrid(axis, axis, indexing="ij"))
    mass = (density[:, None] * density[None, :]).reshape(-1)
    z, e = z.to(dtype), e.to(dtype)
    k, b = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in student or STUDENTS[name])
    times = torch.full((len(z),), t, dtype=F64)
    c = process.coefficients(times)
    x0 = k * z + b
    x_t = process.add_noise(x0, e, times)
    teacher = Mixture(process, *TEACHERS[name], kind, dtype)
    fake = Detached(b, k, process, kind, dtype)
    return Bed(process, times, k, b, z, e, x0, x_t, c.alpha, c.sigma, mass.to(dtype), teacher, fake)


def edm_bed(name: str = "R2", sigma: float = 0.8, **options) -> Bed:
    """The same data at alpha 1 and the given sigma (bed R3 of the theory by default)."""
    return bed(name, EDM(), sigma, **options)
