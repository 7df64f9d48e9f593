"""Exact teachers against densities, quadrature, autograd and tight integration of the ODE they solve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from core.processes import PROCESSES, anchored, at, randoms
from core.score_bed import Mixture
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher, MixtureTeacher, gauss_grid, linear_generator_score, log_ratio
from fewstep.core.analytic.mixture import ALL_CLASSES
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, TrigFlow
from fewstep.core.rng import Rng

F64 = torch.float64
NAMES = ("vp", "cosine", "edm", "shifted", "trigflow", "offset", "residual")
BED_TIME = 2 / math.pi * math.asin(0.6)  # alpha 0.8, sigma 0.6 of CosineVP


def planar(process, kind=Kind.X0, stds=(0.4, 0.6, 0.3)):
    return MixtureTeacher(process, [1.0, 2.0, 3.0], [[-2.0, 0.5], [1.5, 1.0], [0.0, -1.0]], stds, kind=kind)


def gaussians(process, kind=Kind.X0):
    root = torch.tensor([[0.5, 0.2], [-0.3, 0.8]], dtype=F64)
    mean = torch.tensor([0.3, -0.7], dtype=F64)
    return {
        "round": GaussianTeacher(process, 0.3, 0.5, kind=kind),
        "diagonal": GaussianTeacher(process, mean, torch.tensor([0.5, 0.2], dtype=F64), kind=kind),
        "full": GaussianTeacher(process, mean, covariance=root @ root.mT, kind=kind),
        "mixture": planar(process, kind),
    }


def tight_flow(teacher, x, t, s, cond):
    """The probability-flow ODE in variance-exploding coordinates, from eps predictions alone, for one (t, s)."""
    process, anchor = teacher.process, cond.get("anchor")
    (tau, a), (end, b) = ((float(process.tau(v)[0]), process.coefficients(v).alpha[0]) for v in (t, s))

    def rate(log_tau, flat):
        level = process.time_from_tau(torch.tensor([math.exp(log_tau)], dtype=F64)).expand(len(x))
        core = torch.from_numpy(flat).reshape(x.shape) * process.coefficients(level).alpha[:, None]
        x_t = process.offset(core, level, anchor, sign=1.0)
        return math.exp(log_tau) * teacher.eps(x_t, level, cond).numpy().ravel()

    bar = process.offset(x, t, anchor) / a
    solved = solve_ivp(
        rate, (math.log(tau), math.log(end)), bar.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-11
    )
    core = torch.from_numpy(np.ascontiguousarray(solved.y[:, -1])).reshape(x.shape) * b
    return process.offset(core, s, anchor, sign=1.0)


# ---------------------------------------------------------------- predictions, densities, Jacobians


@pytest.mark.parametrize(
    ("x", "golden"),
    [
        (0.5, (1.1425856066, 0.5688124306, 1.1501902368, -0.1248612653, -0.3078475756)),
        (-1.0, (-1.7251013731, -0.8379578246, -1.0557808291, 0.9156492786, -0.3710518791)),
    ],
)
@pytest.mark.parametrize("kind", Kind)
def test_pointwise_values_in_every_parameterisation(x, golden, kind):
    q = MixtureTeacher(CosineVP(), [0.3, 0.7], [[-2.0], [1.5]], [0.4, 0.6], kind=kind)
    p = linear_generator_score(CosineVP(), 1.3, 0.4, kind=kind)
    x_t, t = torch.tensor([[x]], dtype=F64), at(BED_TIME, 1)
    got = [f(x_t, t, {}).item() for f in (q.x0, p.x0, q.score, p.score)]
    assert [*got, log_ratio(q, p, x_t, t).item()] == pytest.approx(golden, abs=2e-10)


@pytest.mark.parametrize("law", ["round", "diagonal", "full", "mixture"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_gradients_of_densities_and_jacobians_of_predictions(name, law):
    process = PROCESSES[name]
    teacher, cond = gaussians(process)[law], anchored(process, 5, 2)
    x = randoms(5, 2).requires_grad_()
    t = process.unit_to_time(torch.linspace(0.3, 0.95, 5, dtype=F64))
    score, x0 = teacher.score(x, t, cond), teacher.x0(x, t, cond)
    (gradient,) = torch.autograd.grad(teacher.log_density(x, t, cond).sum(), x)
    assert_close(score, gradient, rtol=1e-9, atol=1e-10)
    for value, jacobian in ((score, teacher.score_jacobian), (x0, teacher.x0_jacobian)):
        rows = [torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
        assert_close(jacobian(x, t, cond), torch.stack(rows, 1), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "residual"])
def test_the_mixture_is_the_one_written_from_densities(name):
    process = PROCESSES[name]
    ours, other = planar(process), Mixture(process, [1 / 6, 2 / 6, 3 / 6], planar(process).means, (0.4, 0.6, 0.3))
    x, t = 2 * randoms(9, 2), process.unit_to_time(torch.linspace(0.05, 0.99, 9, dtype=F64))
    cond = {"label": torch.tensor([0, 1, 2, -1, 0, 1, 2, -1, -1])}
    for c in ({}, cond):
        assert_close(ours.x0(x, t, c), other.x0(x, t, c), rtol=1e-10, atol=1e-10)
        assert_close(ours.log_density(x, t, c), other.log_density(x, t, c), rtol=1e-10, atol=1e-10)
    shares = ours.responsibilities(x, t, cond)
    assert_close(shares.sum(1), torch.ones(9, dtype=F64))
    assert shares[:2].argmax(1).tolist() == [0, 1]
    assert bool((shares[3] > 0).all())
    assert shares[:2].amax(1).tolist() == [1, 1]


@pytest.mark.parametrize("law", ["round", "full", "mixture"])
def test_densities_are_normalised_and_are_those_of_noised_samples(law):
    """E over x0 and eps of a function of x_t, by quadrature, equals its integral against the density."""
    process = RectifiedFlow()
    teacher, t = gaussians(process)[law], 0.4
    line = torch.linspace(-6, 6, 241, dtype=F64)
    x = torch.cartesian_prod(line, line)
    density = teacher.log_density(x, at(t, len(x))).exp() * (line[1] - line[0]) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-9)
    first, second = (density[:, None] * x).sum(0), torch.einsum("n,ni,nj->ij", density, x, x)
    if law == "mixture":
        w, m, s = teacher.weights, teacher.means, teacher.stds
        mean, square = (w[:, None] * m).sum(0), torch.einsum("k,ki,kj->ij", w, m, m)
        square = square + (w * s**2).sum() * torch.eye(2, dtype=F64)
    else:
        mean = teacher.mean.expand(2)
        basis = torch.eye(2, dtype=F64) if teacher.basis is None else teacher.basis
        square = basis @ torch.diag(teacher.std.expand(2) ** 2) @ basis.mT + torch.outer(mean, mean)
    assert_close(first, (1 - t) * mean, rtol=0, atol=1e-9)
    assert_close(second, (1 - t) ** 2 * square + t**2 * torch.eye(2, dtype=F64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["cosine", "flow", "trigflow"])
@pytest.mark.parametrize("kind", [Kind.X0, Kind.V, Kind.FLOW, Kind.VELOCITY])
def test_pure_noise_says_the_mean_of_the_data(name, kind):
    process = PROCESSES[name]
    teacher, x, end = planar(process, kind), randoms(4, 2), at(process.t_max, 4)
    assert_close(
        teacher.x0(x, end, {}), (teacher.weights[:, None] * teacher.means).sum(0).expand(4, 2), rtol=0, atol=1e-12
    )
    start = at(process.t_min, 4)
    assert_close(planar(process, Kind.V).x0(x, start, {}), x, rtol=0, atol=1e-12)


def test_float32_states_stay_float32_and_follow_float64():
    teacher, x = planar(EDM()), randoms(6, 2)
    t = torch.tensor([0.01, 0.1, 0.5, 1, 5, 80], dtype=F64)
    low = teacher.x0(x.float(), t, {})
    assert low.dtype == torch.float32
    assert_close(low.double(), teacher.x0(x, t, {}), rtol=1e-5, atol=1e-5)
    assert teacher.predict(x.bfloat16(), t, {}).value.dtype == torch.float32


def test_images_are_vectors_of_pixels():
    process = VP.scaled_linear()
    means, x = randoms(3, 2, 4, 4), randoms(5, 2, 4, 4, seed=1)
    flat = MixtureTeacher(process, [1.0, 1.0, 1.0], means.flatten(1), [0.3, 0.3, 0.3])
    image = MixtureTeacher(process, [1.0, 1.0, 1.0], means, [0.3, 0.3, 0.3])
    t, s = at(600, 5), at(20, 5)
    assert_close(image.x0(x, t, {}), flat.x0(x.flatten(1), t, {}).reshape(x.shape))
    assert image.score_jacobian(x, t).shape == (5, 32, 32)
    # of two means a line can be drawn: the map is exact in any dimension
    pair = MixtureTeacher(process, [1.0, 2.0], means[:2], [0.3, 0.3])
    assert_close(
        pair.flow_map(x, t, s), tight_flow(pair_flat(pair), x.flatten(1), t, s, {}).reshape(x.shape), rtol=0, atol=1e-8
    )


def pair_flat(teacher):
    return MixtureTeacher(teacher.process, teacher.weights, teacher.means.flatten(1), teacher.stds)


# ---------------------------------------------------------------- closed forms of test bed A

M, V, K, B, ALPHA, SIGMA = 0.7, 0.5, 1.3, -0.4, 0.8, 0.6
P, Q, DELTA = ALPHA**2 * K**2 + SIGMA**2, ALPHA**2 * V**2 + SIGMA**2, ALPHA * (B - M)


@pytest.fixture(scope="module")
def gaussian_bed():
    """Student N(b, k^2) with k, b attached, teacher N(m, v^2), x_t of the student on the grid."""
    process, grid = CosineVP(), gauss_grid()
    k, b = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (K, B))
    t = at(BED_TIME, len(grid.mass))
    x_t = process.add_noise(k * grid.noise[0] + b, grid.noise[1], t)
    return grid, k, b, t, x_t, GaussianTeacher(process, M, V), linear_generator_score(process, k, b)


def gradients(value, *inputs):
    return [g.item() for g in torch.autograd.grad(value, inputs, retain_graph=True)]


def test_reverse_kl_in_closed_form(gaussian_bed):
    grid, k, b, t, x_t, q, p = gaussian_bed
    kl = -grid.mean(log_ratio(q, p, x_t, t))
    assert kl.item() == pytest.approx(0.5 * (math.log(Q / P) + P / Q - 1 + DELTA**2 / Q), abs=1e-9)
    assert kl.item() == pytest.approx(1.12092919, abs=1e-8)
    expected = [ALPHA**2 * K * (1 / Q - 1 / P), ALPHA**2 * (B - M) / Q]
    assert gradients(kl, k, b) == pytest.approx(expected, abs=1e-8)
    assert gradients(kl, k, b) == pytest.approx([1.02286349, -1.35384615], abs=1e-8)


def test_the_score_of_the_student_s_parameters_has_expectation_zero(gaussian_bed):
    """Why the fake score's parameters are frozen: E_p[d log p] = 0, so the KL's gradient is the path's alone."""
    grid, k, b, t, x_t, q, p = gaussian_bed
    kl = -grid.mean(log_ratio(q, p.frozen(), x_t, t))
    assert gradients(kl, k, b) == pytest.approx([1.02286349, -1.35384615], abs=1e-8)
    at_rest = grid.mean(p.log_density(x_t.detach(), t))
    assert gradients(at_rest, k, b) == pytest.approx([0, 0], abs=1e-9)


