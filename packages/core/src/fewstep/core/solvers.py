"""Solvers of the probability-flow ODE and its stochastic relatives, from noise to data over a grid of times.

First-order solvers are choices of one number (:mod:`fewstep.core.steps`). Higher orders evaluate again (Heun,
DPM-Solver++ 2S) or remember the last prediction (DPM-Solver++ 2M and its SDE).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.prediction import Kind, Prediction, decompose
from fewstep.core.process import Coefficients, Process, times
from fewstep.core.rng import Rng
from fewstep.core.steps import ddim_step, eta_keep, first_order_step, level, noise_ratio
from fewstep.core.tensors import expand_to, precise


class Memory(NamedTuple):
    """What a multistep solver remembers: the last clean prediction "b *d" and its log-SNR "b"."""

    x0: Tensor
    log_snr: Tensor


@dataclass(frozen=True)
class Move:
    """A step to be made: from ``x`` "b *d" at ``t`` "b" to ``s`` "b" (None: clean data)."""

    denoiser: Denoiser
    x: Tensor
    t: Tensor
    s: Tensor | None
    cond: Cond = field(default_factory=dict)
    noise: Tensor | None = None
    memory: Memory | None = None

    @property
    def process(self) -> Process:
        """Return the process the denoiser is read through."""
        return self.denoiser.process

    @property
    def anchor(self) -> Tensor | None:
        """Return the ``y`` of a process that has one."""
        return self.cond.get("anchor") if self.process.has_anchor else None

    def levels(self) -> tuple[Coefficients, Coefficients]:
        """Return the coefficients before and after."""
        return level(self.process, self.t, self.x), level(self.process, self.s, self.x)


class Solver(ABC):
    """A way from ``t`` to ``s``. ``order`` is its global order of accuracy (in law, when it is stochastic)."""

    order: ClassVar[int]
    stochastic: bool = False

    @abstractmethod
    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``, float32 at least, and what the next step should be given as memory."""


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM, and ancestral sampling at ``eta = 1`` (arXiv 2010.02502); one evaluation per step."""

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check(0 <= self.eta <= 1, f"DDIM: eta must be in [0, 1], got {self.eta:g}")
        object.__setattr__(self, "stochastic", self.eta > 0)

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``."""
        before, after = move.levels()
        keep = eta_keep(noise_ratio(move.process, before, after), self.eta) if self.eta > 0 else None
        clean = move.denoiser.clean(move.x, move.t, move.cond)
        return first_order_step(clean, after, keep=keep, noise=move.noise, anchor=move.anchor), None


def er_sde_5(tau: Tensor) -> Tensor:
    """Return ``exp(tau^0.3) + 10``, the noise scale arXiv 2309.06169 recommends, divided by ``tau``."""
    return tau.pow(0.3).exp() + 10


@dataclass(frozen=True)
class ERSDE(Solver):
    """First-order extended reverse-time SDE solver (arXiv 2309.06169), ``keep = psi(tau_s) / psi(tau_t)``.

    ``psi(tau) = phi(tau) / tau`` with the paper's noise-scale function ``phi``; it must not decrease. A constant is the
    ODE, ``tau`` is ancestral sampling.
    """

    psi: Callable[[Tensor], Tensor] = er_sde_5
    order: ClassVar[int] = 1
    stochastic: bool = True

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``; one evaluation. Raises UserError when ``psi`` decreases over the step."""
        before, after = move.levels()
        keep = self.psi(after.sigma / after.alpha) / self.psi(before.sigma / before.alpha)
        check(bool((keep <= 1 + 1e-12).all()), "ER-SDE: psi must not decrease with the noise level")
        clean = move.denoiser.clean(move.x, move.t, move.cond)
        return first_order_step(clean, after, keep=keep.clamp_max(1), noise=move.noise, anchor=move.anchor), None


def _first_order_only(before: Coefficients, after: Coefficients) -> Tensor:
    """Return where higher orders have no meaning: steps from pure noise or to clean data, infinite in log-SNR."""
    return (after.sigma == 0) | (before.alpha == 0)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's rule in variance-exploding coordinates (arXiv 2206.00364, algorithm 1); two evaluations.

    ``x_s = DDIM + (sigma_s - alpha_s tau_t)/2 (eps' - eps)`` with ``eps'`` predicted where DDIM lands.
    """

    order: ClassVar[int] = 2

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``."""
        before, after = move.levels()
        clean = move.denoiser.clean(move.x, move.t, move.cond)
        x = first_order_step(clean, after, anchor=move.anchor)
        plain = _first_order_only(before, after)
        if move.s is None or bool(plain.all()):
            return x, None
        # where Heun does not apply, the second evaluation is made at t: finite, and multiplied by zero
        eps = move.denoiser.eps(x.to(move.x.dtype), torch.where(plain, move.t.double(), move.s.double()), move.cond)
        half = torch.where(plain, 0.0, (after.sigma - after.alpha * before.sigma / before.alpha) / 2)
        return x + expand_to(half, x) * (precise(eps) - precise(clean.eps)), None


def _exponential_step(move: Move, x0: Tensor, before: Coefficients, after: Coefficients) -> Float[Tensor, "b *d"]:
    """Return DPM-Solver++'s ``(sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) x0``."""
    ratio = after.sigma / before.sigma
    core = precise(move.process.offset(move.x, move.t, move.anchor))
    x = expand_to(ratio, core) * core + expand_to(after.alpha - ratio * before.alpha, core) * x0
    return x if move.anchor is None else x + expand_to(after.anchor, x) * move.anchor


