"""Processes with a continuous clock: cosine VP, EDM, rectified flow, TrigFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.process.base import Coefficients, Process, Times


class CosineVP(Process):
    """Continuous variance-preserving diffusion: ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``.

    The default range ends at ``alpha = 0`` (pure noise), where eps and score predictions cannot be turned into x0.
    """

    def __init__(self, t_min: float = 0.0, t_max: float = 1.0) -> None:
        self.t_min, self.t_max = t_min, t_max

    def coefficients(self, t: Times) -> Coefficients:
        """Return cos, sin of ``pi t / 2``, and no anchor."""
        angle = t.double() * (math.pi / 2)
        alpha = torch.where(t.double() == 1.0, torch.zeros_like(angle), angle.cos())  # cos(pi/2) is 6e-17 in floats
        return Coefficients(alpha, angle.sin(), torch.zeros_like(angle))

    def rates(self, t: Times) -> Coefficients:
        """Return the derivatives with respect to ``t``."""
        angle = t.double() * (math.pi / 2)
        return Coefficients(-angle.sin() * (math.pi / 2), angle.cos() * (math.pi / 2), torch.zeros_like(angle))

    def time_from_tau(self, tau: Times) -> Times:
        """Return ``2/pi atan(tau)``."""
        return (torch.atan(tau.double()) * (2 / math.pi)).clamp(self.t_min, self.t_max)

    def time_input(self, t: Times) -> Times:
        """Return ``1000 t``, the range diffusers' time embeddings are made for."""
        return 1000.0 * t.double()

    def initial_scale(self, t: Times) -> Times:
        """Return 1, as for :class:`VP`."""
        return torch.ones_like(t, dtype=torch.float64)


@dataclass(frozen=True)
class EDM(Process):
    """Variance-exploding diffusion in Karras' form: ``alpha = 1``, ``sigma = t`` (arXiv 2206.00364).

    The natural clock is the Karras ramp with exponent ``rho``; ``sigma_data`` is kept for preconditioning and weights.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0

    def __post_init__(self) -> None:
        check(0 < self.sigma_min < self.sigma_max, "EDM needs 0 < sigma_min < sigma_max")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """Return the least noise level."""
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """Return the greatest noise level."""
        return self.sigma_max

    def coefficients(self, t: Times) -> Coefficients:
        """Return 1, t, 0."""
        t = t.double()
        return Coefficients(torch.ones_like(t), t, torch.zeros_like(t))

    def rates(self, t: Times) -> Coefficients:
        """Return 0, 1, 0."""
        t = t.double()
        return Coefficients(torch.zeros_like(t), torch.ones_like(t), torch.zeros_like(t))

    def time_from_tau(self, tau: Times) -> Times:
        """Return ``tau`` itself, clamped."""
        return tau.double().clamp(self.sigma_min, self.sigma_max)

    def unit_to_time(self, u: Times) -> Times:
        """Return the Karras ramp, from sigma_min at 0 to sigma_max at 1 (arXiv 2206.00364, equation 5)."""
        low, high = self._ramp_ends()
        ramp: Tensor = (low + u.double() * (high - low)) ** self.rho
        return ramp

    def time_to_unit(self, t: Times) -> Times:
        """Return the inverse of the Karras ramp."""
        low, high = self._ramp_ends()
        u: Tensor = (t.double() ** (1 / self.rho) - low) / (high - low)
        return u

    def _ramp_ends(self) -> tuple[float, float]:
        return float(self.sigma_min ** (1 / self.rho)), float(self.sigma_max ** (1 / self.rho))

    def time_input(self, t: Times) -> Times:
        """Return ``c_noise = ln(sigma) / 4``."""
        return t.double().log() / 4


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Straight-line process ``alpha = 1 - t``, ``sigma = t``; ``shift`` warps the natural clock, not the process.

    ``t = shift u / (1 + (shift - 1) u)`` (SD3, arXiv 2403.03206, section 5.3.2). ``time_scale`` is what a diffusers
    flow network multiplies ``t`` with (1000).
    """

    shift: float = 1.0
    t_min: float = 0.0
    t_max: float = 1.0
    time_scale: float = 1000.0

    def coefficients(self, t: Times) -> Coefficients:
        """Return 1 - t, t, 0."""
        t = t.double()
        return Coefficients(1 - t, t, torch.zeros_like(t))

    def rates(self, t: Times) -> Coefficients:
        """Return -1, 1, 0."""
        one = torch.ones_like(t, dtype=torch.float64)
        return Coefficients(-one, one, torch.zeros_like(one))

    def time_from_tau(self, tau: Times) -> Times:
        """Return ``tau / (1 + tau)``."""
        tau = tau.double()
        return torch.where(tau.isinf(), torch.ones_like(tau), tau / (1 + tau)).clamp(self.t_min, self.t_max)

    def unit_to_time(self, u: Times) -> Times:
        """Return the shifted time at ``u``."""
        u = u.double()
        t = self.shift * u / (1 + (self.shift - 1) * u)
        return self.t_min + t * (self.t_max - self.t_min)

    def time_to_unit(self, t: Times) -> Times:
        """Return the inverse of the shift."""
        t = (t.double() - self.t_min) / (self.t_max - self.t_min)
        return t / (self.shift - (self.shift - 1) * t)

    def time_input(self, t: Times) -> Times:
        """Return ``time_scale * t``."""
        return self.time_scale * t.double()


@dataclass(frozen=True)
class TrigFlow(Process):
    """``alpha = cos t``, ``sigma = sigma_data sin t``, t in [0, pi/2] (sCM, arXiv 2410.11081, section 3.1).

    The paper's noise has standard deviation ``sigma_data``; here ``eps`` is unit noise and ``sigma`` carries the
    factor, so that the network's ``F`` is the PF-ODE velocity divided by ``sigma_data``.
    """

    sigma_data: float = 0.5
    t_min: float = 0.0
    t_max: float = math.pi / 2

    def coefficients(self, t: Times) -> Coefficients:
        """Return cos t, sigma_data sin t, 0."""
        t = t.double()
        alpha = torch.where(t >= math.pi / 2, torch.zeros_like(t), t.cos())  # float32 rounds pi/2 upwards
        return Coefficients(alpha, self.sigma_data * t.sin(), torch.zeros_like(t))

    def rates(self, t: Times) -> Coefficients:
        """Return -sin t, sigma_data cos t, 0."""
        t = t.double()
        return Coefficients(-t.sin(), self.sigma_data * t.cos(), torch.zeros_like(t))

    def time_from_tau(self, tau: Times) -> Times:
        """Return ``atan(tau / sigma_data)``."""
        return torch.atan(tau.double() / self.sigma_data).clamp(self.t_min, self.t_max)