def test_forward_kl_in_closed_form(gaussian_bed):
    grid, k, b, t, x_t, q, p = gaussian_bed
    ratio = log_ratio(q, p, x_t, t)
    kl = grid.mean(ratio.exp() * ratio)
    assert kl.item() == pytest.approx(0.5 * (math.log(P / Q) + Q / P - 1 + DELTA**2 / P), abs=1e-9)
    assert kl.item() == pytest.approx(0.45878565, abs=1e-8)
    expected = [ALPHA**2 * K * (1 / P - (Q + DELTA**2) / P**2), ALPHA**2 * (B - M) / P]
    assert gradients(kl, k, b) == pytest.approx(expected, abs=1e-8)


def test_fisher_and_its_two_parts_in_closed_form(gaussian_bed):
    grid, k, b, t, x_t, q, p = gaussian_bed
    gap = p.score(x_t, t, {}) - q.score(x_t, t, {})
    fisher = grid.mean(gap.square().sum(1))
    assert fisher.item() == pytest.approx((P - Q) ** 2 / (P * Q**2) + DELTA**2 / Q**2, abs=1e-9)
    whole = [2 * ALPHA**2 * K * (1 / Q**2 - 1 / P**2), 2 * ALPHA**2 * (B - M) / Q**2]
    assert gradients(fisher, k, b) == pytest.approx(whole, abs=1e-8)
    held = p.score(x_t.detach(), t, {})
    first = grid.mean(2 * (gap.detach() * held).sum(1))
    g1 = [4 * ALPHA**2 * K * (P - Q) / (P**2 * Q), 2 * ALPHA**2 * (B - M) / (P * Q)]
    assert gradients(first, k, b) == pytest.approx(g1, abs=1e-8)
    path = grid.mean((p.frozen().score(x_t, t, {}) - q.score(x_t, t, {})).square().sum(1))
    g2 = [
        2 * ALPHA**2 * K * (P - Q) ** 2 / (P**2 * Q**2),
        2 * ALPHA**2 * (B - M) * (P - Q) / (P * Q**2),
    ]
    assert gradients(path, k, b) == pytest.approx(g2, abs=1e-8)
    assert [x + y for x, y in zip(g1, g2, strict=True)] == pytest.approx(whole, abs=1e-12)


