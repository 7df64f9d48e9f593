"""Exact students of trajectory methods, on Gaussian data: what their loss should leave where it is.

``clean``: the prediction is the end of the trajectory. ``least_noise``: the jump to ``t_min`` is exact. ``viewed``: the
recipe's ``student_view`` of the prediction is the trajectory's end. ``phase``: the jump to the end of the phase, or to
where the student is told, is exact. ``two_steps``: one step lands where two of the teacher's do. ``segment``: where all
of the teacher's steps between two of the student's times do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.analytic import GaussianTeacher
from fewstep.core.check.cast import exact_clean, usual_kind
from fewstep.core.check.declarations import Map
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.grids import knot_grid, time_grid
from fewstep.core.losses.trajectory import phase_ends
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import Process
from fewstep.core.recipe import Recipe
from fewstep.core.tensors import expand_to

Target = Callable[[Tensor, Tensor, Cond], Tensor]
"""Maps ``(x_t, t, cond)`` to the exact student's x0."""


class Partway(nn.Module, Denoiser):
    """A student ``share`` of the way from the exact one (0) to the teacher (1): one parameter, ``share``."""

    def __init__(self, teacher: Denoiser, exact: Target, share: float) -> None:
        super().__init__()
        self.teacher, self.exact, self.process = teacher, exact, teacher.process
        self.share = nn.Parameter(torch.tensor(share, dtype=torch.float64))

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the mixed prediction, as what networks of the process usually predict."""
        anchor, exact = cond.get("anchor"), self.exact(x_t, t, cond)
        teacher = exact_clean(self.teacher, x_t, t, cond)
        x0 = exact + self.share.to(x_t) * (teacher.x0 - exact)
        alpha, sigma = (expand_to(c, x_t) for c in self.process.coefficients(t)[:2])
        bare = sigma == 0  # the state is the sample, and the noise in it anything
        eps = (self.process.offset(x_t, t, anchor) - alpha * x0) / torch.where(bare, torch.ones_like(sigma), sigma)
        clean, kind = Clean(x0, torch.where(bare, teacher.eps, eps)), usual_kind(self.process)
        return Prediction(compose(clean, kind, t, self.process, anchor), kind)

    def null(self, cond: Cond) -> Cond:
        """Return ``cond``: this student has no condition."""
        return cond


def to_clean(law: GaussianTeacher) -> Target:
    """Return the map to the end of the trajectory, without noise."""

    def exact(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        level = law.level(x_t, t, cond)
        mean, std = law.mean.to(x_t), law.std.to(x_t)
        spread = (level.alpha**2 * std**2 + level.sigma**2).sqrt()
        return mean + std / spread * (level.core - level.alpha * mean)

    return exact


def jumping(law: GaussianTeacher, end_of: Callable[[Tensor, Cond], Tensor]) -> Target:
    """Return the prediction whose DDIM jump to ``end_of(t, cond)`` is exact, the teacher's where there is no way."""
    process = law.process

    def exact(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        end = end_of(t, cond)
        before, after = process.coefficients(t), process.coefficients(end)
        there = process.offset(law.flow_map(x_t, t, end, cond), end, cond.get("anchor"))
        core = process.offset(x_t, t, cond.get("anchor"))
        ratio = after.sigma / before.sigma
        gap = after.alpha - ratio * before.alpha
        still = end >= t
        gap = torch.where(still, torch.ones_like(gap), gap)
        found = (there - expand_to(ratio, core) * core) / expand_to(gap, core)
        return torch.where(expand_to(still.to(core.dtype), core) > 0, law.x0(x_t, t, cond), found)

    return exact


def told_end(process: Process, cond: Cond) -> Tensor:
    """Return the time whose network input is ``cond["end_time"]``."""
    goal = cond["end_time"].double()
    low, high = (torch.full_like(goal, end) for end in (process.t_min, process.t_max))
    for _ in range(80):
        middle = (low + high) / 2
        above = process.time_input(middle) > goal
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def phase_end(process: Process, config: Any) -> Callable[[Tensor, Cond], Tensor]:
    """Return the end of a time's phase, under a config with ``num_knots`` and ``num_phases``, unless one is told."""
    knots = knot_grid(process, config.num_knots)
    ends = phase_ends(knots, config.num_phases)

    def end_of(t: Tensor, cond: Cond) -> Tensor:
        if "end_time" in cond:
            return told_end(process, cond)
        index = torch.searchsorted(knots.times, t.double() - 1e-9).clamp_max(len(ends) - 1)
        return torch.minimum(ends[index], t.double())

    return end_of


def viewed(law: GaussianTeacher, recipe: type[Recipe], config: Any) -> Target:
    """Return the prediction whose view, affine in it, is the trajectory's end; the teacher's where it sees none."""

    class Constant(Denoiser):
        def __init__(self, value: float) -> None:
            self.process, self.value = law.process, value

        def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
            return Prediction(torch.full_like(x_t, self.value), Kind.X0)

    clean = to_clean(law)

    def exact(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        zero, one = (recipe.student_view(config, Constant(value)).x0(x_t, t, cond) for value in (0.0, 1.0))
        slope = one - zero
        blind = slope.abs() < 1e-4
        found = (clean(x_t, t, cond) - zero) / torch.where(blind, torch.ones_like(slope), slope)
        return torch.where(blind, law.x0(x_t, t, cond), found)

    return exact


def steps_in_one(law: GaussianTeacher, times: Sequence[float], every: int) -> Target:
    """Return the x0 that makes ``every`` DDIM steps in one: products of the Gaussian's own step factors.

    A step from ``(a, s)`` to ``(a', s')`` multiplies ``x - alpha mean`` by ``(a' a v + s' s)/(a^2 v + s^2)``, v the
    variance of the data; ``x0 = mean + c (x - alpha mean)`` does so by ``a' c + s' (1 - a c)/s``.
    """
    process = law.process
    grid = torch.tensor(times, dtype=torch.float64)
    one, square = torch.ones(1, dtype=torch.float64), float(law.std) ** 2
    alpha, sigma = process.coefficients(grid)[:2]
    alpha, sigma = torch.cat([alpha, one]), torch.cat([sigma, 0 * one])  # the last step ends at clean data
    factor = (alpha[1:] * alpha[:-1] * square + sigma[1:] * sigma[:-1]) / (alpha[:-1] ** 2 * square + sigma[:-1] ** 2)
    (a, a_end), (s, s_end) = ((c[:-1:every], c[every::every]) for c in (alpha, sigma))
    slope = (factor.reshape(-1, every).prod(1) - s_end / s) / (a_end - s_end * a / s)

    def exact(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        index = (grid[::every, None] - t.double()).abs().argmin(0)
        level, mean = law.level(x_t, t, cond), law.mean.to(x_t)
        return mean + expand_to(slope[index], x_t) * (level.core - level.alpha * mean)

    return exact


def exact_map(name: Map, law: GaussianTeacher, recipe: type[Recipe], config: Any) -> Target:
    """Return the exact student of a map."""
    process = law.process
    if name == "clean":
        return to_clean(law)
    if name == "viewed":
        return viewed(law, recipe, config)
    if name == "two_steps":
        return steps_in_one(law, time_grid(process, 2 * config.rounds()[0][0], "trailing"), 2)
    if name == "segment":
        return steps_in_one(law, config.fine_grid(process), config.segment_steps)
    if name == "phase":
        return jumping(law, phase_end(process, config))
    return jumping(law, lambda t, cond: torch.full_like(t, process.t_min, dtype=torch.float64))
