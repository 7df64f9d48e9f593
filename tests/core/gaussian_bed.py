"""Gaussian data under any process: the exact denoiser, its flow map, and students that are exact for one end time."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import EDM, VP, CosineVP, LocalOffset, Process, RectifiedFlow, ResidualShift, TrigFlow
from fewstep.core.tensors import expand_to

MEAN, STD = 0.3, 0.5

PROCESSES = {
    "vp": VP.scaled_linear(),
    "cosine": CosineVP(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=3.0),
    "trigflow": TrigFlow(),
    "offset": LocalOffset.linear(),
    "residual": ResidualShift(),
}


def col(value: float | Tensor, n: int = 1) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).expand(n) if not isinstance(value, Tensor) else value.double()


class ExactGaussian(Denoiser):
    """Posterior mean of N(MEAN, STD^2) data, returned as any prediction kind."""

    def __init__(self, process: Process, kind: Kind = Kind.X0, mean: float = MEAN, std: float = STD) -> None:
        self.process, self.kind, self.mean, self.std = process, kind, mean, std

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        c = self.process.coefficients(t)
        x = self.process.offset(x_t, t, cond.get("anchor"))
        a, s = expand_to(c.alpha, x), expand_to(c.sigma, x)
        v = a**2 * self.std**2 + s**2
        clean = Clean(self.mean + a * self.std**2 / v * (x - a * self.mean), s / v * (x - a * self.mean))
        return Prediction(compose(clean, self.kind, t, self.process, cond.get("anchor")), self.kind)

    def spread(self, t: Tensor) -> Tensor:
        c = self.process.coefficients(t)
        return (c.alpha**2 * self.std**2 + c.sigma**2).sqrt()

    def flow(self, x: Tensor, t: Tensor, s: Tensor, anchor: Tensor | None = None) -> Tensor:
        """The exact PF-ODE map from ``t`` to ``s``."""
        a, b = self.process.coefficients(t).alpha, self.process.coefficients(s).alpha
        core = self.process.offset(x, t, anchor)
        out = expand_to(b, x) * self.mean + expand_to(self.spread(s) / self.spread(t), x) * (
            core - expand_to(a, x) * self.mean
        )
        return self.process.offset(out, s, anchor, sign=1.0)


class ExactJump(ExactGaussian):
    """A student whose DDIM jump to ``end`` (or to cond['end']) lands exactly on the flow map."""

    def __init__(self, process: Process, end: float | None = None) -> None:
        super().__init__(process)
        self.end = end

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        e = cond["end"] if self.end is None else torch.full_like(t, self.end, dtype=torch.float64)
        c, d = self.process.coefficients(t), self.process.coefficients(e)
        x_e = self.flow(x_t, t, e)
        bar_t, bar_e = x_t / expand_to(c.alpha, x_t), x_e / expand_to(d.alpha, x_t)
        gap = expand_to(c.sigma / c.alpha - d.sigma / d.alpha, x_t)
        exact = super().predict(x_t, t, cond).value
        eps = torch.where(
            gap == 0, (x_t - expand_to(c.alpha, x_t) * exact) / expand_to(c.sigma, x_t), (bar_t - bar_e) / gap
        )
        return Prediction(eps, Kind.EPS)


class ExactConsistency(ExactGaussian):
    """A student whose ``x0`` is the exact flow map to the least noise of the process."""

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(self.flow(x_t, t, torch.full_like(t, self.process.t_min, dtype=torch.float64)), Kind.X0)
