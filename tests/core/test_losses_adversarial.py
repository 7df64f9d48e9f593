"""Adversarial losses: constants, gradients, optima, penalties in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fewstep.core.errors import UserError
from fewstep.core.losses.adversarial import (
    approximate_r1,
    discriminator_loss,
    generator_loss,
    interpolate,
    lipschitz_penalty,
    per_pair,
    r1_penalty,
    with_misaligned,
)
from fewstep.core.process import RectifiedFlow, times

KINDS = ("hinge", "hinge_margin", "softplus", "wgan", "lsgan", "relativistic")
UNPAIRED = KINDS[:-1]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("hinge", 2),
        ("hinge_margin", 2),
        ("softplus", 1.386294),
        ("relativistic", 0.693147),
        ("wgan", 0),
        ("lsgan", 0.5),
    ],
)
def test_discriminator_loss_of_an_undecided_discriminator(kind, value):
    zero = torch.zeros(3)
    loss = discriminator_loss(zero, zero, kind)
    assert loss.shape == (3,)
    assert loss.tolist() == pytest.approx([value] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("hinge", 0), ("hinge_margin", 1), ("softplus", math.log(2)), ("relativistic", math.log(2)), ("lsgan", 0.5)],
)
def test_generator_loss_of_an_undecided_discriminator(kind, value):
    assert generator_loss(torch.zeros(2), kind, torch.zeros(2)).tolist() == pytest.approx([value] * 2, abs=1e-6)


def generator_gradient(kind, logits):
    logits = logits.clone().requires_grad_()
    generator_loss(logits, kind, torch.zeros_like(logits)).sum().backward()
    return logits.grad


def test_margin_hinge_stops_pushing_beyond_one():
    gradient = generator_gradient("hinge_margin", f64(*[[1.5, 0.5]] * 3))
    torch.testing.assert_close(gradient, f64([0, -0.5], [0, -0.5], [0, -0.5]), rtol=0, atol=0)
    assert generator_gradient("hinge", f64(1.5, 0.5)).tolist() == [-1, -1]


@given(st.floats(-30, 0.999))
def test_below_one_every_kind_pushes_the_logit_up(logit):
    for kind in KINDS:
        assert generator_gradient(kind, f64(logit)).item() < 0


@given(st.floats(-20, 20))
def test_softplus_identities(logit):
    d = f64(logit)
    assert generator_gradient("softplus", d).item() == pytest.approx(-torch.sigmoid(-d).item(), rel=1e-12)
    expected = -torch.nn.functional.logsigmoid(d)
    torch.testing.assert_close(generator_loss(d), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(discriminator_loss(d, -d), 2 * expected, rtol=1e-12, atol=1e-15)


def test_scaling_all_logits_scales_the_hinge_generator_gradient():
    def gradient(factor):
        x = normal(4).requires_grad_()
        generator_loss(factor * (3 * x + 0.1), "hinge").sum().backward()
        return x.grad

    torch.testing.assert_close(gradient(10.0), 10 * gradient(1.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_mix_and_positions_are_averaged_after_the_nonlinearity(kind):
    real, fake = normal(3, 4), normal(3, 4, seed=1)
    whole = discriminator_loss(real, fake, kind)
    assert whole.shape == (3,)
    alone = torch.stack([discriminator_loss(real[:, i], fake[:, i], kind) for i in range(4)]).mean(0)
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(discriminator_loss(real[1:2], fake[1:2], kind), whole[1:2])
    alone = torch.stack([generator_loss(fake[:, i], kind, real[:, i]) for i in range(4)]).mean(0)
    torch.testing.assert_close(generator_loss(fake, kind, real), alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits_give_single_precision_losses(kind):
    real, fake = torch.full((2,), 3.0, dtype=torch.bfloat16), torch.full((2,), -9.0, dtype=torch.bfloat16)
    assert discriminator_loss(real, fake, kind).dtype == torch.float32
    assert generator_loss(fake, kind, real).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_discriminator_descends_towards_real_up_and_fake_down(kind):
    real, fake = f64(0.2).requires_grad_(), f64(0.2).requires_grad_()
    discriminator_loss(real, fake, kind).sum().backward()
    assert real.grad.item() < 0
    assert fake.grad.item() > 0


def test_relativistic_pairs_must_match():
    with pytest.raises(UserError, match="real logits"):
        generator_loss(torch.zeros(2), "relativistic")
    with pytest.raises(UserError, match="differ"):
        discriminator_loss(torch.zeros(2, 1), torch.zeros(2, 3), "relativistic")


def test_the_best_softplus_logit_between_gaussians_is_the_log_ratio():
    """p_real = N(0, 1), p_fake = N(d, 1): the best logit is -d x + d^2/2, and it pushes the fake mean towards 0."""
    delta = 1.3
    nodes = torch.special.ndtri((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096)
    head = nn.Linear(1, 1).double()
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        discriminator_loss(head(nodes[:, None])[:, 0], head(nodes[:, None] + delta)[:, 0]).mean().backward()
        optimizer.step()
    assert head.weight.item() == pytest.approx(-delta, rel=0.05)
    assert head.bias.item() == pytest.approx(delta**2 / 2, rel=0.05)
    mean = f64(delta).requires_grad_()
    generator_loss(head((nodes + mean)[:, None])[:, 0]).mean().backward()
    assert mean.grad.item() > 0


A, B = normal(6), 0.7


def linear(x, a=A, b=B):
    return x.flatten(1) @ a + b


def test_r1_of_a_linear_discriminator_is_the_squared_slope_whatever_the_offset():
    x = normal(3, 2, 3, seed=2).requires_grad_()
    expected = A.square().sum().expand(3)
    torch.testing.assert_close(r1_penalty(linear(x), x), expected)
    torch.testing.assert_close(r1_penalty(linear(x, b=-40.0), x), expected)


def test_r1_is_per_sample_and_trains_the_discriminator():
    x, a = normal(3, 6).requires_grad_(), A.clone().requires_grad_()
    penalty = r1_penalty((x.square() @ a) / 2, x)
    torch.testing.assert_close(penalty, (x * a).square().sum(1))
    penalty.sum().backward()
    torch.testing.assert_close(a.grad, 2 * a.detach() * x.detach().square().sum(0))


def test_approximate_r1_of_a_linear_discriminator_has_the_mean_of_the_exact_one():
    scale, x, n = 0.1, normal(1, 6, seed=3), normal(200_000, 6, seed=4)
    estimates = approximate_r1(linear(x).expand(len(n)), linear(x + scale * n), scale)
    error = estimates.std() / len(n) ** 0.5
    assert abs(estimates.mean() - A.square().sum()) < 4 * error
    torch.testing.assert_close(estimates, (n @ A).square(), rtol=1e-8, atol=1e-10)
    with pytest.raises(UserError):
        approximate_r1(linear(x), linear(x), 0.0)


def test_approximate_r1_at_another_noise_level_is_not_r1():
    """A logit that reads the noise level off its input has R1 near 0 at one level; across two it is huge."""
    n = normal(4000, 64, seed=5)
    x0, scale = 0.0, 0.1

    def logit(x):
        return x.square().mean(1)

    x_s = x0 + 0.5 * normal(4000, 64, seed=6)
    right = approximate_r1(logit(x_s), logit(x_s + scale * n), scale).mean()
    wrong = approximate_r1(logit(x_s), logit(x0 + scale * n), scale).mean()
    assert wrong > 50 * right


def test_lipschitz_penalty_at_points_in_between():
    real, fake, u = normal(4, 6), normal(4, 6, seed=1), f64(0, 0.25, 0.5, 1)
    x = interpolate(real, fake, u)
    torch.testing.assert_close(x[0], fake[0], rtol=0, atol=0)
    torch.testing.assert_close(x[3], real[3], rtol=0, atol=0)
    torch.testing.assert_close(x[1], 0.25 * real[1] + 0.75 * fake[1])
    norm = A.norm()
    torch.testing.assert_close(lipschitz_penalty(linear(x), x), (norm - 1).square().expand(4))
    torch.testing.assert_close(lipschitz_penalty(linear(x), x, slope=float(norm)), torch.zeros(4, dtype=torch.float64))


def test_a_flat_discriminator_has_a_finite_penalty():
    x, a = normal(2, 6).requires_grad_(), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    lipschitz_penalty(linear(x, a), x).sum().backward()
    assert bool(a.grad.isfinite().all())


def test_penalties_say_what_is_missing():
    x = normal(2, 6)
    with pytest.raises(UserError, match="requires_grad"):
        r1_penalty(linear(x), x)
    a = A.clone().requires_grad_()
    x.requires_grad_()
    with pytest.raises(UserError, match="depend"):
        r1_penalty(linear(normal(2, 6), a), x)


def test_misaligned_pairs():
    fake, real = torch.zeros(4, 2), torch.arange(8.0).reshape(4, 2)
    label = torch.tensor([10, 11, 12, 13])
    x, rows = with_misaligned(fake, real)
    assert x.shape == (8, 2)
    assert torch.equal(x[:4], fake)
    assert label[rows].tolist() == [10, 11, 12, 13, 10, 11, 12, 13], "captions stay where they are"
    assert torch.equal(x[4:], real[[1, 2, 3, 0]])
    x, rows = with_misaligned(fake[:1], real[:1])
    assert torch.equal(x, fake[:1])
    assert rows.tolist() == [0]


@pytest.mark.parametrize("batch", [1, 4])
def test_misaligned_logits_count_as_fakes_of_their_condition(batch):
    fake, real = normal(batch, 3), normal(batch, 3, seed=1)
    x, rows = with_misaligned(fake, real)
    logits = x.sum(1) + rows
    pairs = per_pair(logits, batch)
    assert pairs.shape == (batch, len(x) // batch)
    assert torch.equal(pairs.flatten().sort().values, logits.sort().values)
    zero = torch.zeros(batch, dtype=torch.float64)
    total = discriminator_loss(zero, pairs, "hinge").mean()
    torch.testing.assert_close(total, 1 + (1 + logits).relu().mean())


def test_renoised_samples_have_the_marginal_of_the_noisier_level():
    """Noise from 0.5 to 0.75 on a rectified flow: standard deviation 0.7071, and exactly the law of that level."""
    process, n = RectifiedFlow(), 400_000
    x0, noise, more = normal(n) + 2, normal(n, seed=1), normal(n, seed=2)
    s, t = times(0.5, n), times(0.75, n)
    zero = torch.zeros(n, dtype=torch.float64)
    assert process.renoise(zero, zero + 1, s, t)[0].item() == pytest.approx(math.sqrt(0.5), abs=1e-12)
    moved = process.renoise(process.add_noise(x0, noise, s), more, s, t)
    assert moved.mean().item() == pytest.approx(0.5, abs=5 / n**0.5)
    assert moved.var().item() == pytest.approx(0.25**2 + 0.75**2, abs=5 / n**0.5)


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.trunk.requires_grad_(False)

    def forward(self, x):
        return self.head(self.trunk(x).tanh())[:, 0]


def test_gradients_go_where_they_should():
    """Generator step: none in the discriminator; discriminator step: none in the student; the trunk never moves."""
    student, d = nn.Linear(2, 3), Routed()
    before = d.trunk.weight.clone()
    d.head.requires_grad_(False)
    generator_loss(d(student(torch.ones(2, 2)))).mean().backward()
    assert all(p.grad is None for p in d.parameters())
    assert student.weight.grad is not None
    student.zero_grad()
    d.head.requires_grad_(True)
    with torch.no_grad():
        fake = student(torch.ones(2, 2))
    discriminator_loss(d(torch.zeros(2, 3)), d(fake)).mean().backward()
    assert student.weight.grad is None
    assert d.head.weight.grad is not None
    torch.optim.SGD((p for p in d.parameters() if p.requires_grad), lr=0.1).step()
    assert torch.equal(d.trunk.weight, before)
