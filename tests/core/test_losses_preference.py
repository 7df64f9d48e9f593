"""Preference losses: the optimum of DPO, symmetries, conventions, and the gradient of Distillation-DPO's pairs."""

from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import ExactGaussian
from torch import nn
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.losses.distances import l2
from fewstep.core.losses.preference import (
    choose,
    dpo_inside,
    implicit_accuracy,
    pair_gradient_loss,
    pair_weight,
    preference_loss,
    reward_margin,
)
from fewstep.core.prediction import Kind
from fewstep.core.process import VP

F64 = torch.float64


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def inside_of(errors, beta=5000.0):
    return dpo_inside(reward_margin(*errors), beta)


# ---------------------------------------------------------------- Diffusion-DPO


def test_at_the_reference_the_loss_is_log_two_and_its_gradient_a_quarter_of_beta():
    beta, weight = 50.0, numbers(3, 3, seed=9).requires_grad_()
    winner, loser, eps = numbers(7, 3), numbers(7, 3, seed=1), numbers(7, 3, seed=2)
    errors = [l2(x @ weight, eps) for x in (winner, loser)]
    loss = preference_loss(inside_of([*errors, *(e.detach() for e in errors)], beta), "sigmoid", beta)
    assert_close(loss, torch.full((7,), math.log(2), dtype=F64))
    found = torch.autograd.grad(loss.mean(), weight, retain_graph=True)[0]
    want = beta / 4 * torch.autograd.grad((errors[0] - errors[1]).mean(), weight)[0]
    assert_close(found, want, rtol=1e-12, atol=0)


def test_the_optimum_on_gaussians_is_the_reward_tilted_reference():
    """Policy N(mu, s^2), reference N(mu_r, s^2), reward a x, soft Bradley-Terry labels: mu* = mu_r + a s^2/beta."""
    variance, beta, a, reference = 1.7, 2.0, 1.1, 0.3
    x, y = (reference + variance**0.5 * numbers(20_000, seed=i) for i in (0, 1))
    label = torch.sigmoid(a * (x - y))
    mu = torch.zeros((), dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mu], max_iter=50, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def error(points, mean):  # of which beta/2 times the difference is that of beta log-densities
        return (points - mean).square() / variance

    def closure():
        optimizer.zero_grad()
        inside = inside_of([error(x, mu), error(y, mu), error(x, reference), error(y, reference)], beta)
        right, wrong = (preference_loss(sign * inside, "sigmoid", beta) for sign in (1, -1))
        loss = (label * right + (1 - label) * wrong).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert mu.item() == pytest.approx(reference + a * variance / beta, abs=1e-6)
    assert reference + a * variance / beta == pytest.approx(1.235)


def test_exchanged_members_change_the_sign_exactly_and_equal_ones_give_nothing():
    one, two, one_reference, two_reference = (numbers(9, seed=i) for i in range(4))
    swapped = inside_of([two, one, two_reference, one_reference])
    assert torch.equal(inside_of([one, two, one_reference, two_reference]), -swapped)
    assert torch.equal(inside_of([one, one, two, two]), torch.zeros(9, dtype=F64))
    assert implicit_accuracy(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_beta_means_the_same_for_every_kind_of_network():
    """Errors of x0 and v are those of eps times known factors; converted predictions give one loss."""
    process = VP.scaled_linear()
    t, x0, eps = torch.tensor([50.0, 400.0, 900.0], dtype=F64), numbers(3, 4), numbers(3, 4, seed=1)
    x_t, c = process.add_noise(x0, eps, t), process.coefficients(t)
    of_kind = {kind: ExactGaussian(process, kind) for kind in (Kind.EPS, Kind.X0, Kind.V, Kind.FLOW)}
    errors = {kind: l2(net.eps(x_t, t, {}), eps) for kind, net in of_kind.items()}
    for value in errors.values():
        assert_close(value, errors[Kind.EPS], rtol=1e-9, atol=1e-12)
    assert_close(l2(of_kind[Kind.X0].x0(x_t, t, {}), x0), (c.sigma / c.alpha) ** 2 * errors[Kind.EPS])
    v = c.alpha[:, None] * eps - c.sigma[:, None] * x0
    assert_close(l2(of_kind[Kind.V].view(Kind.V, x_t, t, {}), v), errors[Kind.EPS] / c.alpha**2)


def test_a_larger_sample_of_the_same_content_has_the_same_loss():
    pred, eps = numbers(5, 6), numbers(5, 6, seed=1)
    assert_close(l2(pred.repeat(1, 3), eps.repeat(1, 3)), l2(pred, eps), rtol=1e-12, atol=0)


def test_the_mean_over_pairs_is_of_losses():
    inside = 3 * numbers(50)
    inner = preference_loss(inside.mean()[None], "sigmoid", 1.0)
    assert (preference_loss(inside, "sigmoid", 1.0).mean() - inner).item() > 0.1
    extreme = preference_loss(torch.tensor([-1e4, 1e4]), "sigmoid", 1.0)
    assert extreme.tolist() == [1e4, 0.0]


def test_hinge_and_ipo():
    inside = torch.tensor([-1.0, 0.5, 1.0, 3.0], dtype=F64, requires_grad=True)
    assert preference_loss(inside, "hinge", 7.0).tolist() == [2.0, 0.5, 0.0, 0.0]
    ipo = preference_loss(inside, "ipo", 4.0)
    assert_close(ipo, ((inside - 0.5) / 4) ** 2)  # least at a margin of 1/(2 beta), whatever the labels' noise
    assert torch.autograd.grad(ipo.sum(), inside)[0][1].item() == 0
    for bad in (0.0, -1.0):
        with pytest.raises(UserError, match="beta"):
            dpo_inside(inside, bad)
        with pytest.raises(UserError, match="beta"):
            preference_loss(inside, "sigmoid", bad)


# ---------------------------------------------------------------- Distillation-DPO


class Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(numbers(4, 4, seed=seed)), nn.Parameter(numbers(4, seed=seed + 50))

    def forward(self, x):
        return x @ self.weight + self.bias


def trap():
    """A linear student's pair, the same noise on both, and the directions of frozen random networks."""
    student, teacher, winner_fake, loser_fake = (Linear(i) for i in range(4))
    z, eps = numbers(6, 4, seed=7), numbers(6, 4, seed=8)
    winner, loser = student(z), student(1.1 * z)
    noisy = [x + 0.7 * eps for x in (winner, loser)]
    with torch.no_grad():
        directions = [teacher(noisy[0]) - winner_fake(noisy[0]), teacher(noisy[1]) - loser_fake(noisy[1])]
    return student, (winner, loser), noisy, directions


def gradient(student, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(student.parameters()), retain_graph=True)])


