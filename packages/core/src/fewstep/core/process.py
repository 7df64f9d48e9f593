"""Noising processes: ``x_t = alpha(t) x0 + anchor(t) y + sigma(t) eps``.

**The time convention of the whole project.** ``t`` is a process's own clock: a per-sample tensor that grows with
noise, from ``t_min`` to ``t_max``. It is an index for table processes (fractions allowed), the noise level for EDM, the
noise fraction for rectified flow and an angle for TrigFlow. Nothing outside this module and the adapters of networks
needs to know which. Three maps connect the clocks:

* ``unit_to_time(u)``: the natural uniform clock of the process, ``u`` in [0, 1] (0 = least noise). It is linear in
  ``t``, except EDM, where it is the Karras ramp, and rectified flow, where it applies ``shift``.
* ``tau(t) = sigma/alpha``: the noise level in variance-exploding coordinates, common to all processes.
* ``log_snr(t) = log(alpha^2 / sigma^2)``.

Coefficients are computed and returned in float64, whatever the dtype of ``t``; :func:`fewstep.core.tensors.expand_to`
brings them to the dtype maths on a tensor uses (float32 at least).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError, check
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
        """Return the standard deviation of the noise sampling starts from at ``t`` (where the data's share is dropped)."""
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


def _angles(alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.atan2(sigma, alpha)


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
    """Discrete variance-preserving diffusion (DDPM, Stable Diffusion): ``alpha = sqrt(abar_t)``, ``sigma = sqrt(1 - abar_t)``.

    ``alphas_cumprod``: "T", decreasing. Raises UserError when it is not.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        abar = alphas_cumprod.detach().double().cpu()
        check(bool(((abar >= 0) & (abar < 1)).all()), "alphas_cumprod must lie in [0, 1)")
        super().__init__(_angles(abar.sqrt(), (1 - abar).sqrt()))
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

        Raises UserError when the config describes no such schedule.
        """
        from diffusers import DDPMScheduler

        try:
            scheduler = DDPMScheduler.from_config(dict(config))
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(f"scheduler config: no DDPM-style betas in it ({error})") from error
        return cls(scheduler.alphas_cumprod)

    def coefficients(self, t: Times) -> Coefficients:
        """Return cos, sin of the table's angle, and no anchor."""
        angle = self.angle(t)
        return Coefficients(angle.cos(), angle.sin(), torch.zeros_like(angle))

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


class CosineVP(Process):
    """Continuous variance-preserving diffusion: ``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``, t in [t_min, t_max].

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

    ``t = shift u / (1 + (shift - 1) u)`` (SD3, arXiv 2403.03206, section 5.3.2). ``time_scale`` is what a diffusers flow
    network multiplies ``t`` with (1000).
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

    The paper's noise has standard deviation ``sigma_data``; here ``eps`` is unit noise and ``sigma`` carries the factor, so
    that the network's ``F`` is the PF-ODE velocity divided by ``sigma_data``.
    """

    sigma_data: float = 0.5
    t_min: float = 0.0
    t_max: float = math.pi / 2

    def coefficients(self, t: Times) -> Coefficients:
        """Return cos t, sigma_data sin t, 0."""
        t = t.double()
        alpha = torch.where(t == math.pi / 2, torch.zeros_like(t), t.cos())
        return Coefficients(alpha, self.sigma_data * t.sin(), torch.zeros_like(t))

    def rates(self, t: Times) -> Coefficients:
        """Return -sin t, sigma_data cos t, 0."""
        t = t.double()
        return Coefficients(-t.sin(), self.sigma_data * t.cos(), torch.zeros_like(t))

    def time_from_tau(self, tau: Times) -> Times:
        """Return ``atan(tau / sigma_data)``."""
        return torch.atan(tau.double() / self.sigma_data).clamp(self.t_min, self.t_max)


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
        tau = tau.double()
        # the stable root of tau r^2 + kappa r - tau = 0
        root = 2 * tau / (self.kappa + (self.kappa**2 + 4 * tau**2).sqrt())
        root = root.clamp(self.start, self.eta_end)
        fraction = ((root / self.start).log() / self.log_growth).clamp(0, 1) ** (1 / self.power)
        return fraction * self.t_max


def times(value: float | Sequence[float], batch: int, device: torch.device | str = "cpu") -> Float[Tensor, " b"]:
    """Return ``value`` repeated to a per-sample time tensor, float64."""
    t = torch.as_tensor(value, dtype=torch.float64, device=device)
    return t.expand(batch) if t.ndim == 0 else t


def process_from_scheduler(config: Mapping[str, Any]) -> tuple[Process, str]:
    """Return the process and the prediction kind's name that a diffusers scheduler config describes.

    Raises UserError for a scheduler class this version cannot read.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return RectifiedFlow(shift=float(config.get("shift") or config.get("flow_shift") or 1.0)), "flow"
    if name.startswith("EDM"):
        keys = ("sigma_min", "sigma_max", "sigma_data", "rho")
        return EDM(**{k: float(config[k]) for k in keys if config.get(k) is not None}), "x0"
    if name == "SCMScheduler":
        return TrigFlow(sigma_data=float(config.get("sigma_data", 0.5))), "velocity"
    kinds = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in kinds:
        raise UserError(f"scheduler config: prediction_type '{prediction}' is unknown; valid: {', '.join(kinds)}")
    return VP.from_scheduler(config), kinds[prediction]