def test_the_fisher_divergence_over_noise_levels_is_the_kl_of_the_data():
    """de Bruijn: KL(p_0 || q_0) = 1/2 int Fisher d(sigma^2), from scores on an EDM grid."""
    process, grid = EDM(1e-6, 1e6), gauss_grid(n=41, axes=1)
    q, p = GaussianTeacher(process, M, V), linear_generator_score(process, K, B)
    nodes, weights = np.polynomial.legendre.leggauss(120)
    level = torch.from_numpy(nodes * 14)  # log sigma^2 in [-14, 14]; the tails beyond are below 1e-5
    total = 0.0
    for log_square, weight in zip(level, weights, strict=True):
        square = log_square.exp()
        x = B + (K**2 + square).sqrt() * grid.noise[0]
        t = square.sqrt().expand(len(x))
        fisher = grid.mean((p.score(x, t, {}) - q.score(x, t, {})).square().sum(1))
        total += 14 * weight * (square * fisher / 2).item()
    low, high = math.exp(-14), math.exp(14)
    tail = ((P0 - Q0) ** 2 / (P0 * Q0**2) + (B - M) ** 2 / Q0**2) * low / 2 + (B - M) ** 2 / high / 2
    assert total + tail == pytest.approx(4.3444885550, abs=2e-9)
    assert 0.5 * (math.log(Q0 / P0) + P0 / Q0 - 1 + (B - M) ** 2 / Q0) == pytest.approx(4.3444885550, abs=1e-9)


