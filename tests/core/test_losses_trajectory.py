from __future__ import annotations

import itertools
import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactConsistency, ExactGaussian, ExactJump, col
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.boundary import ConsistencyFunction, edm_scalings, lcm_scalings
from fewstep.core.errors import UserError
from fewstep.core.grids import knot_grid
from fewstep.core.losses.trajectory import (
    consistency_loss,
    ect_end,
    even_knots,
    exponential_schedule,
    gap_weight,
    phase_ends,
    phase_starts,
    random_end,
    sqrt_schedule,
    training_ema_decay,
)
from fewstep.core.prediction import Clean, Kind, Prediction, compose, decompose
from fewstep.core.process import EDM, VP, CosineVP
from fewstep.core.solvers import Move, find_solver
from fewstep.core.steps import ddim_step

VP_SD, EDM_ = PROCESSES["vp"], PROCESSES["edm"]


def randoms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_trajectory(process, t):
    """States a standard deviation either side of the mean of x_t: averages over them are exact for affine maps."""
    centre, spread = process.coefficients(t).alpha * MEAN, ExactGaussian(process).spread(t)
    return torch.stack([centre + spread, centre - spread], 1)


def residuals(process, knots, solver: str) -> torch.Tensor:
    """|f(x_t) - f(solver step of x_t)| for the exact student, at every knot."""
    teacher, student = ExactGaussian(process), ExactConsistency(process)
    x_t = on_trajectory(process, knots.times)
    x_s = find_solver(solver).step(Move(teacher, x_t, knots.times, knots.previous))[0]
    return consistency_loss(student.x0(x_t, knots.times, {}), student.x0(x_s, knots.previous, {})).sqrt()


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


# ---------------------------------------------------------------- the residual of the exact student


@pytest.mark.parametrize(
    ("n", "expected"), [(25, 5.29e-3), (50, 1.60e-3), (100, 4.55e-4), (200, 1.20e-4), (500, 2.0e-5)]
)
def test_residual_of_the_exact_student_on_the_sd_schedule(n, expected):
    assert rms(residuals(VP_SD, knot_grid(VP_SD, n), "ddim")) == pytest.approx(expected, rel=0.02)


def test_residual_is_second_order_with_ddim_and_third_with_heun():
    ratio = rms(residuals(VP_SD, knot_grid(VP_SD, 50), "ddim")) / rms(residuals(VP_SD, knot_grid(VP_SD, 100), "ddim"))
    assert 3.3 < ratio < 3.7
    # N knots of Karras' ramp, both ends counted: N - 1 steps
    heun = {n: rms(residuals(EDM_, knot_grid(EDM_, n - 1), "heun")) for n in (18, 40, 160, 640)}
    for n, expected in ((18, 3.3e-3), (40, 2.8e-4), (160, 3.8e-6), (640, 6e-8)):
        assert heun[n] == pytest.approx(expected, rel=0.08)
    assert 60 < heun[40] / heun[160] < 90