def _log_snr(c: Coefficients) -> Tensor:
    return 2 * (c.alpha.log() - c.sigma.log())


def _extrapolated(move: Move, x0: Tensor, before: Coefficients, after: Coefficients) -> Tensor:
    """Return ``x0`` carried half a step on, in log-SNR, from the last one; as it is without one, and at the ends."""
    if move.memory is None:
        return x0
    now = _log_snr(before)
    share = (_log_snr(after) - now) / (2 * (now - move.memory.log_snr))
    share = torch.where(_first_order_only(before, after), 0.0, share)
    return x0 + expand_to(share, x0) * (x0 - move.memory.x0)


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): extrapolates from the last clean prediction; one evaluation."""

    order: ClassVar[int] = 2

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``, and this prediction to remember; first order without memory and at the ends of the range."""
        before, after = move.levels()
        x0 = precise(move.denoiser.x0(move.x, move.t, move.cond))
        estimate = _extrapolated(move, x0, before, after)
        return _exponential_step(move, estimate, before, after), Memory(x0, _log_snr(before))


@dataclass(frozen=True)
class DPMpp2MSDE(Solver):
    """SDE-DPM-Solver++(2M), midpoint (arXiv 2211.01095, section 5); one evaluation.

    With ``r = e^-h`` the ratio of noise levels, h the step in log(alpha/sigma), and ``x0`` extrapolated as in 2M,
    ``x_s = alpha_s (1 - r^2) x0 + (r sigma_s/sigma_t) x_t + sigma_s sqrt(1 - r^2) n``: ancestral sampling whose clean
    sample is the extrapolated one.
    """

    order: ClassVar[int] = 2
    stochastic: bool = True

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``, and this prediction to remember; ancestral without memory and at the ends of the range."""
        before, after = move.levels()
        x0 = precise(move.denoiser.x0(move.x, move.t, move.cond))
        estimate = _extrapolated(move, x0, before, after)
        # the noise that goes with the extrapolated sample: x_t is where both lead
        clean = decompose(Prediction(estimate, Kind.X0), move.x, move.t, move.process, move.anchor)
        keep = noise_ratio(move.process, before, after)
        x = first_order_step(clean, after, keep=keep, noise=move.noise, anchor=move.anchor)
        return x, Memory(x0, _log_snr(before))


@dataclass(frozen=True)
class DPMpp2S(Solver):
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1), midpoint in log-SNR; two evaluations.

    The midpoint of a table process falls between its indices; the network is asked there as it is.
    """

    order: ClassVar[int] = 2

    def step(self, move: Move) -> tuple[Float[Tensor, "b *d"], Memory | None]:
        """Return ``x_s``; first order at the ends of the range."""
        before, after = move.levels()
        clean = move.denoiser.clean(move.x, move.t, move.cond)
        plain = _first_order_only(before, after)
        if move.s is None or bool(plain.all()):
            return first_order_step(clean, after, anchor=move.anchor), None
        middle = move.process.time_from_log_snr((_log_snr(before) + _log_snr(after)) / 2)
        middle = torch.where(plain, move.t.double(), middle)
        x = ddim_step(clean, middle, move.process, move.anchor).to(move.x.dtype)
        x0 = precise(move.denoiser.x0(x, middle, move.cond))
        x0 = torch.where(expand_to(plain.double(), x0) > 0, precise(clean.x0), x0)
        return _exponential_step(move, x0, before, after), None


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": DDIM(),  # in variance-exploding coordinates, and for rectified flow in its own, they are the same
    "heun": Heun(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "dpmpp_2s": DPMpp2S(),
    "ddpm": DDIM(eta=1.0),
    "er_sde": ERSDE(),
}


