"""What every process is: coefficients, clocks, noising and re-noising."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.tensors import expand_to

Times = Float[Tensor, " *b"]


class Coefficients(NamedTuple):
    """``alpha``, ``sigma`` and ``anchor`` (the factor of ``y``) at some times, float64, each shaped like ``t``."""

    alpha: Tensor
    sigma: Tensor
    anchor: Tensor


class Process(ABC):
    """A linear-Gaussian noising process; see the module docstring for the clocks."""

    t_min: float
    t_max: float
    has_anchor: bool = False
    discrete: bool = False  # networks were trained at whole t only

    @abstractmethod
    def coefficients(self, t: Times) -> Coefficients:
        """Return alpha, sigma and anchor factor at ``t``."""

    @abstractmethod
    def rates(self, t: Times) -> Coefficients:
        """Return the derivatives of the three coefficients with respect to ``t``."""

    @abstractmethod
    def time_from_tau(self, tau: Times) -> Times:
        """Return the ``t`` whose ``sigma/alpha`` is ``tau``, clamped to the process's range."""

    def unit_to_time(self, u: Times) -> Times:
        """Return the time at fraction ``u`` of the process's natural clock."""
        return self.t_min + u.double() * (self.t_max - self.t_min)

    def time_to_unit(self, t: Times) -> Times:
        """Return the fraction of the natural clock at ``t``; the inverse of :meth:`unit_to_time`."""
        return (t.double() - self.t_min) / (self.t_max - self.t_min)

    def time_input(self, t: Times) -> Times:
        """Return what a network of this process's convention is given as its time."""
        return t.double()

    def round(self, t: Times) -> Times:
        """Return the nearest time a network was trained at (``t`` itself for continuous processes)."""
        return t.double().round().clamp(self.t_min, self.t_max) if self.discrete else t.double()

    def tau(self, t: Times) -> Times:
        """Return ``sigma/alpha``, the noise level in variance-exploding coordinates."""
        c = self.coefficients(t)
        return c.sigma / c.alpha

    def log_snr(self, t: Times) -> Times:
        """Return ``log(alpha^2 / sigma^2)``."""
        c = self.coefficients(t)
        return 2 * (c.alpha.log() - c.sigma.log())

    def time_from_log_snr(self, log_snr: Times) -> Times:
        """Return the ``t`` at which :meth:`log_snr` takes the given value."""
        return self.time_from_tau(torch.exp(-0.5 * log_snr.double()))

    def initial_scale(self, t: Times) -> Times:
        """Return the standard deviation of the noise sampling starts from at ``t``; the data's share is dropped."""
        return self.coefficients(t).sigma

    def add_noise(
        self,
        x0: Float[Tensor, "b *d"],
        eps: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
        anchor: Float[Tensor, "b *d"] | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Return ``x_t``; ``anchor`` is the ``y`` of processes with one."""
        c = self.coefficients(t)
        return self.offset(expand_to(c.alpha, x0) * x0 + expand_to(c.sigma, x0) * eps, t, anchor, sign=1.0)

    def offset(
        self, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], anchor: Float[Tensor, "b *d"] | None, sign: float = -1.0
    ) -> Float[Tensor, "b *d"]:
        """Return ``x + sign * anchor(t) y``; the default removes the anchor, so that ``x = alpha x0 + sigma eps``.

        Raises UserError when the process has an anchor and none is given.
        """
        if not self.has_anchor:
            return x
        if anchor is None:
            raise UserError(f"{type(self).__name__} needs cond['anchor'] (the low-quality input) and got none")
        return x + sign * expand_to(self.coefficients(t).anchor, x) * anchor

    def renoise(
        self,
        x_s: Float[Tensor, "b *d"],
        eps: Float[Tensor, "b *d"],
        s: Float[Tensor, " b"],
        t: Float[Tensor, " b"],
        anchor: Float[Tensor, "b *d"] | None = None,
    ) -> Float[Tensor, "b *d"]:
        """Return a sample of ``x_t`` given ``x_s`` at a less noisy ``s <= t``: the forward kernel of the process.

        ``x_t = (alpha_t/alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2) eps`` without anchor.
        """
        cs, ct = self.coefficients(s), self.coefficients(t)
        ratio = ct.alpha / cs.alpha
        std = (ct.sigma**2 - (ratio * cs.sigma) ** 2).clamp_min(0).sqrt()
        core = expand_to(ratio, x_s) * self.offset(x_s, s, anchor) + expand_to(std, x_s) * eps
        return self.offset(core, t, anchor, sign=1.0)


def times(value: float | Sequence[float], batch: int, device: torch.device | str = "cpu") -> Float[Tensor, " b"]:
    """Return ``value`` repeated to a per-sample time tensor, float64."""
    t = torch.as_tensor(value, dtype=torch.float64, device=device)
    return t.expand(batch) if t.ndim == 0 else t
