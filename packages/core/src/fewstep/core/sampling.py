"""Sampling: few steps of a student along its plan, many steps of a teacher with a solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError, check
from fewstep.core.grids import Spacing, time_grid
from fewstep.core.process import Process, times
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.solvers import Solver, find_solver, solve
from fewstep.core.steps import first_order_step, level, noise_ratio
from fewstep.core.tensors import expand_to, precise


def initial_state(
    process: Process, noise: Float[Tensor, "b *d"], t: float, cond: Cond | None = None
) -> Float[Tensor, "b *d"]:
    """Return the state sampling starts from at ``t``: scaled unit noise, around the whole anchor where there is one.

    Raises UserError when the process has an anchor and the condition none.
    """
    scale = process.initial_scale(times(t, len(noise), noise.device))
    x = expand_to(scale, noise) * precise(noise)
    if process.has_anchor:
        anchor = (cond or {}).get("anchor")
        if anchor is None:
            raise UserError(f"{type(process).__name__} starts from cond['anchor'] (the low-quality input) and got none")
        x = x + anchor  # its factor at t_max is 1: the data's share is replaced by the anchor, too
    return x.to(noise.dtype)


def jump_end(process: Process, t: float, gamma: float) -> float:
    """Return the time at ``1 - gamma`` of the natural clock's way to ``t``, a whole index for tables (TCD's rule)."""
    if gamma == 0:
        return t
    unit = (1 - gamma) * process.time_to_unit(torch.tensor(t, dtype=torch.float64))
    end = float(process.unit_to_time(unit))
    return float(math.floor(end + 1e-9)) if process.discrete else end


def run_plan(
    student: Denoiser, plan: StepPlan, noise: Float[Tensor, "b *d"], cond: Cond, rng: Rng
) -> Float[Tensor, "b *d"]:
    """Return samples of a student made along its plan from unit ``noise``; one evaluation per time of the plan.

    A plan that starts from the anchor takes nothing but shape and dtype of ``noise``. Raises UserError without one.
    """
    if plan.start == "noise":
        return sample_from(student, plan, initial_state(student.process, noise, plan.times[0], cond), cond, rng)
    if "anchor" not in cond:
        raise UserError(f"this student starts from cond['anchor'] (the low-quality input) and got {sorted(cond)}")
    return sample_from(student, plan, cond["anchor"].to(noise), cond, rng)


def sample_from(
    student: Denoiser, plan: StepPlan, x: Float[Tensor, "b *d"], cond: Cond, rng: Rng
) -> Float[Tensor, "b *d"]:
    """Return samples made along the plan from ``x`` at its first time; see :class:`StepPlan` for the modes.

    Raises UserError for a plan whose times do not fall.
    """
    check(all(a > b for a, b in itertools.pairwise(plan.times)), "a plan's times must fall strictly")
    process, dtype = student.process, x.dtype
    anchor = cond.get("anchor") if process.has_anchor else None
    extras = {name: torch.full((len(x),), value, device=x.device, dtype=dtype) for name, value in plan.extras.items()}
    last = process.t_min if plan.end == "t_min" else None
    for i, (now, after) in enumerate(zip(plan.times, [*plan.times[1:], last], strict=True)):
        final = i == len(plan.times) - 1
        gamma = 0.0 if final or plan.mode == "deterministic" else 1.0 if plan.mode == "renoise" else plan.gamma
        s = None if after is None else times(after, len(x), x.device)
        target = level(process, s, x)
        end = process.t_min if after is None else jump_end(process, after, gamma)
        entries = dict(cond) | extras
        if plan.end_time:
            entries["end_time"] = process.time_input(times(end, len(x), x.device)).to(dtype)
        clean = student.clean(x, times(now, len(x), x.device), entries)
        keep = noise = None
        if gamma > 0:
            keep = noise_ratio(process, target, process.coefficients(times(end, len(x), x.device)))
            keep = torch.zeros_like(keep) if plan.mode == "renoise" else keep
            noise = rng.normal_like(f"plan/{i}", x)
        x = first_order_step(clean, target, keep=keep, noise=noise, anchor=anchor).to(dtype)
    return x


def teacher_sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    cond: Cond,
    rng: Rng,
    *,
    steps: int = 50,
    solver: str | Solver = "ddim",
    spacing: Spacing | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b *d"]:
    """Return one sample of ``shape`` per sample of ``rng``, from noise to clean data in ``steps`` solver steps.

    The first draw is the stream ``noise``, so that a student given the same generator starts from the same noise.
    """
    process = denoiser.process
    grid = time_grid(process, steps, spacing)
    x = initial_state(process, rng.normal("noise", tuple(shape), dtype), grid[0], cond)
    return solve(denoiser, x, grid, cond, solver, rng=rng).x


def teacher_trajectory(
    denoiser: Denoiser,
    shape: Sequence[int],
    cond: Cond,
    rng: Rng,
    *,
    grid: Sequence[float],
    keys: int,
    solver: str | Solver = "ddim",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b k *d"]:
    """Return ``keys + 1`` states of one trajectory per sample of ``rng``: noise, those at every (steps/keys)-th time of
    ``grid``, and the clean sample, which is :func:`teacher_sample`'s.

    A student can only be taught what follows from the noise: UserError for a stochastic solver, and for a number of
    steps that is no multiple of ``keys``.
    """
    check(
        keys >= 1 and len(grid) % keys == 0,
        f"a trajectory of {len(grid)} steps cannot be cut into {keys} equal parts: take a multiple of them",
    )
    check(
        not find_solver(solver).stochastic, f"solver '{solver}' adds noise on its way: a trajectory has none, use ddim"
    )
    every = len(grid) // keys
    states = [initial_state(denoiser.process, rng.normal("noise", tuple(shape), dtype), grid[0], cond)]

    def keep(step: int, x: Tensor) -> None:
        if step % every == 0:
            states.append(x)

    solve(denoiser, states[0], grid, cond, solver, visit=keep)
    return torch.stack(states, 1)
