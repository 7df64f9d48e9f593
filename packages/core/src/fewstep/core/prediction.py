"""What a network's output means, and exact conversions between the meanings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.process import Process
from fewstep.core.tensors import expand_to, precise


class Kind(str, Enum):
    """The meanings of a prediction at ``x_t = alpha x0 + sigma eps`` (after any anchor is removed).

    ``V``: ``alpha eps - sigma x0`` (diffusers ``v_prediction``). ``FLOW``: ``eps - x0`` (diffusers flow matching).
    ``VELOCITY``: ``dx_t/dt`` in the process's own clock, anchor included. ``SCORE``: gradient of the log-density.
    """

    X0 = "x0"
    EPS = "eps"
    V = "v"
    FLOW = "flow"
    VELOCITY = "velocity"
    SCORE = "score"


@dataclass(frozen=True)
class Prediction:
    """A tensor and what it means."""

    value: Float[Tensor, "b *d"]
    kind: Kind


@dataclass(frozen=True)
class Clean:
    """The pair every prediction is equivalent to: the clean sample and the noise, both "b *d"."""

    x0: Float[Tensor, "b *d"]
    eps: Float[Tensor, "b *d"]


def decompose(
    prediction: Prediction,
    x_t: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    process: Process,
    anchor: Float[Tensor, "b *d"] | None = None,
) -> Clean:
    """Return the ``x0`` and ``eps`` a prediction at ``(x_t, t)`` stands for (trajectory-theory conversions).

    Maths is float32 at least. Dividing by ``alpha`` (eps, score) or ``sigma`` (x0) gives infinities where they vanish;
    ask :func:`check_kind` before a loop.
    """
    c, kind, value = process.coefficients(t), prediction.kind, precise(prediction.value)
    x = precise(process.offset(x_t, t, anchor))
    a, s = expand_to(c.alpha, x), expand_to(c.sigma, x)
    if kind is Kind.EPS:
        return Clean((x - s * value) / a, value)
    if kind is Kind.X0:
        return Clean(value, (x - a * value) / s)
    if kind is Kind.V:
        n = a**2 + s**2
        return Clean((a * x - s * value) / n, (s * x + a * value) / n)
    if kind is Kind.FLOW:
        return Clean((x - s * value) / (a + s), (x + a * value) / (a + s))
    if kind is Kind.SCORE:
        return Clean((x + s**2 * value) / a, -s * value)
    rate = process.rates(t)
    da, ds = expand_to(rate.alpha, x), expand_to(rate.sigma, x)
    if process.has_anchor and anchor is not None:
        value = value - expand_to(rate.anchor, x) * anchor
    n = a * ds - da * s
    return Clean((ds * x - s * value) / n, (a * value - da * x) / n)


def compose(
    clean: Clean, kind: Kind, t: Float[Tensor, " b"], process: Process, anchor: Float[Tensor, "b *d"] | None = None
) -> Float[Tensor, "b *d"]:
    """Return the value of ``kind`` for a clean sample and noise at ``t``; the inverse of :func:`decompose`."""
    x0, eps = precise(clean.x0), precise(clean.eps)
    if kind is Kind.X0:
        return x0
    if kind is Kind.EPS:
        return eps
    if kind is Kind.FLOW:
        return eps - x0
    c = process.coefficients(t)
    a, s = expand_to(c.alpha, x0), expand_to(c.sigma, x0)
    if kind is Kind.V:
        return a * eps - s * x0
    if kind is Kind.SCORE:
        return -eps / s
    rate = process.rates(t)
    value = expand_to(rate.alpha, x0) * x0 + expand_to(rate.sigma, x0) * eps
    if process.has_anchor and anchor is not None:
        value = value + expand_to(rate.anchor, x0) * anchor
    return value


def convert(
    prediction: Prediction,
    kind: Kind,
    x_t: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    process: Process,
    anchor: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """Return the prediction re-expressed as ``kind``."""
    if prediction.kind is kind:
        return precise(prediction.value)
    if prediction.kind is Kind.EPS and kind is Kind.SCORE:  # no detour through x0: finite where alpha vanishes
        return -precise(prediction.value) / expand_to(process.coefficients(t).sigma, x_t)
    return compose(decompose(prediction, x_t, t, process, anchor), kind, t, process, anchor)


def check_kind(process: Process, kind: Kind, t: float) -> None:
    """Raise UserError when ``kind`` cannot give a clean sample at ``t``: eps and score carry none where alpha is 0."""
    alpha = float(process.coefficients(torch.tensor([t])).alpha)
    if kind in (Kind.EPS, Kind.SCORE) and alpha == 0.0:
        raise UserError(
            f"a network predicting '{kind.value}' says nothing of x0 at t={t:g}, where alpha is 0 "
            f"({type(process).__name__} of a scheduler with zero terminal SNR): use a v, x0 or flow network, or start "
            "below t_max (recipe.student_start, where the recipe has one)"
        )
