from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import ExactGaussian, col
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.jvp import central_difference, directional_derivative, trajectory_difference
from fewstep.core.losses.tangent import (
    consistency_tangent,
    jvp_tangents,
    normalize_tangent,
    prior_weight,
    tangent_loss,
    tangent_warmup,
)
from fewstep.core.networks.log_variance import LogVariance
from fewstep.core.process import TrigFlow

SD = 0.5
TRIG = TrigFlow(sigma_data=SD)


def randoms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Student:
    """The exact student for N(m, s^2) data: f = m + (s/V)(x - cos t m), F = (cos t x - f)/(sigma_data sin t)."""

    def __init__(self, mean=0.3, std=0.5, shift=0.0):
        self.mean, self.std, self.shift = mean, torch.as_tensor(std, dtype=torch.float64), shift

    def f(self, x, t):
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        v = (cos**2 * self.std**2 + sin**2 * SD**2).sqrt()
        return self.mean + self.std / v * (x - cos * self.mean) + self.shift * sin

    def network(self, x, t):
        return (t.cos()[:, None] * x - self.f(x, t)) / (SD * t.sin()[:, None])


def mlp(seed=0):
    a, b = randoms(8, 4, seed=seed), randoms(3, 8, seed=seed + 1)
    return lambda x, t: torch.tanh(torch.cat([x, torch.sin(3 * t)[:, None]], 1) @ a.T) @ b.T


def tangent(network, x, t, velocity, warmup=1.0):
    value, derivative = directional_derivative(network, x, t, *jvp_tangents(t, velocity))
    return consistency_tangent(x, t, value, velocity, derivative, warmup=warmup, sigma_data=SD), value


T = torch.tensor([1e-3, 0.2, 0.7, 1.1, 1.5, math.pi / 2 - 1e-4], dtype=torch.float64)


def test_tangent_vanishes_at_the_exact_student_for_the_exact_velocity():
    teacher, student = ExactGaussian(TRIG), Student()
    x = randoms(6, 1)
    velocity = teacher.velocity(x, T, {})
    g, value = tangent(student.network, x, T, velocity)
    assert g.abs().max() < 1e-12
    u = torch.linspace(-1, 1, 6).double()
    assert_close(tangent_loss(value, g, weight=prior_weight(T), log_variance=u), u, rtol=0, atol=1e-12)
    # without the second part, it is the difference of velocities
    g0, _ = tangent(student.network, x, T, velocity, warmup=0.0)
    assert_close(g0, -(T.cos()[:, None] ** 2) * (SD * value - velocity), rtol=1e-12, atol=1e-14)
    assert g0.abs().max() > 0.01


@given(st.integers(0, 50))
def test_tangent_is_cos_t_times_the_derivative_of_the_consistency_function(seed):
    network, x, velocity, t = mlp(seed), randoms(4, 3, seed=seed), randoms(4, 3, seed=seed + 1), T[1:5]
    g, _ = tangent(network, x, t, velocity)

    def f(x, t):
        return t.cos()[:, None] * x - SD * t.sin()[:, None] * network(x, t)

    _, total = torch.func.jvp(f, (x, t), (velocity, torch.ones_like(t)))
    assert_close(g, t.cos()[:, None] * total, rtol=1e-12, atol=1e-12)


def test_parameter_gradient_is_the_limit_of_the_discrete_loss():
    """Against (2 cos t/(sigma_data sin t)) 1/2 |f(x_t) - stopgrad f(x_{t-gap})|^2 / gap, on the exact trajectory."""
    teacher, t, x = ExactGaussian(TRIG), torch.tensor([0.7]).double(), randoms(1, 1)
    frozen = Student(mean=0.25, std=0.45)
    g, _ = tangent(frozen.network, x, t, teacher.velocity(x, t, {}))
    errors = []

    def gradient(loss_of) -> float:
        std = torch.tensor(0.45, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss_of(Student(mean=0.25, std=std)).sum(), std)[0].item()

    ours = gradient(lambda student: tangent_loss(student.network(x, t), g))
    for gap in (1e-2, 1e-3, 1e-4):
        target = frozen.f(teacher.flow(x, t, t - gap), t - gap)
        factor = 2 * t.cos() / (SD * t.sin()) * 0.5 / gap
        theirs = gradient(lambda student: factor * (student.f(x, t) - target).square().sum(1))  # noqa: B023
        errors.append(abs(theirs - ours) / abs(ours))
    assert errors[0] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_gradient_of_the_loss_is_minus_two_weights_tangent_over_n():
    network = randoms(4, 5).requires_grad_()
    g, weight = randoms(4, 5, seed=1), torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    u = randoms(4, seed=2).requires_grad_()
    tangent_loss(network, g, weight=weight, log_variance=u).sum().backward()
    scale = weight * torch.exp(-u.detach())
    assert_close(network.grad, -2 * scale[:, None] * g / 5, rtol=1e-12, atol=1e-12)
    # the head sees the loss through its two terms only: d/du = 1 - exp(-u) w mean g^2
    assert_close(u.grad, 1 - scale * g.square().mean(1), rtol=1e-12, atol=1e-12)


