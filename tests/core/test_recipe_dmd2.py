"""DMD2 as a recipe: expected gradients, update schedules, adversarial and regression parts, a student that improves."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import Learner, QuickRng, Watched, at_level, descend, on_bed, plane
from core.score_bed import F64, VP_LEVEL, Mixture, bed, edm_bed, gaussian
from torch import nn

from fewstep.core.errors import UserError
from fewstep.core.networks.discriminator import Discriminator, DiscriminatorConfig, make_discriminator
from fewstep.core.process import EDM, VP, RectifiedFlow
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.rng import Rng


def due(config, steps=20):
    return [[p.name for p in DMD2.phases(config) if p.due(s)] for s in range(steps)]


# ---------------------------------------------------------------- the gradient


def test_unnormalised_gradient_in_edm_coordinates():
    """sigma^2 times the gradient of KL(p || q), bed R3."""
    here = edm_bed("R2")
    _, terms = on_bed(DMD2, DMD2Config(time=at_level(here.process, 0.8), normalise=False), here)
    assert here.gradient(terms.total()) == pytest.approx((-0.1461110607, -0.0548644410), abs=1e-9)


def test_the_normaliser_divides_each_sample():
    here = bed("R2", nodes=41)
    law = at_level(here.process, VP_LEVEL)
    plain, scaled = (
        torch.autograd.grad(
            on_bed(DMD2, DMD2Config(time=law, normalise=n), here)[1].total().sum(), here.x0, retain_graph=True
        )[0]
        for n in (False, True)
    )
    omega = (here.x0 - here.teacher.x0(here.x_t, here.t, {})).detach().abs()
    torch.testing.assert_close(scaled, plain / omega, rtol=1e-9, atol=1e-9)


def test_nothing_pulls_where_student_and_teacher_agree():
    here = bed("R1", student=(0.5, 0.7), nodes=21)
    _, terms = on_bed(DMD2, DMD2Config(), here)
    assert torch.autograd.grad(terms.total().sum(), here.x0)[0].abs().max().item() < 1e-10
    assert terms.metrics["gap"].max().item() < 1e-20


def test_neither_network_is_differentiated():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake)}
    on_bed(DMD2, DMD2Config(), here, roles)
    assert roles["teacher"].attached == [False]
    assert roles["fake_score"].attached == [False]


def test_guidance_is_of_the_teacher_in_the_one_convention():
    process = EDM()
    teacher = Mixture(process, [0.5, 0.5], [-1.0, 1.0], [0.4, 0.4])
    fake = gaussian(process, 0.2, 0.8)
    x0, cond = torch.full((8, 1), 0.3, dtype=F64, requires_grad=True), {"label": torch.ones(8, dtype=torch.long)}

    class Free(Watched):
        def predict(self, x_t, t, cond):
            return self.inner.predict(x_t, t, {})

    gradients = {}
    for scale in (1.0, 3.0):
        roles = {"teacher": teacher, "fake_score": Free(fake)}
        actors = Actors(roles, process, (1,), generate=lambda batch, rng: (x0, cond), dtype=F64)
        config = DMD2Config(guidance_scale=scale, normalise=False)
        rng = QuickRng(0, 0, tuple(range(8)))
        terms = DMD2(config, actors).loss("student", Batch(8), rng, 0)
        gradients[scale] = torch.autograd.grad(terms.total().sum(), x0)[0]
        at = DMD2(config, actors).noised(DMD2(config, actors).sample(Batch(8), rng, grad=False), config.time, rng, 0)
    with_cond, without = teacher.x0(at.x_t, at.t, cond), teacher.x0(at.x_t, at.t, {})
    torch.testing.assert_close(gradients[1.0], fake.x0(at.x_t, at.t, {}) - with_cond)
    pushed = with_cond + (3.0 - 1.0) * (with_cond - without)  # the other convention, told in ours
    torch.testing.assert_close(gradients[3.0], fake.x0(at.x_t, at.t, {}) - pushed)


# ---------------------------------------------------------------- phases and schedules


def test_update_schedules():
    """20 iterations at 5 to 1: 4 student steps, with 20 fake-score steps or, alternating, 16."""
    official, alternate = due(DMD2Config()), due(DMD2Config(update_mode="alternate"))
    for found, fakes in ((official, 20), (alternate, 16)):
        assert sum("student" in names for names in found) == 4
        assert sum("fake_score" in names for names in found) == fakes
    assert official[4] == ["fake_score", "student"]
    assert alternate[4] == ["student"]
    with pytest.raises(UserError, match="alternate"):
        DMD2Config(update_mode="alternate", fake_updates=1)


def test_roles_follow_the_config():
    assert [s.name for s in DMD2.role_specs(DMD2Config())] == ["student", "teacher", "fake_score"]
    for features in ("fake_score", "teacher"):
        config = DMD2Config(adversarial=AdversarialConfig(weight=1e-3, features=features))
        spec = DMD2.role_specs(config)[-1]
        assert (spec.name, spec.kind, spec.features_of) == ("discriminator", "discriminator", features)
        assert DMD2.phases(config)[0].trains == ("fake_score", "discriminator")
    assert DMD2.phases(DMD2Config())[0].trains == ("fake_score",)


def test_the_plan_is_the_students_own():
    config = DMD2Config(student_steps=4)
    assert DMD2.plan(config, VP.scaled_linear(), 4).times == (999, 749, 499, 249)
    assert DMD2.plan(config, VP.scaled_linear(), 4).mode == "renoise"
    with pytest.raises(UserError, match="made for 4"):
        DMD2.plan(config, VP.scaled_linear(), 1)


def test_bad_settings_are_refused():
    for given in ({"fake_updates": 0}, {"regression_weight": -1.0}, {"regression_steps": 0}):
        with pytest.raises(UserError, match=next(iter(given))):
            DMD2Config(**given)
    with pytest.raises(UserError, match="did you mean 'heun'"):
        DMD2Config(regression_solver="huen")


# ---------------------------------------------------------------- several steps


class GaussianMap(Watched):
    """The exact PF-ODE map to clean data of N(0.7, 0.5^2) as a one-step student."""

    def x0(self, x_t, t, cond):
        c = self.process.coefficients(t)
        spread = 0.5 / (c.alpha**2 * 0.25 + c.sigma**2).sqrt()
        return 0.7 + spread[:, None] * (x_t - c.alpha[:, None] * 0.7)


def test_simulated_inputs_have_the_analytic_marginal():
    process = RectifiedFlow()
    config = DMD2Config(student_steps=4)
    student = GaussianMap(gaussian(process, 0.7, 0.5))
    n = 20000
    seen = {}
    original = student.x0

    def noting(x_t, t, cond):
        seen[float(t[0])] = x_t
        return original(x_t, t, cond)

    student.x0 = noting
    recipe = DMD2(config, Actors({"student": student, "teacher": student, "fake_score": student}, process, (1,)))
    step = next(s for s in range(50) if Rng.for_batch(0, s, 1).shared_integer("student/index", 4) == 3)
    recipe.sample(Batch(n), Rng.for_batch(0, step, n), grad=False)
    assert sorted(seen, reverse=True) == [1.0, 0.75, 0.5, 0.25]
    for t, x in seen.items():
        if t < 1:
            assert x.mean().item() == pytest.approx((1 - t) * 0.7, abs=0.015)
            assert x.var().item() == pytest.approx((1 - t) ** 2 * 0.25 + t**2, rel=0.03)


# ---------------------------------------------------------------- adversarial part


class Judge(Discriminator):
    """A linear logit ``w x_t + c`` that notes what it is shown."""

    def __init__(self, w=1.0, c=0.0):
        super().__init__()
        self.w, self.c = nn.Parameter(torch.tensor(w, dtype=F64)), nn.Parameter(torch.tensor(c, dtype=F64))
        self.shown = []

    def patch_logits(self, x_t, t, cond):
        self.shown.append((x_t, t, cond))
        return self.w * x_t + self.c


def adversarial_recipe(judge, x0, data=True, **options):
    process = EDM()
    roles = {"teacher": gaussian(process, 0.7, 0.5), "fake_score": Learner(process, 0.0, 1.0), "discriminator": judge}
    actors = Actors(roles, process, (1,), generate=lambda batch, rng: (x0, {}), dtype=F64)
    config = DMD2Config(adversarial=AdversarialConfig(**{"weight": 0.5, **options}))
    recipe = DMD2(config, actors)
    batch = Batch(len(x0), {}, torch.full_like(x0, 5.0).detach() if data else None)
    return recipe, batch, QuickRng(0, 0, tuple(range(len(x0))))


def test_the_discriminator_sees_data_and_samples_under_the_same_noise():
    x0, judge = torch.full((6, 1), -1.0, dtype=F64, requires_grad=True), Judge()
    recipe, batch, rng = adversarial_recipe(judge, x0)
    terms = recipe.loss("fake_score", batch, rng, 0)
    (real, t_real, _), (fake, t_fake, _) = judge.shown
    torch.testing.assert_close(real - fake, torch.full_like(fake, 6.0), rtol=0, atol=1e-9)
    assert torch.equal(t_real, t_fake)
    softplus = torch.nn.functional.softplus
    expected = (softplus(-real) + softplus(fake))[:, 0]
    torch.testing.assert_close(terms.terms["discriminator"], expected)
    assert terms.weights == {"discriminator": 1e-2}
    terms.total().mean().backward()
    assert x0.grad is None
    assert judge.w.grad is not None
    assert recipe.actors.roles["fake_score"].mean.grad is not None
    with pytest.raises(UserError, match="clean samples"):
        recipe.loss("fake_score", Batch(6), rng, 0)


def test_the_student_descends_the_logit_once_it_has_started():
    x0, judge = torch.full((6, 1), -1.0, dtype=F64, requires_grad=True), Judge(w=2.0)
    judge.requires_grad_(False)
    recipe, batch, rng = adversarial_recipe(judge, x0, start=3)
    assert set(recipe.loss("student", batch, rng, 2).terms) == {"matching"}
    terms = recipe.loss("student", batch, rng, 3)
    assert terms.weights == {"adversarial": 0.5}
    (gradient,) = torch.autograd.grad(terms.terms["adversarial"].sum(), x0, retain_graph=True)
    ((x_t, _, _),) = judge.shown
    torch.testing.assert_close(gradient, -2.0 * torch.sigmoid(-2.0 * x_t.detach()))
    total = terms.terms["matching"] + 0.5 * terms.terms["adversarial"]
    torch.testing.assert_close(terms.total(), total)


@pytest.mark.parametrize("features", ["fake_score", "teacher"])
def test_a_feature_discriminator_trains_its_trunk_only_where_it_belongs_to_the_phase(features):
    here = plane(1)
    student, teacher, fake = here.copy(), here.copy(), here.copy()
    teacher.backbone.requires_grad_(False)
    trunk = {"fake_score": fake, "teacher": teacher}[features]
    judge = make_discriminator(trunk, DiscriminatorConfig(width=8), (2,), {}, seed=0)
    config = DMD2Config(adversarial=AdversarialConfig(weight=1.0, discriminator_weight=1.0, features=features))
    roles = {"student": student, "teacher": teacher, "fake_score": fake, "discriminator": judge}
    recipe = DMD2(config, Actors(roles, here.teacher.process, (2,)))
    rng = QuickRng(0, 0, tuple(range(8)))
    batch = here.data(rng)
    recipe.loss("fake_score", batch, rng, 0).terms["discriminator"].mean().backward()
    reached = {
        name: any(p.grad is not None for p in recipe.actors.module(name).parameters())
        for name in ("student", "teacher", "fake_score", "discriminator")
    }
    assert reached == {
        "student": False,
        "teacher": False,
        "fake_score": features == "fake_score",
        "discriminator": True,
    }
    for name in ("fake_score", "discriminator"):
        recipe.actors.module(name).requires_grad_(False).zero_grad(set_to_none=True)
    recipe.loss("student", batch, rng, 0).terms["adversarial"].mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.backbone.parameters())
    assert all(p.grad is None for p in (*fake.backbone.parameters(), *judge.parameters()))


# ---------------------------------------------------------------- the fake score


@pytest.mark.parametrize("weighting", ["native", "karras", "snr", "uniform"])
def test_the_fake_score_recovers_the_students_law(weighting):
    process = EDM()
    fake = Learner(process, 0.0, 1.0)
    actors = Actors(
        {"teacher": gaussian(process, 0.7, 0.5), "fake_score": fake},
        process,
        (1,),
        generate=lambda batch, rng: (-0.4 + 1.3 * rng.normal("z", (1,), F64), {}),
        dtype=F64,
    )
    config = DMD2Config(fake=FakeScoreConfig(weighting=weighting))
    recipe = DMD2(config, actors)
    late = []
    optimiser = torch.optim.Adam([fake.mean, fake.std], 0.05, betas=(0.0, 0.99))
    for step in range(250):
        rng = QuickRng(0, step, tuple(range(512)))
        optimiser.zero_grad()
        recipe.loss("fake_score", Batch(512), rng, step).total().mean().backward()
        optimiser.step()
        late.append((fake.mean.item(), abs(fake.std.item())))
    mean, std = torch.tensor(late[-100:]).mean(0).tolist()
    assert mean == pytest.approx(-0.4, abs=0.1)
    assert std == pytest.approx(1.3, abs=0.1)


def test_the_fake_scores_condition_is_dropped_for_whole_batches():
    process = EDM()
    shown = []

    class Noting(Mixture):
        def predict(self, x_t, t, cond):
            shown.append(cond["label"].tolist())
            return super().predict(x_t, t, cond)

    fake = Noting(process, [0.5, 0.5], [-1.0, 1.0], [0.4, 0.4])
    cond = {"label": torch.tensor([0, 1, 1])}
    x0 = torch.zeros(3, 1, dtype=F64)
    actors = Actors({"teacher": fake, "fake_score": fake}, process, (1,), generate=lambda b, r: (x0, cond), dtype=F64)
    recipe = DMD2(DMD2Config(fake=FakeScoreConfig(label_dropout=0.3)), actors)
    for step in range(200):
        recipe.loss("fake_score", Batch(3), QuickRng(0, step, (0, 1, 2)), step)
    dropped = sum(labels == [-1, -1, -1] for labels in shown)
    assert all(labels in ([-1, -1, -1], [0, 1, 1]) for labels in shown)
    assert 35 < dropped < 90


# ---------------------------------------------------------------- regression and learning


def test_regression_pairs_the_noise_with_the_teachers_own_sample():
    """The exact student has no regression loss; another one the squared distance from the ODE's end."""
    process = EDM()
    exact = GaussianMap(gaussian(process, 0.7, 0.5))
    for student, expected in ((exact, 0.0), (gaussian(process, 0.7, 0.5), None)):
        roles = {"student": student, "teacher": gaussian(process, 0.7, 0.5), "fake_score": gaussian(process, 0.0, 1.0)}
        config = DMD2Config(regression_weight=0.25, regression_steps=60)
        recipe = DMD2(config, Actors(roles, process, (1,), dtype=F64))
        value = recipe.regression_loss(Batch(500), QuickRng(0, 0, tuple(range(500)))).mean().item()
        # a denoiser's answer at large noise is the mean: its distance from the samples is their variance
        assert value == pytest.approx(expected if expected is not None else 0.25, abs=1e-4 if expected == 0.0 else 0.03)


