"""Flow maps of mixtures: by quantiles in one dimension, by a high-order ODE solver elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_BRACKETING = 200  # Newton needs about six; bisection alone, 60
Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a state "b n" and an angle "b" to the velocity "b n" and its Jacobian "b n n"."""


class Components(NamedTuple):
    """A 1-D mixture per element: log-weights, means and standard deviations, "*e k" or what broadcasts to it."""

    log_weights: Tensor
    means: Tensor
    stds: Tensor

    def z_scores(self, x: Tensor) -> Tensor:
        """Return how many standard deviations ``x`` "*e" lies above each component."""
        return (x[..., None] - self.means) / self.stds

    def log_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the distribution function and of its complement; accurate in both tails."""
        z = self.z_scores(x)
        below = (self.log_weights + torch.special.log_ndtr(z)).logsumexp(-1)
        return below, (self.log_weights + torch.special.log_ndtr(-z)).logsumexp(-1)

    def log_pdf(self, x: Tensor) -> Tensor:
        """Return the log-density."""
        z = self.z_scores(x)
        return (self.log_weights - z**2 / 2 - (self.stds * math.sqrt(2 * math.pi)).log()).logsumexp(-1)


def _match(x: Tensor, start: Components, end: Components) -> Tensor:
    """Return the ``y`` with the same log-odds under ``end`` as ``x`` has under ``start``."""
    below, above = start.log_cdf(x)
    goal = below - above
    # the mixture's quantile lies between those of its components, at either end
    z = start.z_scores(x)
    low = (end.means + end.stds * z.amin(-1, keepdim=True)).amin(-1)
    high = (end.means + end.stds * z.amax(-1, keepdim=True)).amax(-1)
    y = (low + high) / 2
    for _ in range(_BRACKETING):
        below, above = end.log_cdf(y)
        excess = below - above - goal
        low, high = torch.where(excess < 0, y, low), torch.where(excess > 0, y, high)
        slope = (end.log_pdf(y) - below - above).exp()  # of the log-odds
        step = y - excess / slope
        inside = (step > low) & (step < high)
        after = torch.where(excess == 0, y, torch.where(inside, step, (low + high) / 2))
        done = bool(((after - y).abs() <= 2e-16 * (1 + y.abs())).all())
        y = after
        if done:
            break
    return y


class _QuantileMap(torch.autograd.Function):
    """``F_end^{-1}(F_start(x))`` with derivative ``f_start(x)/f_end(y)``, itself differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Components, end: Components) -> Tensor:
        y = _match(x, start, end)
        ctx.save_for_backward(x, y)
        ctx.ends = start, end
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        start, end = ctx.ends
        return grads[0] * (start.log_pdf(x) - end.log_pdf(y)).exp(), None, None


def quantile_map(x: Float[Tensor, "*e"], start: Components, end: Components) -> Float[Tensor, "*e"]:
    """Return the increasing map from one 1-D mixture to another, elementwise: the flow map in one dimension.

    Solved for the log-odds of the distribution function by safeguarded Newton steps in float64. Differentiable in
    ``x``; the components receive no gradient.
    """
    mapped: Tensor = _QuantileMap.apply(x.double(), start, end)  # type: ignore[no-untyped-call]
    return mapped.to(x.dtype)


def _integrate(x: Tensor, angle: Tensor, end: Tensor, field: Field, with_jacobian: bool) -> tuple[Tensor, Tensor]:
    from scipy.integrate import solve_ivp

    batch, size = x.shape
    turn, eye = end - angle, torch.eye(size, dtype=x.dtype).expand(batch, size, size)

    def rate(share: float, flat: Any) -> Any:
        state = torch.from_numpy(flat).reshape(batch, -1)
        velocity, jacobian = field(state[:, :size], angle + share * turn)
        parts = [turn[:, None] * velocity]
        if with_jacobian:
            moved = jacobian @ state[:, size:].reshape(batch, size, size)
            parts.append(turn[:, None] * moved.flatten(1))
        return torch.cat(parts, 1).flatten().numpy()

    state = torch.cat([x, eye.flatten(1)], 1) if with_jacobian else x
    solved = solve_ivp(rate, (0.0, 1.0), state.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    if not solved.success:
        raise ArithmeticError(f"the flow map's ODE was not solved: {solved.message}")
    state = torch.from_numpy(solved.y[:, -1]).reshape(batch, -1)
    return state[:, :size], state[:, size:].reshape(batch, size, size) if with_jacobian else eye


class _NumericalMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, angle: Tensor, end: Tensor, field: Field) -> Tensor:
        y, jacobian = _integrate(x.detach(), angle, end, field, ctx.needs_input_grad[0])
        ctx.save_for_backward(jacobian)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (jacobian,) = ctx.saved_tensors
        return (grads[0][:, None] @ jacobian)[:, 0], None, None, None


def numerical_map(
    x: Float[Tensor, "b n"], angle: Float[Tensor, " b"], end: Float[Tensor, " b"], field: Field
) -> Float[Tensor, "b n"]:
    """Return the solution at ``end`` of ``dx/d angle = field(x, angle)`` from ``x`` at ``angle``.

    DOP853 at rtol 1e-10, on the CPU in float64. Differentiable once in ``x``, through the variational equation.
    """
    start, stop = angle.detach().double().cpu(), end.detach().double().cpu()
    mapped: Tensor = _NumericalMap.apply(x.double().cpu(), start, stop, field)  # type: ignore[no-untyped-call]
    return mapped.to(x)