def find_solver(solver: str | Solver) -> Solver:
    """Return a solver by name (or itself); UserError naming the nearest one."""
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        raise UserError(f"no solver '{solver}': {nearest(solver, SOLVERS)}")
    return SOLVERS[solver]


class Counted(Denoiser):
    """A denoiser that counts its ``calls``, and the ``rows`` it was given: inside guidance a sample costs two."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.calls, self.rows = inner, inner.process, 0, 0

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the inner prediction."""
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        return self.inner.predict(x_t, t, cond)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)


class Solution(NamedTuple):
    """Where a sampler arrived, "b *d", and how often it asked the denoiser."""

    x: Tensor
    evaluations: int


def solve(
    denoiser: Denoiser,
    x: Float[Tensor, "b *d"],
    grid: Sequence[float],
    cond: Cond,
    solver: str | Solver = "ddim",
    *,
    rng: Rng | None = None,
    to_clean: bool = True,
    stream: str = "solver",
    visit: Callable[[int, Tensor], None] = lambda step, x: None,
) -> Solution:
    """Return ``x`` carried from ``grid[0]`` through every time of the grid, and on to clean data when ``to_clean``.

    ``grid``: falling times; ``rng`` is needed by stochastic solvers only. ``visit``: is shown where each step led, and
    how many were made by then. Raises UserError for a grid that does not fall.
    """
    check(all(a > b for a, b in itertools.pairwise(grid)), "a sampler's times must fall strictly")
    method, counted, memory = find_solver(solver), Counted(denoiser), None
    stops: list[float | None] = [*grid, None] if to_clean else list(grid)
    for i, after in enumerate(stops[1:]):
        t = times(grid[i], len(x), x.device)
        s = None if after is None else times(after, len(x), x.device)
        noise = rng.normal_like(f"{stream}/{i}", x) if rng is not None and method.stochastic else None
        x_next, memory = method.step(Move(counted, x, t, s, cond, noise, memory))
        x = x_next.to(x.dtype)
        visit(i + 1, x)
    return Solution(x, counted.calls)


def invert(
    denoiser: Denoiser,
    x: Float[Tensor, "b *d"],
    grid: Sequence[float | Float[Tensor, " b"]],
    cond: Cond,
    *,
    refinements: int = 0,
    eta: float = 0.0,
    rng: Rng | None = None,
    stream: str = "inversion",
) -> Solution:
    """Return ``x`` carried up the grid (rising times, or one per sample) against DDIM: the noise DDIM turns into it.

    Each step takes the noise predicted at its start; every refinement predicts it anew where the step landed, a
    fixed-point iteration whose limit is the exact inverse of the DDIM step. ``eta``: share of fresh noise, from
    ``rng``: at 1 every step is the process's own noising. Samples whose time stays the same stay where they are.
    """
    stops = [each if isinstance(each, Tensor) else times(each, len(x), x.device) for each in grid]
    rises = all(bool((a <= b).all() and (a < b).any()) for a, b in itertools.pairwise(stops))
    check(rises, "inversion climbs: its times must rise strictly")
    counted, process, anchor = Counted(denoiser), denoiser.process, cond.get("anchor")
    for i, (t, s) in enumerate(itertools.pairwise(stops)):
        keep = eta_keep(noise_ratio(process, level(process, s, x), level(process, t, x)), eta) if eta > 0 else None
        noise = rng.normal_like(f"{stream}/{i}", x) if rng is not None and eta > 0 else None
        at = x
        for k in range(refinements + 1):
            eps = counted.eps(at, s if k else t, cond)
            clean = decompose(Prediction(eps, Kind.EPS), x, t, process, anchor)
            after = level(process, s, x)
            x_s = first_order_step(clean, after, keep=keep, noise=noise, anchor=anchor if process.has_anchor else None)
            at = x_s.to(x.dtype)
        x = at
    return Solution(x, counted.calls)
