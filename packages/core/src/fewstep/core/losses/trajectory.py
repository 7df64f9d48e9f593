"""Losses along trajectories: consistency, phased and random jumps, progressive halving; and their curricula.

A consistency loss compares the student at two neighbouring points of one trajectory; the less noisy side is the target
and carries no gradient. Where the points come from (a teacher's solver, or one noise added twice) is the recipe's
matter.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.grids import Knots
from fewstep.core.losses.distances import huber_scale, l1, l2, pseudo_huber, pseudo_huber_elementwise
from fewstep.core.process import Process

DistanceName = Literal["l2", "l1", "huber", "huber_element"]


def consistency_loss(
    prediction: Float[Tensor, "b *d"],
    target: Float[Tensor, "b *d"],
    *,
    weight: Float[Tensor, " b"] | None = None,
    distance: DistanceName = "l2",
    c: float | None = None,
) -> Float[Tensor, " b"]:
    """Return ``weight d(prediction, stopgrad(target))`` per sample (arXiv 2303.01469, equation 7).

    ``l2``, ``l1``, ``huber_element``: means over a sample's elements; ``huber``: pseudo-Huber of the whole sample's
    norm. ``c``: the Huber constant, by default ``0.00054 sqrt(n)`` per sample (arXiv 2310.14189) and 0.001 per element
    (LCM).
    """
    fixed = target.detach()
    if distance == "huber":
        value = pseudo_huber(prediction, fixed, huber_scale(prediction) if c is None else c)
    elif distance == "huber_element":
        value = pseudo_huber_elementwise(prediction, fixed, 0.001 if c is None else c)
    else:
        value = (l1 if distance == "l1" else l2)(prediction, fixed)
    return value if weight is None else weight.to(value) * value


def gap_weight(t: Float[Tensor, " b"], s: Float[Tensor, " b"], process: Process) -> Float[Tensor, " b"]:
    """Return ``1 / (tau_t - tau_s)``, float64: iCT's and ECT's weight (arXiv 2310.14189, table 1; 2406.14548)."""
    return 1 / (process.tau(t) - process.tau(s))


def phase_ends(knots: Knots, num_phases: int) -> Float[Tensor, " n"]:
    """Return, for every knot, the time its phase ends at (phased consistency models, arXiv 2405.18407).

    The phases' first knots are ``floor(i n / num_phases)``; a phase ends at the time before its first knot. Raises
    UserError for more phases than knots.
    """
    count = len(knots.times)
    check(1 <= num_phases <= count, f"num_phases must be between 1 and the number of knots ({count}), got {num_phases}")
    first = torch.arange(num_phases) * count // num_phases
    phase = torch.searchsorted(first, torch.arange(count), right=True) - 1
    return knots.previous[first[phase]]


def phase_starts(knots: Knots, num_phases: int) -> tuple[float, ...]:
    """Return the noisiest time of every phase, noisiest first: where a phased student is evaluated."""
    ends = phase_ends(knots, num_phases)
    last = torch.ones(len(ends), dtype=torch.bool)
    last[:-1] = ends.diff() > 0
    return tuple(knots.times[last].flip(0).tolist())


def even_knots(knots: Knots, num_steps: int) -> tuple[float, ...]:
    """Return ``num_steps`` knots for sampling, noisiest first, evenly spaced in the grid (diffusers' LCM and TCD rule).

    From the noisiest knot in strides of ``floor(i n / num_steps)``. Raises UserError for more steps than knots.
    """
    count = len(knots.times)
    check(1 <= num_steps <= count, f"num_steps must be between 1 and the number of knots ({count}), got {num_steps}")
    return tuple(knots.times.flip(0)[torch.arange(num_steps) * count // num_steps].tolist())


def random_end(
    fraction: Float[Tensor, " b"], start: Float[Tensor, " b"], s: Float[Tensor, " b"], process: Process
) -> Float[Tensor, " b"]:
    """Return an end time between ``start`` and ``s``: at ``fraction`` in [0, 1) of the natural clock between them.

    The end times of trajectory consistency (arXiv 2402.19159; segments: 2404.13686, algorithm 1).
    """
    low, high = process.time_to_unit(start), process.time_to_unit(s)
    end = process.round(process.unit_to_time(low + fraction.double() * (high - low)))
    return torch.minimum(torch.maximum(end, start.double()), s.double())


def sqrt_schedule(step: int, total: int, start: int = 2, end: int = 150) -> int:
    """Return the number of discretisation steps at ``step``: consistency training's square-root curriculum.

    ``ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`` (arXiv 2303.01469, appendix C).
    """
    share = min(step / total, 1.0)
    return math.ceil(math.sqrt(share * ((end + 1) ** 2 - start**2) + start**2) - 1) + 1


def exponential_schedule(step: int, total: int, start: int = 10, end: int = 1280) -> int:
    """Return the number of discretisation steps at ``step``: iCT's doublings (arXiv 2310.14189, equation 12)."""
    rounds = math.floor(total / (math.log2(end / start) + 1))
    return min(int(start * 2 ** (step // max(rounds, 1))), end) + 1


def training_ema_decay(num_knots: int, start_decay: float = 0.95, start_knots: int = 2) -> float:
    """Return the target's decay ``exp(s0 ln mu0 / N)`` of consistency training (arXiv 2303.01469, appendix C)."""
    return math.exp(start_knots * math.log(start_decay) / num_knots)


def ect_end(tau: Float[Tensor, " b"], stage: int, *, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """Return the less noisy ``tau`` that easy consistency tuning pairs with ``tau`` (arXiv 2406.14548, section 3).

    ``tau (1 - (1 + k sigmoid(-b tau)) / q^(stage + 1))``, at least 0: stage 0 is diffusion training, later stages close
    up.
    """
    return (tau * (1 - (1 + k * torch.sigmoid(-b * tau)) / q ** (stage + 1))).clamp_min(0)
