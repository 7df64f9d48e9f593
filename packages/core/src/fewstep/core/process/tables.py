"""Processes tabulated at whole times: DDPM's, LiDiff's, ResShift's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.process.base import Coefficients, Process, Times


class _Table(Process):
    """A process tabulated at t = 0..T-1; between knots the angle atan2(sigma, alpha) is linear in t.

    The angle stays finite at zero terminal SNR, where log-SNR does not, and keeps VP exactly variance-preserving.
    """

    discrete = True

    def __init__(self, angles: Tensor) -> None:
        angles = angles.detach().double().cpu()
        check(angles.ndim == 1 and len(angles) >= 2, "a noise table needs at least two levels")
        check(bool((angles.diff() > 0).all()), "a noise table must grow in noise: check the betas")
        self._angles = angles
        self._cache: dict[torch.device, Tensor] = {angles.device: angles}
        self.t_min, self.t_max = 0.0, float(len(angles) - 1)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._cache:
            self._cache[device] = self._angles.to(device)
        return self._cache[device]

    def _segment(self, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        table, t = self._table(t.device), t.double()
        low = t.floor().clamp(0, len(table) - 2).long()
        return t - low, table[low], table[low + 1]

    def angle(self, t: Times) -> Times:
        """Return atan2(sigma, alpha) at ``t``."""
        fraction, low, high = self._segment(t)
        # low + 1 * (high - low) is not high in floating point; lerp's symmetric form keeps both knots exact
        return torch.where(fraction < 0.5, low + fraction * (high - low), high - (1 - fraction) * (high - low))

    def angle_rate(self, t: Times) -> Times:
        """Return d angle / dt, constant between knots (the right-hand segment at a knot)."""
        _, low, high = self._segment(t)
        return high - low

    def time_from_angle(self, angle: Times) -> Times:
        """Return the inverse of :meth:`angle`, clamped to the table."""
        table, angle = self._table(angle.device), angle.double()
        high = torch.searchsorted(table, angle.contiguous()).clamp(1, len(table) - 1)
        low = high - 1
        return (low + (angle - table[low]) / (table[high] - table[low])).clamp(self.t_min, self.t_max)


class VP(_Table):
    """Discrete variance-preserving diffusion (DDPM, Stable Diffusion).

    ``alpha = sqrt(abar_t)``, ``sigma = sqrt(1 - abar_t)``. ``alphas_cumprod``: "T", decreasing. Raises UserError when
    it is not.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        abar = alphas_cumprod.detach().double().cpu()
        check(bool(((abar >= 0) & (abar < 1)).all()), "alphas_cumprod must lie in [0, 1)")
        super().__init__(torch.atan2((1 - abar).sqrt(), abar.sqrt()))
        self.alphas_cumprod = abar

    @classmethod
    def linear(cls, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> VP:
        """Return the DDPM schedule (betas linear)."""
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def scaled_linear(cls, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> VP:
        """Return Stable Diffusion's schedule (square roots of betas linear)."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def from_scheduler(cls, config: Mapping[str, Any]) -> VP:
        """Return the process of a diffusers scheduler config with betas (DDPM, DDIM, DPM-Solver, Euler, LCM ...).

        CogVideoX's move the signal-to-noise ratio, too. Raises UserError when the config describes no such schedule.
        """
        from diffusers import CogVideoXDDIMScheduler, DDPMScheduler

        shifted = str(config.get("_class_name", "")).startswith("CogVideoX") or "snr_shift_scale" in config
        try:
            scheduler = (CogVideoXDDIMScheduler if shifted else DDPMScheduler).from_config(dict(config))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(f"scheduler config: no DDPM-style betas in it ({error})") from error
        return cls(scheduler.alphas_cumprod)

    def coefficients(self, t: Times) -> Coefficients:
        """Return cos, sin of the table's angle, and no anchor."""
        angle = self.angle(t)
        alpha = torch.where(angle == math.pi / 2, torch.zeros_like(angle), angle.cos())  # zero terminal SNR, not 6e-17
        return Coefficients(alpha, angle.sin(), torch.zeros_like(angle))

    def rates(self, t: Times) -> Coefficients:
        """Return the derivatives between knots."""
        angle, rate = self.angle(t), self.angle_rate(t)
        return Coefficients(-angle.sin() * rate, angle.cos() * rate, torch.zeros_like(angle))

    def time_from_tau(self, tau: Times) -> Times:
        """Return the (fractional) index with ``sigma/alpha = tau``."""
        return self.time_from_angle(torch.atan(tau.double()))

    def initial_scale(self, t: Times) -> Times:
        """Return 1: stock pipelines start VP sampling from unit noise."""
        return torch.ones_like(t, dtype=torch.float64)


class LocalOffset(_Table):
    """LiDiff's process on point offsets: ``alpha = 1``, ``sigma = sqrt(1 - abar_t)`` (arXiv 2403.13470).

    Noise is added around the points and the points are never rescaled.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        abar = alphas_cumprod.detach().double().cpu()
        super().__init__(torch.atan((1 - abar).sqrt()))
        self.alphas_cumprod = abar

    @classmethod
    def linear(cls, num_steps: int = 1000, beta_start: float = 3.5e-5, beta_end: float = 7e-3) -> LocalOffset:
        """Return LiDiff's schedule."""
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        return cls(torch.cumprod(1 - betas, 0))

    def coefficients(self, t: Times) -> Coefficients:
        """Return 1, tan of the table's angle, and no anchor."""
        sigma = self.angle(t).tan()
        return Coefficients(torch.ones_like(sigma), sigma, torch.zeros_like(sigma))

    def rates(self, t: Times) -> Coefficients:
        """Return the derivatives between knots."""
        angle, rate = self.angle(t), self.angle_rate(t)
        zero = torch.zeros_like(angle)
        return Coefficients(zero, rate / angle.cos() ** 2, zero)

    def time_from_tau(self, tau: Times) -> Times:
        """Return the (fractional) index with ``sigma = tau``."""
        return self.time_from_angle(torch.atan(tau.double()))


class ResidualShift(Process):
    """ResShift: ``x_t = (1 - eta_t) x0 + eta_t y + kappa sqrt(eta_t) eps``, t = 0..T-1 (arXiv 2307.12348).

    ``sqrt(eta_t) = s0 b^{u_t}`` with ``u_t = (t/(T-1))^power (T-1)``; ``eta_end`` is the *square root* of the last eta.
    ``cap``: the conference paper's upper bound on s0 (sqrt(0.001)); weights trained under one rule need that rule.
    """

    discrete = True
    has_anchor = True

    def __init__(
        self,
        num_steps: int = 15,
        kappa: float = 2.0,
        min_noise: float = 0.04,
        power: float = 0.3,
        eta_end: float = 0.99,
        cap: float | None = None,
    ) -> None:
        check(num_steps >= 2, "ResidualShift needs num_steps >= 2")
        start = min(min_noise / kappa, min_noise)
        self.start = start if cap is None else min(start, cap)
        self.num_steps, self.kappa, self.power, self.eta_end = num_steps, kappa, power, eta_end
        self.log_growth = math.log(eta_end / self.start)  # over the whole range
        self.t_min, self.t_max = 0.0, float(num_steps - 1)

    def root_eta(self, t: Times) -> Times:
        """Return ``sqrt(eta_t)``."""
        fraction = t.double() / self.t_max
        return self.start * torch.exp(self.log_growth * fraction**self.power)

    def coefficients(self, t: Times) -> Coefficients:
        """Return 1 - eta, kappa sqrt(eta), eta."""
        root = self.root_eta(t)
        return Coefficients(1 - root**2, self.kappa * root, root**2)

    def rates(self, t: Times) -> Coefficients:
        """Return the derivatives; infinite at t = 0 when ``power < 1``."""
        root, fraction = self.root_eta(t), t.double() / self.t_max
        rate = root * self.log_growth * self.power * fraction ** (self.power - 1) / self.t_max
        return Coefficients(-2 * root * rate, self.kappa * rate, 2 * root * rate)

    def time_from_tau(self, tau: Times) -> Times:
        """Return the (fractional) index with ``kappa r / (1 - r^2) = tau``, r = sqrt(eta)."""
        ratio = self.kappa / tau.double()
        # the stable root of r^2 + ratio r - 1 = 0, good for tau 0 and infinity
        root = 2 / (ratio + (ratio**2 + 4).sqrt())
        root = root.clamp(self.start, self.eta_end)
        fraction = ((root / self.start).log() / self.log_growth).clamp(0, 1) ** (1 / self.power)
        return fraction * self.t_max
