"""SDE-DPM-Solver++(2M): diffusers' steps, order in law, limits, and what LiDiff's two ways to sample it give."""

from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactGaussian, col
from core.test_sampling import REPLAY, Draws, Wavy, noise, run_diffusers
from core.test_solvers import SCALING, tau_grid
from torch.testing import assert_close

from fewstep.core.check.draws import ImpulseRng
from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, CosineVP, LocalOffset, RectifiedFlow
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample
from fewstep.core.solvers import SOLVERS, Memory, Move, solve
from fewstep.core.tensors import expand_to

LIDIFF = VP.linear(1000, 3.5e-5, 7e-3)
SDE = SOLVERS["dpmpp_2m_sde"]


def scheduler():
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        1000, 3.5e-5, 7e-3, "linear", algorithm_type="sde-dpmsolver++", solver_order=2, solver_type="midpoint"
    )


def test_the_even_grid_is_that_of_the_multistep_solvers_of_diffusers():
    theirs = scheduler()
    for n in (1, 2, 4, 8, 50):
        theirs.set_timesteps(n)
        assert list(time_grid(LIDIFF, n, "even")) == theirs.timesteps.tolist()
    assert time_grid(LIDIFF, 8, "even") == (999, 874, 749, 624, 500, 375, 250, 125)
    assert time_grid(CosineVP(), 4, "even") == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("n", [1, 2, 8, 20])
@pytest.mark.parametrize("kind", [Kind.EPS, Kind.V])
def test_every_step_is_that_of_diffusers(n, kind, monkeypatch):
    """With the same noises; at 20 steps its solver would take the last one at second order, were its end not clean."""
    import diffusers.schedulers.scheduling_dpmsolver_multistep as module

    Draws(monkeypatch, module, (4, 3))
    theirs = scheduler()
    theirs.register_to_config(prediction_type={Kind.EPS: "epsilon", Kind.V: "v_prediction"}[kind])
    network, x = Wavy(LIDIFF, kind), noise(4, 3)
    want = run_diffusers(theirs, network, x, LIDIFF, n)
    ours = solve(network, x, time_grid(LIDIFF, n, "even"), {}, SDE, rng=REPLAY).x
    assert_close(ours, want, rtol=2e-4, atol=2e-4)


def moments(process, n: int, solver=SDE) -> tuple[float, float]:
    """Mean and standard deviation at the end of a grid of n steps from the exact law: sums over impulses of noise."""
    teacher = ExactGaussian(process)
    grid = tau_grid(process, n + 1, high=0.9 if isinstance(process, LocalOffset) else 10.0)
    unit = torch.zeros(n + 3, 1, dtype=torch.float64)
    unit[1] = 1
    first = process.coefficients(col(grid[0]))
    x = first.alpha * MEAN + teacher.spread(col(grid[0])) * unit
    rng = ImpulseRng(0, 0, tuple(range(n + 3)))
    x = solve(teacher, x, grid, {}, solver, rng=rng, to_clean=False).x
    last = process.coefficients(col(grid[-1]))
    return (
        x[0].item() - last.alpha.item() * MEAN,
        (x[1:] - x[0]).norm().item() - teacher.spread(col(grid[-1])).item(),
    )


@pytest.mark.parametrize("name", SCALING)
def test_declared_order_in_law_is_measured(name):
    errors = []
    for n in (64, 128):
        mean, std = moments(PROCESSES[name], n)
        assert mean == pytest.approx(0, abs=1e-12)
        errors.append(abs(std))
        assert abs(std) < 0.1 * abs(moments(PROCESSES[name], n, "ddpm")[1])
    assert math.log2(errors[0] / errors[1]) == pytest.approx(SDE.order, abs=0.1)


class Constant(Denoiser):
    """Always the same clean sample."""

    def __init__(self, process, value: float) -> None:
        self.process, self.value = process, value

    def predict(self, x_t, t, cond):
        return Prediction(torch.full_like(x_t, self.value), Kind.X0)


@pytest.mark.parametrize("process", [LIDIFF, EDM(), CosineVP(), RectifiedFlow(), PROCESSES["offset"]])
def test_a_constant_clean_sample_keeps_the_marginals_exactly(process):
    """The law stays N(alpha c, sigma^2) at every step, and the last one is c: no noise left."""
    grid = time_grid(process, 6, "even")
    unit = torch.zeros(6 + 3, 1, dtype=torch.float64)
    unit[1] = 1
    for stop in range(2, 7):
        first, last = (process.coefficients(col(grid[i])) for i in (0, stop - 1))
        start = first.alpha * 0.3 + first.sigma * unit
        rng = ImpulseRng(0, 0, tuple(range(9)))
        x = solve(Constant(process, 0.3), start, grid[:stop], {}, SDE, rng=rng, to_clean=False).x
        assert x[0].item() == pytest.approx(0.3 * last.alpha.item(), abs=1e-12)
        assert (x[1:] - x[0]).norm().item() == pytest.approx(last.sigma.item(), rel=1e-9)
    x = solve(Constant(process, 0.3), unit, grid, {}, SDE, rng=ImpulseRng(0, 0, tuple(range(9)))).x
    assert_close(x, torch.full_like(x, 0.3), rtol=1e-12, atol=1e-13)