P0, Q0 = K**2, V**2


def test_the_best_linear_denoiser_is_the_teacher():
    grid, process = gauss_grid(), CosineVP()
    t, x0 = at(BED_TIME, len(grid.mass)), K * grid.noise[0] + B
    x_t = process.add_noise(x0, grid.noise[1], t)
    ones = torch.ones_like(x_t)
    design = torch.cat([x_t, ones], 1)
    normal = torch.einsum("n,ni,nj->ij", grid.mass, design, design)
    slope, shift = torch.linalg.solve(normal, torch.einsum("n,ni,nj->ij", grid.mass, design, x0))[:, 0].tolist()
    assert slope == pytest.approx(ALPHA * K**2 / P, abs=1e-9)
    assert shift == pytest.approx(B - ALPHA * slope * B, abs=1e-9)
    teacher = linear_generator_score(process, K, B)
    assert_close(teacher.x0(x_t, t, {}), slope * x_t + shift, rtol=0, atol=1e-7)
    assert_close(teacher.eps(x_t, t, {}), SIGMA / P * (x_t - ALPHA * B), rtol=0, atol=1e-12)


def test_quadrature_integrates_moments():
    grid = gauss_grid(n=61, axes=2)
    z, e = grid.noise
    assert grid.mean(z**4 * e**2).item() == pytest.approx(3, abs=1e-9)
    assert grid.mean(torch.cat([z, z * e, e**6], 1)).tolist() == pytest.approx([0, 0, 15], abs=1e-9)
    assert gauss_grid(n=61, axes=1, dtype=torch.float32).noise.dtype == torch.float32
    with pytest.raises(UserError, match="at least 2 nodes"):
        gauss_grid(n=1)


