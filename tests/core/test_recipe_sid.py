"""SiD as a recipe: expected gradients, what is differentiated, adversarial and guided forms, students that learn."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import Learner, QuickRng, Watched, at_level, descend, on_bed, plane
from core.score_bed import F64, VP_LEVEL, Mixture, bed, gaussian

from fewstep.core.errors import UserError
from fewstep.core.networks.discriminator import Discriminator, DiscriminatorConfig, make_discriminator
from fewstep.core.process import EDM
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.diff_instruct import LOGNORMAL
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.sid import SiD, SiDConfig
from fewstep.core.rng import Rng

SID = {  # value, d/dk, d/db on R2
    0.0: (0.26013065, -0.06752948, -0.08133076),
    0.5: (0.13006533, -0.06805211, -0.04741920),
    1.0: (0.0, -0.06857475, -0.01350764),
    1.2: (-0.05202613, -0.06878380, 0.00005699),
}


@pytest.mark.parametrize("alpha", sorted(SID))
def test_the_expected_loss_and_gradient_are_those_of_the_theory(alpha):
    here = bed("R2")
    config = SiDConfig(alpha=alpha, normalise=False, time=at_level(here.process, VP_LEVEL))
    recipe, terms = on_bed(SiD, config, here)
    value, *gradient = SID[alpha]
    assert here.mean(terms.total()).item() == pytest.approx(value, abs=1e-7)
    assert here.gradient(terms.total()) == pytest.approx(gradient, abs=1e-6)
    assert here.mean(terms.metrics["gap"]).item() == pytest.approx(0.6**4 / 0.8**2 * 1.28459581, abs=1e-6)
    assert not terms.metrics["gap"].requires_grad
    assert recipe.name == "sid"


def test_both_networks_are_differentiated_at_the_students_own_noise():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake)}
    on_bed(SiD, SiDConfig(), here, roles)
    assert roles["teacher"].attached == [True]
    assert roles["fake_score"].attached == [True]


def test_nothing_pulls_where_student_and_teacher_agree():
    here = bed("R1", student=(0.5, 0.7), nodes=21)
    _, terms = on_bed(SiD, SiDConfig(), here)
    assert torch.autograd.grad(terms.total().sum(), here.x0)[0].abs().max().item() < 1e-9


def test_frozen_networks_get_no_gradient_and_the_student_does():
    here = plane(1)
    student, teacher, fake = here.copy(), here.copy(), here.copy()
    for frozen in (teacher, fake):
        frozen.backbone.requires_grad_(False)
        with torch.no_grad():
            for p in frozen.backbone.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    roles = {"student": student, "teacher": teacher, "fake_score": fake}
    recipe = SiD(SiDConfig(), Actors(roles, here.teacher.process, (2,)))
    recipe.loss("student", Batch(8), QuickRng(0, 0, tuple(range(8))), 0).total().mean().backward()
    assert all(p.grad is None for net in (teacher, fake) for p in net.backbone.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.backbone.parameters())
    student.backbone.zero_grad(set_to_none=True)
    fake.backbone.requires_grad_(True)
    recipe.loss("fake_score", Batch(8), QuickRng(0, 0, tuple(range(8))), 0).total().mean().backward()
    assert all(p.grad is None for net in (teacher, student) for p in net.backbone.parameters())


def test_micro_batches_give_the_numbers_of_the_batch():
    here = plane(1)
    roles = {"student": here.copy(), "teacher": here.teacher, "fake_score": here.copy()}
    recipe = SiD(SiDConfig(), Actors(roles, here.teacher.process, (2,)))
    for phase in ("fake_score", "student"):
        rng = Rng.for_batch(0, 3, 6)
        whole = recipe.loss(phase, Batch(6), rng, 3).total()
        parts = [recipe.loss(phase, Batch(3), rng.select(i, i + 3), 3).total() for i in (0, 3)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- SiDA


class Constant(Discriminator):
    """A logit that is the same everywhere, attached to its input by nothing."""

    def patch_logits(self, x_t, t, cond):
        return 0.0 * x_t


def sida(x0, judge, **options):
    process = EDM()
    roles = {"teacher": gaussian(process, [0.7] * 4, 0.5), "fake_score": gaussian(process, [0.0] * 4, 1.0)}
    actors = Actors(roles | {"discriminator": judge}, process, (4,), lambda batch, rng: (x0, {}), dtype=F64)
    return SiD(SiDConfig(alpha=1.0, adversarial=AdversarialConfig(weight=1e-4, time=LOGNORMAL, **options)), actors)


def test_the_adversarial_term_is_that_of_sida():
    """At logit 0 it is ``0.5 * 0.01 * CHW * ln 2 / omega`` beside ``0.5 * 100 * sum``: here both over 50 CHW."""
    x0 = torch.full((6, 4), 0.2, dtype=F64, requires_grad=True)
    recipe, rng = sida(x0, Constant()), QuickRng(0, 0, tuple(range(6)))
    terms = recipe.loss("student", Batch(6), rng, 0)
    at = recipe.noised(recipe.sample(Batch(6), rng, grad=False), recipe.config.time, rng, 0)
    omega = (x0 - recipe.actors.roles["teacher"].x0(at.x_t, at.t, {})).abs().mean(1).detach()
    contribution = terms.weights["adversarial"] * terms.terms["adversarial"]
    torch.testing.assert_close(contribution * 50 * 4, 0.5 * 0.01 * 4 * math.log(2) / omega)
    assert torch.autograd.grad(terms.terms["adversarial"].sum(), x0)[0].abs().max().item() == 0.0


def test_sida_starts_in_stages():
    config = SiDConfig(fake_warmup=4, adversarial=AdversarialConfig(weight=1e-4, start=6))
    due = [[p.name for p in SiD.phases(config) if p.due(s)] for s in range(6)]
    assert due == [["fake_score"]] * 4 + [["fake_score", "student"]] * 2
    x0 = torch.zeros(3, 4, dtype=F64, requires_grad=True)
    recipe = sida(x0, Constant(), start=6)
    rng = QuickRng(0, 0, (0, 1, 2))
    assert set(recipe.loss("student", Batch(3), rng, 5).terms) == {"sid"}
    assert set(recipe.loss("student", Batch(3), rng, 6).terms) == {"sid", "adversarial"}


def test_the_fake_scores_encoder_discriminates_without_parameters_of_its_own():
    here = plane(1)
    student, fake = here.copy(), here.copy()
    judge = make_discriminator(fake, DiscriminatorConfig(head="mean"), (2,), {}, seed=0)
    assert not list(judge.parameters())
    config = SiDConfig(adversarial=AdversarialConfig(weight=1e-4, time=LOGNORMAL))
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    recipe = SiD(config, Actors(roles, here.teacher.process, (2,)))
    rng = QuickRng(0, 0, tuple(range(8)))
    terms = recipe.loss("fake_score", here.data(rng), rng, 0)
    terms.terms["discriminator"].mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in fake.backbone.parameters())


# ---------------------------------------------------------------- long-short guidance


def test_guidance_of_each_network_is_its_own():
    process = EDM()
    mixture = Mixture(process, [0.5, 0.5], [-1.0, 1.0], [0.4, 0.4])
    other = Mixture(process, [0.5, 0.5], [-0.8, 0.7], [0.5, 0.3])
    cond = {"label": torch.ones(5, dtype=torch.long)}
    x0 = torch.full((5, 1), 0.3, dtype=F64, requires_grad=True)
    actors = Actors({"teacher": mixture, "fake_score": other}, process, (1,), lambda b, r: (x0, cond), dtype=F64)
    rng = QuickRng(0, 0, tuple(range(5)))

    def guided(denoiser, at, scale):
        with_cond, without = denoiser.x0(at.x_t, at.t, cond), denoiser.x0(at.x_t, at.t, {})
        return without + scale * (with_cond - without)

    config = SiDConfig(
        alpha=1.0,
        normalise=False,
        guidance_scale=2.0,
        fake_guidance_scale=3.0,
        fake=FakeScoreConfig(guidance_scale=4.0, weighting="uniform"),
    )
    recipe = SiD(config, actors)
    sample = recipe.sample(Batch(5), rng, grad=True)
    at = recipe.noised(sample, config.time, rng, 0)
    teacher, fake = guided(mixture, at, 2.0), guided(other, at, 3.0)
    expected = ((teacher - fake) * (fake - x0)).mean(1)
    torch.testing.assert_close(recipe.loss("student", Batch(5), rng, 0).total(), expected)
    at = recipe.noised(sample, config.fake.time, rng, 0)
    trained = (guided(other, at, 4.0) - x0).square().mean(1)
    torch.testing.assert_close(recipe.loss("fake_score", Batch(5), rng, 0).total(), trained.detach())
    alone = Watched(gaussian(process, 0.0, 1.0))
    alone.null = lambda cond: (_ for _ in ()).throw(UserError("no unconditional prediction"))
    actors.roles["teacher"] = alone
    with pytest.raises(UserError, match="no unconditional"):
        recipe.loss("student", Batch(5), rng, 0)


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_a_narrow_generator_recovers_a_gaussian(alpha):
    process = EDM()
    k, b = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.1, 0.0))
    fake = Learner(process, 0.0, 0.1)
    actors = Actors(
        {"teacher": gaussian(process, 0.7, 0.5), "fake_score": fake},
        process,
        (1,),
        generate=lambda batch, rng: (b + k * rng.normal("z", (1,), F64), {}),
        dtype=F64,
    )
    recipe = SiD(SiDConfig(alpha=alpha, time=LOGNORMAL), actors)
    seen = []
    recipe.after_step = lambda step: seen.append((abs(k.item()), b.item()))
    descend(
        recipe,
        {"fake_score": [fake.mean, fake.std], "student": [k, b]},
        {"fake_score": 0.05, "student": 0.01},
        steps=700,
        batch=256,
    )
    assert torch.tensor(seen[-100:]).mean(0).tolist() == pytest.approx([0.5, 0.7], abs=0.05)


def test_a_network_learns_two_blobs_in_one_step():
    here = plane(150)
    student, fake = here.copy(), here.copy()
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    recipe = SiD(SiDConfig(), Actors(roles, here.teacher.process, (2,)))
    (t,) = SiD.plan(recipe.config, here.teacher.process, 1).times
    assert t == pytest.approx(2.515, abs=1e-3)
    before = here.distance(student, t)
    descend(
        recipe,
        {"fake_score": fake.backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 1e-3},
        steps=150,
        batch=128,
    )
    assert here.distance(student, t) < 0.6 * before