@pytest.mark.parametrize("loser_weight", [0.0, 0.4, 1.0])
def test_the_gradient_is_the_difference_of_directions_on_the_samples(loser_weight):
    student, pair, _, d = trap()
    found = gradient(student, pair_gradient_loss(*pair, *d, loser_weight=loser_weight).mean())
    want = gradient(student, (d[0] * pair[0]).mean() - loser_weight * (d[1] * pair[1]).mean())
    assert found.norm() > 0.1
    assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_why_the_released_form_trains_nothing():
    """``mean(d (x_t - x0))`` with x0 attached in both is d times the noise: a constant, of gradient exactly zero."""
    student, pair, noisy, d = trap()
    released = (d[0] * (noisy[0] - pair[0])).mean() - (d[1] * (noisy[1] - pair[1])).mean()
    assert released.requires_grad
    assert gradient(student, released).abs().max() < 1e-14
    ours = gradient(student, pair_gradient_loss(*pair, *d).mean())
    half = (d[0] * (noisy[0].detach() - pair[0])).mean() - (d[1] * (noisy[1].detach() - pair[1])).mean()
    assert_close(gradient(student, half), -ours)  # detached in one place it trains, but with the other sign


def test_exchanged_members_turn_the_gradient_around_exactly():
    student, (x, y), _, (dx, dy) = trap()
    weight = torch.sigmoid(numbers(6))
    one, other = pair_gradient_loss(x, y, dx, dy, weight=weight), pair_gradient_loss(y, x, dy, dx, weight=weight)
    assert torch.equal(gradient(student, one.sum()), -gradient(student, other.sum()))


def test_pair_weights_are_detached_and_a_half_without_a_margin_or_beta():
    margin = numbers(8).requires_grad_()
    assert not pair_weight(margin, 2.0).requires_grad
    assert_close(pair_weight(margin, 2.0), 1 / (1 + (2.0 * margin.detach()).exp()))
    assert_close(pair_weight(margin, 1e-13), torch.full((8,), 0.5, dtype=F64))
    assert pair_weight(torch.zeros(3), 1e6).tolist() == [0.5] * 3
    student, pair, _, d = trap()
    whole = pair_gradient_loss(*pair, *d, reduction="sum").sum()
    half = pair_gradient_loss(*pair, *d, weight=pair_weight(torch.zeros(6), 3.0), reduction="sum").sum()
    assert_close(gradient(student, half), gradient(student, whole) / 2)


def test_choosing_sends_gradients_to_the_chosen_only():
    first, second = numbers(3, 2).requires_grad_(), numbers(3, 2, seed=1).requires_grad_()
    won = torch.tensor([True, False, True])
    got = torch.autograd.grad(choose(won, first, second).sum(), [first, second])
    assert got[0].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert got[1].tolist() == [[0, 0], [1, 1], [0, 0]]