def test_regression_joins_the_students_loss_and_needs_noise_to_start_from():
    here = plane(1)
    roles = {"student": here.copy(), "teacher": here.teacher, "fake_score": here.copy()}
    config = DMD2Config(regression_weight=0.25, regression_steps=3)
    terms = DMD2(config, Actors(roles, here.teacher.process, (2,))).loss(
        "student", Batch(4), QuickRng(0, 0, tuple(range(4))), 0
    )
    assert set(terms.terms) == {"matching", "regression"}
    assert terms.weights == {"regression": 0.25}
    made = Actors(roles, here.teacher.process, (2,), generate=lambda batch, rng: (torch.zeros(4, 2), {}))
    with pytest.raises(UserError, match="regression"):
        DMD2(config, made)


def test_micro_batches_give_the_numbers_of_the_batch():
    here = plane(1)
    student, fake = here.copy(), here.copy()
    judge = make_discriminator(fake, DiscriminatorConfig(width=8), (2,), {}, seed=0)
    config = DMD2Config(student_steps=2, student_start=0.6, adversarial=AdversarialConfig(weight=0.1))
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    recipe = DMD2(config, Actors(roles, here.teacher.process, (2,)))
    batch = here.data(QuickRng(0, 0, tuple(range(6))))
    for phase in ("fake_score", "student"):
        rng = Rng.for_batch(0, 3, 6)
        whole = recipe.loss(phase, batch, rng, 3).total()
        parts = [recipe.loss(phase, batch.select(i, i + 3), rng.select(i, i + 3), 3).total() for i in (0, 3)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adversarial", [0.0, pytest.param(0.05, marks=pytest.mark.slow)])
def test_a_network_learns_two_blobs_in_one_step(adversarial):
    here = plane(150)
    student, fake = here.copy(), here.copy()
    judge = make_discriminator(fake, DiscriminatorConfig(width=16), (2,), {}, seed=0)
    config = DMD2Config(fake_updates=2, student_start=0.5, adversarial=AdversarialConfig(weight=adversarial))
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    recipe = DMD2(config, Actors(roles, here.teacher.process, (2,)))
    (t,) = DMD2.plan(config, here.teacher.process, 1).times
    before = here.distance(student, t)
    trained = [*fake.backbone.parameters(), *(judge.parameters() if adversarial else ())]
    log = descend(
        recipe,
        {"fake_score": trained, "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 1e-3},
        steps=200,
        batch=128,
        data=here.data,
    )
    assert here.distance(student, t) < 0.6 * before
    assert sum(entry["gap"] for entry in log[-20:]) < sum(entry["gap"] for entry in log[:20])
    assert math.isfinite(log[-1]["gap"])
