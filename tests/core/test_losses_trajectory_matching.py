"""Points on a student's trajectory: the forward kernel, the three fake-score targets, the importance weight."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.core.losses.denoising import denoising_loss
from fewstep.core.losses.integral import distribution_matching_loss
from fewstep.core.losses.trajectory_matching import (
    conditional_score_target,
    effective_noise,
    forward_kernel,
    noise_importance,
    trajectory_matching_loss,
)
from fewstep.core.process import VP, Coefficients, CosineVP, RectifiedFlow, times

F64 = torch.float64


def level(alpha: float, sigma: float | None = None, n: int = 1) -> Coefficients:
    sigma = math.sqrt(1 - alpha**2) if sigma is None else sigma
    return Coefficients(*(torch.full((n,), v, dtype=F64) for v in (alpha, sigma, 0.0)))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("process", [VP.scaled_linear(), CosineVP(), RectifiedFlow()])
def test_the_kernel_completes_the_noise_and_agrees_with_the_process(process):
    low, high = process.unit_to_time(torch.tensor([0.2, 0.7], dtype=F64)).round(decimals=2)
    m, t = process.coefficients(low[None]), process.coefficients(high[None])
    kernel = forward_kernel(m, t)
    assert (kernel.scale**2 * m.sigma**2 + kernel.std**2 - t.sigma**2).abs().item() < 1e-12
    x, e = randn(1, 3), randn(1, 3, seed=1)
    direct = process.renoise(x, e, low[None], high[None])
    torch.testing.assert_close(kernel.scale * x + kernel.std * e, direct, rtol=0, atol=1e-12)
    # the same point, told as the student's clean sample under its effective noise
    x0, eps = randn(1, 3, seed=2), randn(1, 3, seed=3)
    x_t = kernel.scale * (m.alpha * x0 + m.sigma * eps) + kernel.std * e
    n = effective_noise(eps, e, m, t)
    torch.testing.assert_close(t.alpha * x0 + t.sigma * n, x_t, rtol=0, atol=1e-12)


GRID = torch.linspace(-9, 9, 401, dtype=F64)
GAUSS = torch.exp(-(GRID**2) / 2) / torch.exp(-(GRID**2) / 2).sum()
Y, E = (part.reshape(-1, 1) for part in torch.meshgrid(GRID, GRID, indexing="ij"))
MASS = (GAUSS[:, None] * GAUSS[None, :]).reshape(-1)


def fitted_slope(target, x, weight, after):
    """Score slope of the linear denoiser that minimises the weighted denoising loss."""
    gain = torch.zeros((), dtype=F64, requires_grad=True)
    loss = (MASS * denoising_loss(gain * x, target, weight, reduction="sum")).sum()
    (slope,) = torch.autograd.grad(loss, gain)
    curvature = 2 * (MASS * (1 if weight is None else weight) * x[:, 0] ** 2).sum()
    best = (-slope / curvature).item()
    return (after.alpha[0].item() * best - 1) / after.sigma[0].item() ** 2


@pytest.mark.parametrize(
    ("alpha_m", "alpha_t", "true", "plain", "weighted"),
    [
        (0.9, 0.5, -0.959681, -1.068133, -1.146132),
        (0.6, 0.3, -0.891186, -0.973450, -1.048108),
        (1.0, 0.5, -1.146132, -1.146132, -1.146132),
    ],
)
def test_what_the_fake_score_learns_under_each_target(alpha_m, alpha_t, true, plain, weighted):
    """x_T ~ N(0, 1), x0 = 0.7 x_T, eps = x_T: quadrature instead of sampling, so to six digits."""
    m, t = level(alpha_m, n=len(Y)), level(alpha_t, n=len(Y))
    x0, eps = 0.7 * Y, Y
    kernel = forward_kernel(m, t)
    x_m = m.alpha[0] * x0 + m.sigma[0] * eps
    x_t = kernel.scale[0] * x_m + kernel.std[0] * E
    noise = effective_noise(eps, E, m, t)
    weight = noise_importance(noise, E, reduction="sum", limit=200.0)
    conditional = conditional_score_target(x_t, x_m, m, t)
    assert fitted_slope(x0, x_t, None, t) == pytest.approx(plain, abs=1e-6)
    assert fitted_slope(x0, x_t, weight, t) == pytest.approx(weighted, abs=1e-6)
    assert fitted_slope(conditional, x_t, None, t) == pytest.approx(true, abs=1e-6)
    big_v = kernel.scale[0] ** 2 * (0.7 * m.alpha[0] + m.sigma[0]) ** 2 + kernel.std[0] ** 2
    assert -1 / big_v.item() == pytest.approx(true, abs=1e-6)
    assert (MASS * weight).sum().item() == pytest.approx((t.sigma / kernel.std)[0].item(), abs=1e-6)


def test_importance_reductions_and_limit():
    n, e = randn(5, 4), randn(5, 4, seed=1)
    exponent = (e**2 - n**2) / 2
    exact, tempered = (noise_importance(n, e, reduction=r, limit=50.0) for r in ("sum", "mean"))
    torch.testing.assert_close(exact, exponent.sum(1).exp())
    torch.testing.assert_close(tempered, exponent.mean(1).exp())
    assert noise_importance(100 * n, e, reduction="sum").tolist() == pytest.approx([math.exp(-10)] * 5)
    assert not noise_importance(n.requires_grad_(), e).requires_grad


def test_with_clean_data_in_the_middle_all_targets_are_the_sample():
    x0, e = randn(3, 2), randn(3, 2, seed=1)
    m, t = level(1.0, 0.0, 3), level(0.5, n=3)
    x_t = 0.5 * x0 + t.sigma[0] * e
    torch.testing.assert_close(conditional_score_target(x_t, x0, m, t), x0)
    torch.testing.assert_close(effective_noise(randn(3, 2, seed=2), e, m, t), e)
    torch.testing.assert_close(noise_importance(e, e), torch.ones(3, dtype=F64))


def gradient(x0, **options):
    x0 = x0.clone().requires_grad_()
    teacher, fake = randn(3, 2, 4, seed=1), randn(3, 2, 4, seed=2)
    loss = trajectory_matching_loss(x0, teacher, fake, **options)
    return torch.autograd.grad(loss.sum(), x0)[0], teacher, fake, loss


def test_squared_distance_is_twice_dmd():
    x0 = randn(3, 2, 4)
    got, teacher, fake, _ = gradient(x0, distance="l2")
    scale = (x0 - teacher).abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(got, 2 * (fake - teacher) / scale / 8)
    leaf = x0.clone().requires_grad_()
    dmd = torch.autograd.grad(distribution_matching_loss(leaf, teacher, fake).sum(), leaf)[0]
    torch.testing.assert_close(got, 2 * dmd)


def test_huber_forms_differ_and_have_their_own_scale():
    x0 = randn(3, 2, 4)
    shift = randn(3, 2, 4, seed=2) - randn(3, 2, 4, seed=1)
    element = gradient(x0, distance="pseudo_huber_elementwise", c=0.3, normalise=False)[0]
    torch.testing.assert_close(element, shift / (shift**2 + 0.09).sqrt() / 8)
    vector, *_, value = gradient(x0, distance="pseudo_huber", c=None, normalise=False)
    c = 0.00054 * math.sqrt(8)
    norm = (shift.square().sum((1, 2)) + c**2).sqrt()
    torch.testing.assert_close(vector, shift / norm[:, None, None])
    torch.testing.assert_close(value, norm - c)


def test_no_shift_no_gradient():
    x0 = randn(3, 2, 4).requires_grad_()
    teacher = randn(3, 2, 4, seed=1)
    for distance in ("l2", "pseudo_huber", "pseudo_huber_elementwise"):
        loss = trajectory_matching_loss(x0, teacher, teacher.clone(), distance=distance)
        assert torch.autograd.grad(loss.sum(), x0)[0].abs().max().item() == 0.0


def test_levels_come_from_a_process():
    c = VP.scaled_linear().coefficients(times(400.0, 2))
    assert forward_kernel(c, c).std.tolist() == [0.0, 0.0]