def test_without_memory_it_is_ancestral_and_with_one_prediction_repeated_too():
    teacher, x, n = ExactGaussian(LIDIFF), noise(5, 3), noise(5, 3, seed=1)
    t, s = col(700.0, 5), col(400.0, 5)
    want = SOLVERS["ddpm"].step(Move(teacher, x, t, s, {}, n))[0]
    found, memory = SDE.step(Move(teacher, x, t, s, {}, n))
    assert_close(found, want, rtol=1e-12, atol=1e-12)
    assert memory is not None
    same = Memory(memory.x0, memory.log_snr - 1.0)
    assert_close(SDE.step(Move(teacher, x, t, s, {}, n, same))[0], want, rtol=1e-12, atol=1e-12)
    other = Memory(memory.x0 + 1, memory.log_snr - 1.0)
    assert not torch.allclose(SDE.step(Move(teacher, x, t, s, {}, n, other))[0], want, rtol=1e-3)


def test_it_asks_for_noise():
    with pytest.raises(UserError, match="needs noise"):
        solve(ExactGaussian(LIDIFF), noise(2, 2), [900.0, 100.0], {}, SDE)


class OnePoint(Denoiser):
    """LiDiff's exact network for a single offset ``d``: ``eps = (o - d)/sigma_t``, however it is read."""

    def __init__(self, process, d: float) -> None:
        self.process, self.d = process, d

    def predict(self, x_t, t, cond):
        sigma = LIDIFF.coefficients(t).sigma
        return Prediction((x_t - self.d) / expand_to(sigma, x_t), Kind.EPS)


@pytest.mark.parametrize("n", [1, 2, 8, 50])
def test_read_through_local_offset_the_one_point_is_found(n):
    rng = Rng.for_batch(0, 0, 3)
    x = teacher_sample(
        OnePoint(LocalOffset.linear(), 0.3), (4,), {}, rng, steps=n, solver=SDE, spacing="even", dtype=torch.float64
    )
    assert_close(x, torch.full_like(x, 0.3), rtol=0, atol=1e-5)


OFFICIAL = {1: 1.74874, 2: 0.46857, 4: 0.33617, 8: 0.30903, 50: 0.30033}


@pytest.mark.parametrize("n", OFFICIAL)
def test_read_through_vp_it_is_missed_by_the_last_alpha(n):
    """What LiDiff's released sampler does: d / sqrt(abar) of the last time, whatever the noise."""
    rng, grid = Rng.for_batch(0, 0, 3), time_grid(LIDIFF, n, "even")
    x = teacher_sample(OnePoint(LIDIFF, 0.3), (4,), {}, rng, steps=n, solver=SDE, spacing="even", dtype=torch.float64)
    assert_close(x, torch.full_like(x, OFFICIAL[n]), rtol=0, atol=1e-4)
    alpha = LIDIFF.coefficients(col(grid[-1])).alpha.item()
    assert x[0, 0].item() == pytest.approx(0.3 / alpha, abs=1e-5)


def test_one_step_jacobians():
    """d x0 / d eps of the one-step student: -0.98518 around the points, -5.7427 as the released sampler has it."""
    for process, want in ((LocalOffset.linear(), -0.98518), (LIDIFF, -5.7427)):
        c = process.coefficients(col(999.0))
        assert -(c.sigma / c.alpha).item() == pytest.approx(want, abs=1e-3)


def test_gaussian_data_are_sampled_with_their_law():
    """Many steps to clean data: mean and spread of the data."""
    errors = []
    for n in (25, 100):
        unit = torch.zeros(n + 2, 1, dtype=torch.float64)
        unit[1] = 1
        first = LIDIFF.coefficients(col(999.0))
        start = first.alpha * MEAN + (first.alpha**2 * STD**2 + first.sigma**2).sqrt() * unit
        grid = time_grid(LIDIFF, n, "even")
        rng = ImpulseRng(0, 0, tuple(range(n + 2)))
        x = solve(ExactGaussian(LIDIFF, Kind.EPS), start, grid, {}, SDE, rng=rng).x
        assert x[0].item() == pytest.approx(MEAN, abs=1e-9)
        errors.append(abs((x[1:] - x[0]).norm().item() - STD))
    assert errors[1] < errors[0] < 0.05
    assert errors[1] < 5e-3