def test_frozen_keeps_the_law_and_cuts_the_gradient():
    k, b = (torch.tensor([1.3, 0.2], dtype=F64, requires_grad=True) for _ in range(2))
    fake = linear_generator_score(EDM(), k, b)
    x, t = randoms(3, 2).requires_grad_(), at(0.7, 3)
    attached, frozen = fake.x0(x, t, {}), fake.frozen().x0(x, t, {})
    assert_close(attached, frozen)
    assert torch.autograd.grad(attached.sum(), [k, b], retain_graph=True)[0].abs().min() > 0
    assert torch.autograd.grad(frozen.sum(), [k, b, x], allow_unused=True)[:2] == (None, None)
    root = torch.tensor([[0.5, 0.2], [-0.3, 0.8]], dtype=F64)
    full = GaussianTeacher(EDM(), b, covariance=root @ root.mT)
    assert_close(full.x0(x, t, {}), full.frozen().x0(x, t, {}))


# ---------------------------------------------------------------- flow maps

LEVELS = {"vp": (950.0, 100.0), "edm": (60.0, 0.05), "offset": (999.0, 3.0), "residual": (13.0, 1.0)}


def ends(name):
    process = PROCESSES[name]
    return LEVELS.get(name, (0.05 * process.t_min + 0.95 * process.t_max, 0.97 * process.t_min + 0.03 * process.t_max))