def test_wrong_pairings_are_seen_by_the_residual():
    knots, teacher, student = knot_grid(VP_SD, 50), ExactGaussian(VP_SD), ExactConsistency(VP_SD)
    right = residuals(VP_SD, knots, "ddim")
    assert right[0].item() == pytest.approx(0.0105, rel=0.02)
    x_t = on_trajectory(VP_SD, knots.times)
    x_s = find_solver("ddim").step(Move(teacher, x_t, knots.times, knots.previous))[0]
    # the target evaluated at the start time
    wrong = (student.x0(x_t, knots.times, {}) - student.x0(x_s, knots.times, {})).abs()
    assert rms(wrong) == pytest.approx(9.9e-3, rel=0.02)
    # the first knot stepping to clean data (abar_prev = 1), where the exact map gives mean +- std
    x_clean = find_solver("ddim").step(Move(teacher, x_t[:1], knots.times[:1], None))[0]
    wrong = torch.tensor([[MEAN + STD, MEAN - STD]]) - x_clean
    assert rms(wrong) == pytest.approx(0.0173, rel=0.02)


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow", "trigflow", "offset", "residual"])
def test_training_pairs_are_the_euler_step_towards_the_data_sample(name):
    """Adding one noise at two times equals the DDIM step whose clean prediction is the data sample."""
    process = PROCESSES[name]
    u = torch.rand(16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t, s = process.unit_to_time(0.2 + 0.8 * u), process.unit_to_time(0.2 * u)
    x0, eps, y = randoms(16, 3), randoms(16, 3, seed=1), randoms(16, 3, seed=2)
    x_t = process.add_noise(x0, eps, t, y)
    step = ddim_step(decompose(Prediction(x0, Kind.X0), x_t, t, process, y), s, process, y)
    assert_close(step, process.add_noise(x0, eps, s, y), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- boundaries


class Raw(ExactGaussian):
    """A network with no structure: sin of its input, read as ``kind``."""

    def predict(self, x_t, t, cond):
        return Prediction(torch.sin(3 * x_t) + 2, self.kind)


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow", "trigflow", "offset"])
@pytest.mark.parametrize("kind", [Kind.X0, Kind.V, Kind.EPS])
def test_edm_boundary_is_the_identity_at_the_least_noise(name, kind):
    process = PROCESSES[name]
    x, t = randoms(5, 3), col(process.t_min, 5)
    if kind is Kind.X0 or float(process.coefficients(t).sigma[0]) > 0:
        f = ConsistencyFunction(Raw(process, kind), "edm").x0(x, t, {})
        assert_close(f * process.coefficients(t).alpha[:, None], x, rtol=1e-7, atol=1e-7)
        # and not before it
        after = process.unit_to_time(col(0.02, 5))
        f = ConsistencyFunction(Raw(process, kind), "edm").x0(x, after, {})
        assert (f * process.coefficients(after).alpha[:, None] - x).abs().max() > 1e-3


def test_edm_boundary_is_the_published_one_on_a_preconditioned_network():
    """f = c_skip x + c_out F with the raw F of Karras' preconditioning, eps = 0.002, sigma_data = 0.5."""
    t, sd, eps = torch.tensor([0.002, 0.0021, 0.01, 0.5, 80.0], dtype=torch.float64), 0.5, 0.002
    x, raw = randoms(5, 3), randoms(5, 3, seed=1)
    denoised = (sd**2 / (t**2 + sd**2))[:, None] * x + (t * sd / (t**2 + sd**2).sqrt())[:, None] * raw
    c_skip, c_out = sd**2 / ((t - eps) ** 2 + sd**2), sd * (t - eps) / (t**2 + sd**2).sqrt()
    skip, out = edm_scalings(t, EDM_, sd)
    assert_close(skip[:, None] * x + out[:, None] * denoised, c_skip[:, None] * x + c_out[:, None] * raw)


def test_edm_boundary_is_finite_where_alpha_vanishes_and_the_same_in_every_process():
    process = CosineVP(t_min=0.01)
    skip, out = edm_scalings(torch.tensor([1.0, 1 - 1e-9]), process)
    assert_close(skip, torch.zeros(2).double(), rtol=0, atol=1e-6)
    assert_close(out, torch.ones(2).double(), rtol=0, atol=1e-6)
    tau = torch.tensor([0.5, 3.0], dtype=torch.float64)
    edm = EDM(sigma_min=float(process.tau(torch.tensor(0.01))))
    here = edm_scalings(process.time_from_tau(tau), process)
    there = edm_scalings(tau, edm)
    alpha = process.coefficients(process.time_from_tau(tau)).alpha
    assert_close(here.skip * alpha, there.skip, rtol=1e-6, atol=1e-9)
    assert_close(here.out, there.out, rtol=1e-6, atol=1e-9)


def test_lcm_boundary_is_that_of_diffusers_and_holds_at_index_zero_only():
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    for i in (0, 1, 19, 999):
        skip, out = lcm_scalings(col(float(i)), VP_SD)
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(i)
        assert (skip.item(), out.item()) == (pytest.approx(theirs[0], rel=1e-9), pytest.approx(theirs[1], rel=1e-9))
    assert lcm_scalings(col(19.0), VP_SD).skip.item() == pytest.approx(7e-6, rel=0.02)
    x = randoms(4, 2)
    f = ConsistencyFunction(Raw(VP_SD, Kind.EPS), "lcm").x0(x, col(0.0, 4), {})
    assert_close(f, x, rtol=1e-7, atol=1e-7)
    with pytest.raises(UserError, match="index"):
        lcm_scalings(col(0.5), CosineVP())


def test_boundaries_of_anchored_processes_are_refused():
    with pytest.raises(UserError, match="jump"):
        ConsistencyFunction(ExactGaussian(PROCESSES["residual"]), "edm")


@pytest.mark.parametrize("kind", [Kind.EPS, Kind.X0, Kind.V, Kind.VELOCITY])
@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow", "trigflow"])
def test_a_jump_to_where_one_is_changes_nothing(name, kind):
    process = PROCESSES[name]
    t, x = process.unit_to_time(torch.tensor([0.1, 0.5, 0.9])), randoms(3, 4)
    clean = decompose(Prediction(randoms(3, 4, seed=1), kind), x, t, process)
    assert_close(ddim_step(clean, t, process), x, rtol=1e-6, atol=1e-6)


def test_trigflow_x0_is_the_identity_at_zero():
    process = PROCESSES["trigflow"]
    x, t = randoms(3, 4), col(0.0, 3)
    clean = decompose(Prediction(randoms(3, 4, seed=1), Kind.VELOCITY), x, t, process)
    assert_close(clean.x0, x, rtol=0, atol=1e-15)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("distance", ["l2", "l1", "huber", "huber_element"])
def test_target_carries_no_gradient(distance):
    online, target = randoms(4, 3).requires_grad_(), randoms(4, 3, seed=1).requires_grad_()
    consistency_loss(online, target, distance=distance).sum().backward()
    assert online.grad is not None
    assert target.grad is None


@given(st.integers(1, 40), st.integers(0, 100))
def test_elementwise_huber_tends_to_the_sign_and_vector_huber_to_the_direction(n, seed):
    online, target = randoms(2, n, seed=seed).requires_grad_(), randoms(2, n, seed=seed + 1)
    consistency_loss(online, target, distance="huber_element", c=1e-12).sum().backward()
    assert_close(online.grad, torch.sign(online - target).detach() / n, rtol=1e-6, atol=1e-9)
    online.grad = None
    consistency_loss(online, target, distance="huber", c=1e-12).sum().backward()
    gap = (online - target).detach()
    assert_close(online.grad, gap / gap.norm(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_loss_is_per_sample_weighted_and_uses_the_published_huber_constants():
    online, target = randoms(3, 8), randoms(3, 8, seed=1)
    weight = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert_close(consistency_loss(online, target, weight=weight), weight * (online - target).square().mean(1))
    c = 0.00054 * 8**0.5
    square = (online - target).square()
    assert_close(consistency_loss(online, target, distance="huber"), (square.sum(1) + c**2).sqrt() - c)
    assert_close(consistency_loss(online, target, distance="huber_element"), ((square + 1e-6).sqrt() - 1e-3).mean(1))
    for distance in ("l2", "l1", "huber", "huber_element"):
        assert_close(consistency_loss(online, online, distance=distance), torch.zeros(3).double())


def test_parameter_gradient_at_the_exact_student_is_of_the_order_of_the_residual():
    """A student with one free factor: its gradient is of the residual's size and falls with it."""
    grads = []
    for n in (50, 100):
        knots, factor = knot_grid(VP_SD, n), torch.ones((), dtype=torch.float64, requires_grad=True)
        teacher, student = ExactGaussian(VP_SD), ExactConsistency(VP_SD)
        x_t = on_trajectory(VP_SD, knots.times)
        x_s = find_solver("ddim").step(Move(teacher, x_t, knots.times, knots.previous))[0]
        f_t, f_s = (student.x0(x, k, {}) * factor for x, k in ((x_t, knots.times), (x_s, knots.previous)))
        consistency_loss(f_t, f_s).mean().backward()
        grads.append(abs(factor.grad.item()))
    assert grads[0] < 3 * rms(residuals(VP_SD, knot_grid(VP_SD, 50), "ddim"))
    assert grads[0] / grads[1] > 1.8


def test_gap_weight_is_the_inverse_of_the_noise_level_step():
    assert_close(gap_weight(col(3.0), col(2.5), EDM_), col(2.0))
    t, s = VP_SD.time_from_tau(col(3.0)), VP_SD.time_from_tau(col(2.5))
    assert_close(gap_weight(t, s, VP_SD), col(2.0), rtol=1e-6, atol=0)


# ---------------------------------------------------------------- phases and ends


def test_phases_of_pcm():
    knots = knot_grid(VP_SD, 50)
    ends = dict(zip(knots.times.tolist(), phase_ends(knots, 4).tolist(), strict=True))
    assert (ends[19], ends[239], ends[259], ends[499], ends[519], ends[999]) == (0, 0, 239, 239, 499, 739)
    assert sorted(set(ends.values())) == [0, 239, 499, 739]
    assert phase_starts(knots, 4) == (999, 739, 499, 239)
    target_is_end = [i for i in range(50) if knots.previous[i] == phase_ends(knots, 4)[i]]
    assert target_is_end == [0, 12, 25, 37]
    assert set(phase_ends(knots, 1).tolist()) == {0}
    assert phase_ends(knots, 50).tolist() == knots.previous.tolist()
    with pytest.raises(UserError, match="num_phases"):
        phase_ends(knots, 51)


@given(st.sampled_from(["vp", "cosine", "edm"]), st.integers(1, 60), st.data())
def test_phases_tile_the_range(name, n, data):
    knots = knot_grid(PROCESSES[name], n)
    phases = data.draw(st.integers(1, len(knots.times)))
    ends, starts = phase_ends(knots, phases), phase_starts(knots, phases)
    assert len(starts) == phases
    assert bool((ends <= knots.previous).all())
    # sampling from start to start, each jump ends exactly where the next phase starts
    at = dict(zip(knots.times.tolist(), ends.tolist(), strict=True))
    assert [at[t] for t in starts] == [*starts[1:], knots.previous[0].item()]


def test_even_knots_are_the_scheduler_s():
    assert even_knots(knot_grid(VP_SD, 50), 4) == (999, 759, 499, 259)
    assert even_knots(knot_grid(VP_SD, 50), 1) == (999,)
    assert even_knots(knot_grid(VP_SD, 50), 50)[-1] == 19
    with pytest.raises(UserError, match="num_steps"):
        even_knots(knot_grid(VP_SD, 50), 51)


@given(st.sampled_from(["vp", "cosine", "edm", "flow"]), st.floats(0, 0.999))
def test_random_ends_lie_between_the_phase_s_end_and_the_target(name, fraction):
    process = PROCESSES[name]
    start, s = process.unit_to_time(col(0.25)), process.unit_to_time(col(0.7))
    if process.discrete:
        start, s = start.floor(), s.floor()
    end = random_end(col(fraction), start, s, process)
    assert start.item() <= end.item() <= s.item()
    assert_close(random_end(col(0.0), start, s, process), start)
    if process.discrete:
        assert end.item() == round(end.item())


def test_random_jumps_of_the_exact_student_have_a_second_order_residual():
    """With the noise that is exact for the drawn end the loss is the solver's error; with the posterior's it is not."""
    losses = {}
    for n in (50, 100):
        knots = knot_grid(VP_SD, n)
        keep = slice(n // 5, None)  # away from the first knots, whose steps in tau are the longest
        t, s = knots.times[keep], knots.previous[keep]
        end = random_end(torch.linspace(0, 0.9, len(t)).double(), torch.zeros_like(t), s, VP_SD)
        x_t = on_trajectory(VP_SD, t)
        x_s = find_solver("ddim").step(Move(ExactGaussian(VP_SD), x_t, t, s))[0]
        for name, student in (("oracle", ExactJump(VP_SD)), ("posterior", ExactGaussian(VP_SD))):
            jumps = [ddim_step(student.clean(x, k, {"end": end}), end, VP_SD) for x, k in ((x_t, t), (x_s, s))]
            losses[name, n] = rms(consistency_loss(*jumps).sqrt())
    assert losses["oracle", 50] / losses["oracle", 100] > 3
    assert losses["posterior", 50] > 2 * losses["oracle", 50]


def test_end_time_changes_the_exact_prediction_as_published():
    """Oracle eps for the clean end against a near one (s = 0.5): 14 % at tau = 3 and 31 % at tau = 1."""
    for tau, expected in ((3.0, 0.14), (1.0, 0.31)):
        spread = (STD**2 + tau**2) ** 0.5
        clean, near = (1 - STD / spread) / tau, tau / spread**2
        assert abs(clean / near - 1) == pytest.approx(expected, abs=0.01)
        t = VP_SD.time_from_tau(col(tau))
        x = on_trajectory(VP_SD, t)
        far = ExactJump(VP_SD, 0.0).eps(x, t, {}) / ExactJump(VP_SD, t.item() - 0.01).eps(x, t, {})
        assert abs(far[0, 0].item() - 1) == pytest.approx(expected, abs=0.03)  # index 0 is not quite clean


# ---------------------------------------------------------------- curricula


def test_curricula_have_the_published_ends():
    assert sqrt_schedule(0, 1000) == 2
    assert sqrt_schedule(1000, 1000) == sqrt_schedule(5000, 1000) == 151
    assert sqrt_schedule(250, 1000) == math.ceil(math.sqrt(0.25 * (151**2 - 4) + 4) - 1) + 1
    assert exponential_schedule(0, 400_000) == 11
    assert exponential_schedule(400_000, 400_000) == 1281
    assert exponential_schedule(100_000, 400_000) == 10 * 2**2 + 1
    assert training_ema_decay(2) == pytest.approx(0.95)
    assert training_ema_decay(150) == pytest.approx(math.exp(2 * math.log(0.95) / 150))


def test_easy_consistency_tuning_starts_as_diffusion_and_closes_up():
    tau = torch.tensor([0.01, 1.0, 10.0], dtype=torch.float64)
    # at stage 0 the target is the data itself wherever 1 + 8 sigmoid(-tau) >= 2, that is below tau = log 7
    assert_close(
        ect_end(torch.tensor([0.01, 1.0, math.log(7)]).double(), 0), torch.zeros(3).double(), atol=1e-6, rtol=0
    )
    assert ect_end(tau, 0)[2] > 0
    gaps = [(tau - ect_end(tau, stage)) / tau for stage in range(6)]
    assert all(bool((a >= b).all()) for a, b in itertools.pairwise(gaps))
    assert_close(ect_end(tau, 3), tau * (1 - (1 + 8 / (1 + tau.exp())) / 16))


def test_progressive_and_velocity_weights_are_one_loss():
    """(1 + SNR) |dx0|^2 equals |dv|^2 for every sample of a variance-preserving process."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    process, x = CosineVP(), randoms(3, 4)
    c = process.coefficients(t)
    values = []
    for seed in (1, 2):
        x0 = randoms(3, 4, seed=seed)
        clean = decompose(Prediction(x0, Kind.X0), x, t, process)
        values.append((x0, compose(clean, Kind.V, t, process)))
    (a, va), (b, vb) = values
    snr = (c.alpha / c.sigma) ** 2
    assert_close((1 + snr)[:, None] * (a - b) ** 2, (va - vb) ** 2, rtol=1e-10, atol=1e-12)
    assert isinstance(Clean(a, b), Clean)
    assert isinstance(VP_SD, VP)
