"""Grids of times: where samplers stop, and the knots consistency methods are trained on."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.process import EDM, Process

Spacing = Literal["trailing", "leading", "linspace", "even", "karras"]


def default_spacing(process: Process) -> Spacing:
    """Return the usual grid of a process: Karras' for EDM (ends included), ``trailing`` for all others."""
    return "karras" if isinstance(process, EDM) else "trailing"


def time_grid(
    process: Process, num_steps: int, spacing: Spacing | None = None, *, offset: int = 0, rho: float = 7.0
) -> tuple[float, ...]:
    """Return the ``num_steps`` times a sampler evaluates at, noisiest first; a last step from there reaches clean data.

    ``trailing``: from t_max in equal parts of the natural clock, the last part going to clean (diffusers' ``trailing``
    for tables). ``leading``: the same parts from the other end, moved up by ``offset`` indices. ``linspace``: both ends
    included. ``even``: as trailing, but a table's last part goes to its least noise (``linspace`` of diffusers'
    multistep solvers). ``karras``: the ramp of arXiv 2206.00364, equation 5, in ``tau`` between the process's ends,
    exponent ``rho``. Raises UserError for a grid that does not exist (more steps than levels, a ramp from infinite
    noise).
    """
    spacing = default_spacing(process) if spacing is None else spacing
    check(num_steps >= 1, f"a sampler needs at least one step, got {num_steps}")
    if spacing == "karras":
        return tuple(_karras(process, num_steps, rho).tolist())
    if process.discrete:
        return tuple(_indices(round(process.t_max) + 1, num_steps, spacing, offset).tolist())
    i = torch.arange(num_steps, dtype=torch.float64)
    unit = {
        "trailing": 1 - i / num_steps,
        "even": 1 - i / num_steps,
        "leading": 1 - (i + 1) / num_steps,
        "linspace": 1 - i / max(num_steps - 1, 1),
    }[spacing]
    return tuple(process.unit_to_time(unit).tolist())


def _karras(process: Process, num_steps: int, rho: float) -> Tensor:
    ends = process.tau(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    check(bool(ends.isfinite().all()), "a Karras grid needs finite noise at t_max: choose another spacing")
    low, high = (ends ** (1 / rho)).tolist()
    ramp = torch.linspace(1, 0, num_steps, dtype=torch.float64)
    t = process.time_from_tau((low + ramp * (high - low)) ** rho)
    t[0] = process.t_max  # the ramp's end goes through a power and back
    if num_steps > 1:
        t[-1] = process.t_min
    return t


def _indices(levels: int, num_steps: int, spacing: Spacing, offset: int) -> Tensor:
    check(num_steps <= levels, f"{num_steps} steps on a table of {levels} noise levels")
    i = torch.arange(num_steps, dtype=torch.float64)
    if spacing == "trailing":
        return (levels - i * levels / num_steps).round() - 1
    if spacing == "even":
        return ((levels - 1) * (num_steps - i) / num_steps).round()
    if spacing == "leading":
        return (i.flip(0) * (levels // num_steps) + offset).clamp_max(levels - 1)
    return torch.linspace(0, levels - 1, num_steps, dtype=torch.float64).round().flip(0)


class Knots(NamedTuple):
    """Training knots, rising: ``times`` to start from and, for each, the less noisy ``previous`` one."""

    times: Float[Tensor, " n"]
    previous: Float[Tensor, " n"]


def knot_grid(process: Process, num_knots: int) -> Knots:
    """Return ``num_knots`` pairs of neighbouring times that tile the range of a process.

    Tables: ``t = k j - 1``, ``k = T / num_knots``, and ``max(t - k, 0)`` before it (LCM, arXiv 2310.04378; the first
    knot's previous one is index 0, which still carries noise). Others: equal parts of the natural clock (Karras' ramp
    for EDM: arXiv 2303.01469, section 5). Raises UserError when a table has fewer levels than knots.
    """
    check(num_knots >= 1, f"a grid needs at least one knot, got {num_knots}")
    if process.discrete:
        levels = round(process.t_max) + 1
        check(num_knots <= levels, f"{num_knots} knots on a table of {levels} noise levels")
        stride = levels // num_knots
        times = torch.arange(1, num_knots + 1, dtype=torch.float64) * stride - 1
        # a stride of 1 starts at index 0, which has nothing before it
        times = times if stride > 1 else times[1:]
        return Knots(times, (times - stride).clamp_min(0))
    edges = process.unit_to_time(torch.linspace(0, 1, num_knots + 1, dtype=torch.float64))
    return Knots(edges[1:], edges[:-1])