@given(st.sampled_from(["rms", "l2", "clip"]), st.floats(1e-3, 1e4), st.integers(0, 20))
def test_normalised_tangents_are_bounded(kind, scale, seed):
    g = normalize_tangent(scale * randoms(3, 16, seed=seed), kind)
    if kind == "rms":
        assert bool((g.square().mean(1).sqrt() < 1).all())
    elif kind == "l2":
        assert bool((g.norm(dim=1) < 1).all())
    else:
        assert g.abs().max() <= 1


def test_only_rms_normalisation_ignores_the_resolution():
    network, g, u = randoms(2, 1, 4, 4), 100 * randoms(2, 1, 4, 4, seed=1), torch.zeros(2).double()
    wide = [torch.cat([each, each], 3) for each in (network, g)]
    losses = {}
    for kind in ("rms", "l2", "none"):
        losses[kind] = tangent_loss(network, normalize_tangent(g, kind), log_variance=u)
        losses[kind, "wide"] = tangent_loss(wide[0], normalize_tangent(wide[1], kind), log_variance=u)
    assert_close(losses["rms", "wide"], losses["rms"], rtol=1e-10, atol=0)
    assert_close(losses["l2", "wide"], losses["l2"] / 2, rtol=1e-3, atol=0)
    assert_close(losses["none", "wide"], losses["none"], rtol=1e-12, atol=0)
    with pytest.raises(UserError, match="positive"):
        normalize_tangent(g, "rms", c=0.0)


def test_warmup_and_prior():
    assert [tangent_warmup(k, 10) for k in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert tangent_warmup(0, 0) == 1.0
    assert_close(prior_weight(T, 0.5), 1 / (0.5 * T.tan()))


def test_direction_of_the_derivative_is_the_trajectory_s():
    """The derivative with these directions is cos t sin t dF/dt, so that J stays bounded at pi/2."""
    network, x, velocity = mlp(), randoms(6, 3), randoms(6, 3, seed=1)
    _, J = directional_derivative(network, x, T, *jvp_tangents(T, velocity))
    slope = central_difference(network, x, T, velocity, torch.ones_like(T), step=1e-5)
    assert_close(J, (T.cos() * T.sin())[:, None] * slope, rtol=1e-6, atol=1e-8)


def test_trajectory_difference_follows_the_guided_velocity_and_is_second_order():
    teacher, x, t = ExactGaussian(TRIG), randoms(4, 1), T[1:5]

    def network(x, t):
        return torch.tanh(x * (1 + t[:, None]))

    velocity = 4 * teacher.velocity(x, t, {}) - 3 * ExactGaussian(TRIG, mean=-1.0).velocity(x, t, {})
    exact = directional_derivative(network, x, t, velocity, torch.ones_like(t))[1]
    errors = [(trajectory_difference(network, x, t, velocity, step=h) - exact).abs().max().item() for h in (0.02, 0.01)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    # following the conditional path of one data sample instead is a different direction
    wrong = directional_derivative(network, x, t, teacher.velocity(x, t, {}), torch.ones_like(t))[1]
    assert (wrong - exact).abs().max() > 0.1


def test_log_variance_head_starts_near_zero_and_is_a_function_of_its_seed():
    head, again, other = LogVariance(3), LogVariance(3), LogVariance(4)
    t = torch.linspace(0, math.pi / 2, 9)
    assert head(t).shape == (9,)
    assert torch.equal(head(t), again(t))
    assert not torch.equal(head(t), other(t))
    assert head.linear.bias.abs().max() == 0
    assert head(col(0.3)[None][0]).dtype == torch.float32
