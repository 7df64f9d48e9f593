"""VSD and SwiftBrush as a recipe: its gradient, what guidance does to it, who is trained by what."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng, Watched, at_level, descend, on_bed, plane
from core.score_bed import F64, VP_LEVEL, Mixture, bed, gaussian

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.losses.denoising import denoising_weight
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP, CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.vsd import VSD, VSDConfig
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

LEVEL = at_level(CosineVP(), VP_LEVEL)


@pytest.mark.parametrize(("name", "golden"), [("R1", (0.27617314, -0.36553846)), ("R2", (-0.06590490, -0.02596348))])
def test_the_expected_gradient_is_that_of_kl_times_sigma_cubed_over_alpha(name, golden):
    here = bed(name)
    _, terms = on_bed(VSD, VSDConfig(time=LEVEL), here)
    assert here.gradient(terms.total()) == pytest.approx(golden, abs=1e-7)


@pytest.mark.parametrize(("weight", "factor"), [("uniform", 1 / 0.36), ("sigma", 0.6 / 0.36), ("alpha_sigma2", 0.8)])
def test_weights_scale_the_gradient(weight, factor):
    here = bed("R2")
    _, terms = on_bed(VSD, VSDConfig(time=LEVEL, weight=weight), here)
    want = (factor * -0.06590490, factor * -0.02596348)
    assert here.gradient(terms.total()) == pytest.approx(want, abs=1e-7)


def test_no_gradient_passes_through_either_network():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake)}
    on_bed(VSD, VSDConfig(), here, roles)
    assert roles["teacher"].attached == roles["fake_score"].attached == [False]


def labelled(fake: Mixture, teacher: Mixture, config: VSDConfig, label: int) -> torch.Tensor:
    """The gradient a batch of points gets under a label."""
    x = torch.linspace(-2, 2, 16, dtype=F64)[:, None].requires_grad_()
    cond = {"label": torch.full((16,), label)}
    actors = Actors(
        {"teacher": teacher, "fake_score": fake}, teacher.process, (1,), lambda batch, rng: (x, cond), dtype=F64
    )
    loss = VSD(config, actors).loss("student", Batch(16, cond), QuickRng(0, 0, tuple(range(16))), 0)
    (got,) = torch.autograd.grad(loss.total().sum(), x)
    return got


def pair() -> tuple[Mixture, Mixture]:
    teacher = Mixture(CosineVP(), [0.3, 0.7], [-1.0, 1.5], [0.4, 0.6])
    return Mixture(CosineVP(), [0.5, 0.5], [-0.5, 0.5], [0.7, 0.3]), teacher


def test_without_a_condition_to_follow_the_gradient_does_not_depend_on_guidance():
    fake, teacher = pair()
    one, many = (labelled(fake, teacher, VSDConfig(guidance_scale=s, fake_guidance_scale=s), -1) for s in (1.0, 7.5))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-12)
    assert one.abs().max() > 1e-3


def test_both_networks_are_guided_by_scales_of_their_own():
    fake, teacher = pair()

    def gradient(scale: float, fake_scale: float) -> torch.Tensor:
        return labelled(fake, teacher, VSDConfig(guidance_scale=scale, fake_guidance_scale=fake_scale), 1)

    # affine in either scale, with opposite signs of the two networks' own directions
    base = gradient(1.0, 1.0)
    above, below = gradient(2.0, 1.0) - base, gradient(1.0, 2.0) - base
    torch.testing.assert_close(gradient(4.5, 4.5), base + 3.5 * (above + below), rtol=0, atol=1e-10)
    assert above.abs().max() > 1e-3
    assert below.abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_a_lora_fake_score_starts_at_gradient_zero_and_leaves_it_with_its_first_step(scale):
    network = NetworkDenoiser(MLPBackbone(2, width=16, depth=1, num_classes=3), VP.linear(), Plain(Kind.EPS))
    config = VSDConfig(guidance_scale=scale, fake_guidance_scale=scale)
    roles = build_roles(network, VSD.role_specs(config), RolesConfig(overrides={"fake_score": "lora"}, rank=4), 0)
    recipe = VSD(config, Actors(roles, network.process, (2,)))
    batch, rng = Batch(8, {"label": torch.arange(8) % 3}), Rng.for_batch(0, 0, 8)
    student, fake = (list(recipe.actors.module(name).parameters()) for name in ("student", "fake_score"))

    def largest() -> float:
        grads = torch.autograd.grad(recipe.loss("student", batch, rng, 0).total().mean(), student)
        return max(g.abs().max().item() for g in grads)

    assert largest() == 0.0
    optimizer = torch.optim.Adam(fake, 1e-3)
    recipe.loss("fake_score", batch, rng, 0).total().mean().backward()
    assert all(p.grad is None for p in student)
    optimizer.step()
    assert largest() > 0
    teacher = roles["teacher"]
    x, t = torch.ones(8, 2), torch.full((8,), 500.0, dtype=F64)
    fresh = NetworkDenoiser(MLPBackbone(2, width=16, depth=1, num_classes=3), network.process, Plain(Kind.EPS))
    assert torch.equal(teacher.eps(x, t, batch.cond), fresh.eps(x, t, batch.cond))
    assert all(p.grad is None for p in teacher.backbone.parameters())


def test_the_critic_minimises_the_signal_weighted_noise_error():
    """mean over elements of alpha^2 (eps_fake - eps)^2, for its own law of times."""
    process = VP.scaled_linear()
    config = VSDConfig()
    teacher = gaussian(process, 0.3, 0.5)
    fake = gaussian(process, -0.2, 0.8)
    x = torch.linspace(-1, 1, 32, dtype=F64)[:, None]
    actors = Actors({"teacher": teacher, "fake_score": fake}, process, (1,), lambda batch, rng: (x, {}), dtype=F64)
    rng = QuickRng(0, 3, tuple(range(32)))
    got = VSD(config, actors).loss("fake_score", Batch(32), rng, 3).total()
    t = config.fake.time.draw(process, rng, "noised/t")
    eps = rng.normal_like("noised/eps", x)
    c = process.coefficients(t)
    x_t = c.alpha[:, None] * x + c.sigma[:, None] * eps
    want = c.alpha**2 * (fake.eps(x_t, t, {}) - eps)[:, 0] ** 2
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    c = process.coefficients(torch.tensor([999.0]))
    assert c.alpha.item() ** 2 == pytest.approx(0.0046601, abs=1e-7)  # the table's own value, no rounding of it
    assert denoising_weight("discounted_snr", c.alpha, c.sigma).item() == pytest.approx(0.00466**2 / 0.99534, rel=1e-3)


def test_the_condition_is_dropped_for_whole_batches_at_the_set_rate():
    class Asked(Mixture):
        def predict(self, x_t, t, cond):
            seen.append(set(cond["label"].tolist()))
            return super().predict(x_t, t, cond)

    seen: list[set[int]] = []
    fake, teacher = Asked(CosineVP(), [0.5, 0.5], [-1.0, 1.0], [0.5, 0.5]), pair()[1]
    config = VSDConfig(fake=FakeScoreConfig(label_dropout=0.1))
    cond = {"label": torch.tensor([1, 1, 1, 1])}
    actors = Actors(
        {"teacher": teacher, "fake_score": fake}, fake.process, (1,), lambda b, r: (torch.zeros(4, 1), cond)
    )
    recipe = VSD(config, actors)
    for step in range(500):
        recipe.loss("fake_score", Batch(4, cond), QuickRng(0, step, (0, 1, 2, 3)), step)
    assert all(len(labels) == 1 for labels in seen)  # never a part of a batch
    assert 30 <= sum(labels == {-1} for labels in seen) <= 70
    # every micro-batch of a step makes the same choice
    for step in range(40):
        seen.clear()
        for ids in ((0, 1, 2, 3), (4, 5, 6, 7)):
            recipe.loss("fake_score", Batch(4, cond), QuickRng(0, step, ids), step)
        assert seen[0] == seen[1]


def test_a_network_learns_two_blobs_in_one_step():
    here = plane()
    student, fake = here.copy(), here.copy()
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    law = TimeConfig(law="lognormal", mean=-0.5)
    config = VSDConfig(student_start=0.5, weight="sigma", time=law, fake=FakeScoreConfig(time=law))
    recipe = VSD(config, Actors(roles, here.teacher.process, (2,)))
    (t,) = recipe.plan(config, recipe.process, 1).times
    before = here.distance(student, t)
    descend(
        recipe,
        {"fake_score": fake.backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=80,
        batch=256,
    )
    assert here.distance(student, t) < 0.5 * before