@pytest.mark.parametrize("law", ["round", "diagonal", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_gaussian_flow_maps_solve_the_ode_both_ways(name, law):
    process = PROCESSES[name]
    teacher, cond, x = gaussians(process)[law], anchored(process, 3, 2), randoms(3, 2)
    t, s = (at(v, 3) for v in ends(name))
    moved = teacher.flow_map(x, t, s, cond)
    assert_close(moved, tight_flow(teacher, x, t, s, cond), rtol=0, atol=2e-9)
    assert_close(teacher.flow_map(moved, s, t, cond), x, rtol=0, atol=1e-10)
    assert_close(teacher.flow_map(x, t, t, cond), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", ["line", "collinear", pytest.param("general", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["edm", pytest.param("flow", marks=pytest.mark.slow), "residual"])
def test_mixture_flow_maps_solve_the_ode_and_compose(name, shape):
    process = PROCESSES[name]
    teacher = {
        "line": MixtureTeacher(process, [0.3, 0.7], [[-2.0], [1.5]], [0.4, 0.6]),
        "collinear": MixtureTeacher(process, [1.0, 2.0, 1.0], [[0.0, 1.0], [1.0, 3.0], [-0.5, 0.0]], [0.3, 0.3, 0.3]),
        "general": planar(process),
    }[shape]
    x = randoms(3, *teacher.shape)
    cond, (t, s) = anchored(process, *x.shape), (at(v, 3) for v in ends(name))
    moved = teacher.flow_map(x, t, s, cond)
    assert_close(moved, tight_flow(teacher, x, t, s, cond), rtol=0, atol=3e-8)
    half = process.time_from_tau((process.tau(t) * process.tau(s)).sqrt())
    halfway = teacher.flow_map(x, t, half, cond)
    assert_close(teacher.flow_map(halfway, half, s, cond), moved, rtol=0, atol=1e-8)
    assert_close(teacher.flow_map(moved, s, t, cond), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("law", ["round", "full", "mixture", "line", "collinear"])
def test_flow_maps_carry_densities(law):
    """log p_s(x_s) = log p_t(x_t) - log |det dx_s/dx_t|; the derivative is the map's own autograd."""
    process = RectifiedFlow()
    teacher = (
        gaussians(process)
        | {
            "line": MixtureTeacher(process, [0.3, 0.7], [[-2.0], [1.5]], [0.4, 0.6]),
            "collinear": MixtureTeacher(process, [1.0, 2.0], [[0.0, 1.0], [1.0, 3.0]], [0.3, 0.3]),
        }
    )[law]
    n = 1 if law == "line" else 2
    x = randoms(4, n).requires_grad_()
    t, s = torch.tensor([1.0, 0.9, 0.6, 0.2], dtype=F64), torch.tensor([0.1, 0.3, 0.0, 0.7], dtype=F64)
    y = teacher.flow_map(x, t, s)
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(n)]
    jacobian = torch.stack(rows, 1)
    before, after = teacher.log_density(x, t), teacher.log_density(y, s)
    assert_close(after, before - jacobian.det().abs().log(), rtol=0, atol=1e-7)


def test_quantile_maps_are_exact_far_in_both_tails():
    """Far outside, one component rules and the map is its straight line; the map is increasing throughout."""
    process = EDM()
    teacher = MixtureTeacher(process, [0.3, 0.7], [[-2.0], [1.5]], [0.4, 0.4])
    t, s = at(2.0, 401), at(0.05, 401)
    x = torch.linspace(-80, 80, 401, dtype=F64)[:, None]
    y = teacher.flow_map(x, t, s)
    assert bool((y.diff(dim=0) > 0).all())
    scale = math.sqrt((0.16 + 0.0025) / (0.16 + 4))
    assert y[0].item() == pytest.approx(-2 + scale * (-80 + 2), abs=2e-3)
    assert y[-1].item() == pytest.approx(1.5 + scale * (80 - 1.5), abs=2e-3)
    assert_close(teacher.flow_map(y, s, t), x, rtol=1e-10, atol=1e-10)


def test_the_derivative_of_the_quantile_map_can_be_differentiated():
    teacher = MixtureTeacher(RectifiedFlow(), [0.3, 0.7], [[-2.0], [1.5]], [0.4, 0.6])
    x = randoms(4, 1).requires_grad_()
    t, s = torch.tensor([1.0, 0.9, 0.5, 0.3], dtype=F64), torch.tensor([0.0, 0.1, 0.8, 0.2], dtype=F64)
    assert torch.autograd.gradcheck(lambda x: teacher.flow_map(x, t, s), x, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda x: teacher.flow_map(x, t, s), x, atol=1e-5)


def test_the_derivative_of_the_integrated_map_is_its_own():
    teacher, x = planar(RectifiedFlow()), randoms(2, 2).requires_grad_()
    t, s = torch.tensor([1.0, 0.4], dtype=F64), torch.tensor([0.1, 0.9], dtype=F64)
    assert torch.autograd.gradcheck(lambda x: teacher.flow_map(x, t, s), x, atol=1e-6)


def test_each_sample_follows_its_own_class_and_times():
    teacher = MixtureTeacher(EDM(), [1.0, 2.0, 3.0], planar(EDM()).means, [0.4, 0.6, 0.3], classes=[(0, 1), (2,)])
    x = randoms(4, 2)
    t, s = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64), torch.tensor([0.1, 0.2, 5.0, 0.4], dtype=F64)
    cond = {"label": torch.tensor([0, 1, 1, ALL_CLASSES])}
    together = teacher.flow_map(x, t, s, cond)
    for i in range(4):
        one = teacher.flow_map(x[i : i + 1], t[i : i + 1], s[i : i + 1], {"label": cond["label"][i : i + 1]})
        assert_close(together[i : i + 1], one, rtol=0, atol=1e-8)
    alone = GaussianTeacher(EDM(), teacher.means[2], 0.3)
    assert_close(together[1:3], alone.flow_map(x[1:3], t[1:3], s[1:3]), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- oracles of trajectory methods


def test_jumps_of_the_oracle_tend_to_the_prediction():
    teacher, x = GaussianTeacher(EDM(1e-6, 80.0), 0.3, 0.5), randoms(5, 2)
    t = at(3.0, 5)
    true = teacher.eps(x, t, {})
    gaps = []
    for end in (1.0, 2.9, 2.99, 2.999):
        eps = (x - teacher.flow_map(x, t, at(end, 5))) / (3 - end)
        ratio = math.sqrt(0.25 + end**2) / math.sqrt(0.25 + 9)
        assert_close(eps, (x - 0.3) * (1 - ratio) / (3 - end), rtol=0, atol=1e-12)
        gaps.append((eps - true).abs().max().item())
    assert gaps[0] > 10 * gaps[1] / 1.5 > 10 * gaps[2] > 9 * 9 * gaps[3]


def test_the_oracle_of_trigflow_is_the_velocity_where_the_jump_is_short():
    process, sd = TrigFlow(), 0.5
    teacher, x = GaussianTeacher(process, 0.3, 0.4), randoms(4, 2)
    t = torch.tensor([1e-3, 0.4, 1.2, math.pi / 2], dtype=F64)
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    clean = teacher.flow_map(x, t, at(0, 4))
    spread = (cos**2 * 0.4**2 + sin**2 * sd**2).sqrt()
    assert_close(clean, 0.3 + 0.4 / spread * (x - cos * 0.3), rtol=0, atol=1e-12)
    oracle = (cos * x - clean) / (sd * sin)
    assert_close(oracle[:1], teacher.velocity(x[:1], t[:1], {}) / sd, rtol=0, atol=5e-3)
    # zero tangent: d/dt of cos x - sd sin F along the trajectory vanishes
    h = 1e-5
    after = teacher.flow_map(x[1:3], t[1:3], t[1:3] + h)
    assert_close(teacher.flow_map(after, t[1:3] + h, at(0, 2)), clean[1:3], rtol=0, atol=1e-12)


def test_guidance_between_equal_gaussians_flows_like_the_guided_mean():
    process = VP.scaled_linear()
    teacher = MixtureTeacher(process, [1.0, 1.0], [[0.5, 1.0], [-0.5, 0.2]], [0.4, 0.4])
    negative = {"label": torch.full((3,), 1)}
    guided = Guided(teacher, 3.0, negative=negative)
    mean = teacher.means[1] + 3 * (teacher.means[0] - teacher.means[1])
    target = GaussianTeacher(process, mean, 0.4)
    x, t, s, cond = randoms(3, 2), at(900, 3), at(50, 3), {"label": torch.zeros(3, dtype=torch.long)}
    assert_close(guided.x0(x, t, cond), target.x0(x, t, {}), rtol=0, atol=1e-10)
    assert_close(target.flow_map(x, t, s), tight_flow(guided, x, t, s, cond), rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_between_unequal_spreads_has_a_power_law(scale):
    """x - m is proportional to (s_u^2 + tau^2)^((1-g)/2) (s_c^2 + tau^2)^(g/2) for equal means."""
    process = EDM()
    teacher = MixtureTeacher(process, [1.0, 1.0], [[0.3, 0.3], [0.3, 0.3]], [0.4, 1.1])
    guided = Guided(teacher, scale, negative={"label": torch.ones(2, dtype=torch.long)})
    x, t, s = randoms(2, 2), at(10, 2), at(0.1, 2)

    def law(tau):
        return (1.21 + tau**2) ** ((1 - scale) / 2) * (0.16 + tau**2) ** (scale / 2)

    cond = {"label": torch.zeros(2, dtype=torch.long)}
    expected = 0.3 + (x - 0.3) * law(0.1) / law(10.0)
    assert_close(tight_flow(guided, x, t, s, cond), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_stochastic_consistency_maps_are_martingales(eta):
    """f = m + (s^2/(s^2+tau^2))^((1+eta^2)/2) (x - m) is kept in the mean by the reverse SDE of strength eta."""
    teacher, tau, h = GaussianTeacher(EDM(1e-6, 80.0), 0.3, 0.5), 1.3, 1e-5

    def f(x, level):
        return 0.3 + (0.25 / (0.25 + level**2)) ** ((1 + eta**2) / 2) * (x - 0.3)

    x = randoms(4, 1)
    drift = (1 + eta**2) * teacher.eps(x, at(tau, 4), {})  # dx/dtau of the SDE; its noise has mean zero and f is affine
    change = (f(x - h * drift, tau - h) - f(x + h * drift, tau + h)) / (2 * h)
    assert change.abs().max().item() < 1e-8
    if eta == 0:
        assert_close(f(x, tau), teacher.flow_map(x, at(tau, 4), at(1e-6, 4)), rtol=0, atol=1e-6)
    if eta == 1:
        assert_close(f(x, tau), teacher.x0(x, at(tau, 4), {}), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- samples and misuse


def test_samples_have_the_law_and_are_those_of_their_ids():
    teacher = MixtureTeacher(EDM(), [1.0, 3.0], [[-2.0, 0.0], [1.0, 1.0]], [0.1, 0.3])
    rng = Rng.for_batch(3, 0, 20000)
    x = teacher.sample(rng, dtype=F64)
    left = x[:, 0] < -1
    assert left.double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert x[left].mean(0).tolist() == pytest.approx([-2, 0], abs=0.01)
    assert x[~left].std(0).tolist() == pytest.approx([0.3, 0.3], abs=0.01)
    assert torch.equal(teacher.sample(rng.select(7, 19), dtype=F64), x[7:19])
    labels = torch.arange(20000) % 2
    by_class = teacher.sample(rng, {"label": labels})
    assert torch.equal(by_class[:, 0] < -1, labels == 0)
    root = torch.tensor([[0.5, 0.2], [-0.3, 0.8]], dtype=F64)
    full = GaussianTeacher(EDM(), torch.tensor([1.0, 2.0], dtype=F64), covariance=root @ root.mT)
    drawn = full.sample(rng, dtype=F64)
    assert_close(drawn.T.cov(), root @ root.mT, rtol=0, atol=0.02)
    assert_close(drawn.mean(0), full.mean, rtol=0, atol=0.02)


def test_null_is_the_mixture_and_guidance_follows():
    teacher = planar(EDM())
    x, t, cond = randoms(3, 2), at(0.8, 3), {"label": torch.tensor([0, 1, 2])}
    assert_close(teacher.x0(x, t, teacher.null(cond)), teacher.x0(x, t, {}))
    assert teacher.null({}) == {}
    guided = Guided(teacher, 4.0).x0(x, t, cond)
    assert_close(guided, teacher.x0(x, t, {}) + 4 * (teacher.x0(x, t, cond) - teacher.x0(x, t, {})))
    gaussian = GaussianTeacher(EDM(), 0.3, 0.5)
    assert_close(Guided(gaussian, 4.0).x0(x, t, cond), gaussian.x0(x, t, cond))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GaussianTeacher(EDM(), 0.0), "either std or covariance"),
        (lambda: GaussianTeacher(EDM(), 0.0, 1.0, covariance=torch.eye(2)), "either std or covariance"),
        (lambda: GaussianTeacher(EDM(), torch.zeros(2), covariance=-torch.eye(2)), "positive definite"),
        (lambda: MixtureTeacher(EDM(), [1.0, 1.0], [[0.0]], [1.0, 1.0]), "do not fit"),
        (lambda: MixtureTeacher(EDM(), [1.0, 1.0], torch.zeros(2), [1.0, 1.0]), "one row per component"),
        (lambda: MixtureTeacher(EDM(), [1.0, 0.0], [[0.0], [1.0]], [1.0, 1.0]), "must be > 0"),
        (lambda: MixtureTeacher(EDM(), [1.0, 1.0], [[0.0], [1.0]], [1.0, 1.0], classes=[(0, 2)]), "outside 0..1"),
        (
            lambda: planar(EDM()).x0(torch.zeros(1, 2), torch.ones(1), {"label": torch.tensor([3])}),
            "labels lie in -1..2",
        ),
    ],
)
def test_misuse_is_named(make, said):
    with pytest.raises(UserError, match=said):
        make()
