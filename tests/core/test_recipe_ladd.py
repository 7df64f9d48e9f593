"""LADD as a recipe: what it draws, what learns, its losses in closed form, a student that improves."""

from __future__ import annotations

import copy

import pytest
import torch
from core.recipe_bed import QuickRng, descend, plane
from core.score_bed import F64, gaussian
from torch import nn

from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.discriminator import Discriminator, DiscriminatorConfig, make_discriminator
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, RectifiedFlow, TrigFlow
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes import find_recipe
from fewstep.core.recipes.ladd import LADD, LADDConfig
from fewstep.core.sampling import run_plan
from fewstep.core.times import TimeConfig

VP_STEPS = VP.scaled_linear()


class Critic(Discriminator):
    """A linear discriminator in two positions that remembers what it was shown."""

    def __init__(self, dim=3):
        super().__init__()
        self.a = nn.Parameter(torch.arange(1.0, dim + 1, dtype=F64))
        self.seen = []

    def patch_logits(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        logit = x_t @ self.a
        return torch.stack([logit, logit + 2], 1)


class Student(Denoiser):
    """Remembers its inputs and answers with a trained constant."""

    def __init__(self, process, dim=3):
        self.process, self.seen = process, []
        self.b = torch.full((dim,), 0.3, dtype=F64, requires_grad=True)

    def predict(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        return Prediction(self.b.expand_as(x_t) * 1.0, Kind.X0)


def recipe_of(config=None, process=VP_STEPS, dim=3, **roles):
    made = {"student": Student(process, dim), "teacher": gaussian(process, 0.7, 0.5), "discriminator": Critic(dim)}
    return LADD(config or LADDConfig(), Actors(made | roles, process, (dim,), dtype=F64))


def rng_of(batch, step=0):
    return QuickRng(0, step, tuple(range(batch)))


def real_batch(n, dim=3):
    x0 = 1 + 0.1 * torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=F64)
    return Batch(n, {"text": torch.arange(n)}, x0)


def test_it_is_found_by_name():
    assert find_recipe("ladd") is LADD


# ---------------------------------------------------------------- what is drawn


def drawn_times(config, step, n=20_000):
    recipe = recipe_of(config)
    recipe.loss("student", real_batch(n), rng_of(n, step), step)
    _, t, _ = recipe.actors.roles["student"].seen[0]
    values, counts = t.unique(return_counts=True)
    return {int(v): c.item() / n for v, c in zip(values, counts, strict=True)}


def test_student_times_have_the_papers_shares_before_and_after_the_warm_up():
    early, late = drawn_times(LADDConfig(), 499), drawn_times(LADDConfig(), 500)
    assert early.keys() == {499, 249}
    assert early[499] == pytest.approx(0.5, abs=0.015)
    assert [late[t] for t in (999, 749, 499, 249)] == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.015)


def test_other_numbers_of_times_are_drawn_evenly_or_as_told():
    assert drawn_times(LADDConfig(student_steps=1), 0) == {999: 1.0}
    assert drawn_times(LADDConfig(student_steps=2), 0) == pytest.approx({999: 0.5, 499: 0.5}, abs=0.015)
    told = LADDConfig(student_times=(1.0, 0.3), time_shares=(3.0, 1.0), warmup_shares=(0.0, 1.0), warmup_steps=7)
    assert drawn_times(told, 6) == {299: 1.0}
    assert drawn_times(told, 7) == pytest.approx({999: 0.75, 299: 0.25}, abs=0.015)


@pytest.mark.parametrize("process", [VP_STEPS, EDM(), RectifiedFlow(), TrigFlow(sigma_data=1.0)])
def test_the_first_time_sees_pure_noise_and_the_others_noised_real_samples(process):
    config = LADDConfig(student_times=(1.0, 0.5), warmup_steps=0, time_shares=(1.0, 1.0))
    recipe, n = recipe_of(config, process), 4000
    batch = Batch(n, {}, torch.full((n, 3), 50.0, dtype=F64))
    recipe.loss("student", batch, rng_of(n), 0)
    x, t, _ = recipe.actors.roles["student"].seen[0]
    first = t == t.max()
    scale = process.initial_scale(t.max())
    assert x[first].mean().abs() < 0.1 * scale, "no trace of the data"
    assert x[first].std() == pytest.approx(float(scale), rel=0.05)
    c = process.coefficients(t.min())
    assert x[~first].mean() == pytest.approx(float(c.alpha * 50), abs=0.1 * float(c.sigma))
    assert x[~first].std() == pytest.approx(float(c.sigma), rel=0.05)


def test_real_and_generated_are_judged_at_the_same_levels_and_conditions_with_noise_of_their_own():
    recipe, batch = recipe_of(), real_batch(64)
    recipe.loss("discriminator", batch, rng_of(64), 0)
    (real, s_real, cond_real), (fake, s_fake, cond_fake) = recipe.discriminator.seen
    assert torch.equal(s_real, s_fake)
    assert torch.equal(cond_real["text"], cond_fake["text"])
    c = VP_STEPS.coefficients(s_real)
    eps_real = (real - c.alpha[:, None] * batch.x0) / c.sigma[:, None]
    eps_fake = (fake - c.alpha[:, None] * 0.3) / c.sigma[:, None]
    for eps in (eps_real, eps_fake):
        assert eps.mean().abs() < 0.3
        assert eps.std() == pytest.approx(1, abs=0.2)
    assert (eps_real * eps_fake).mean().abs() < 0.3
    assert not torch.allclose(eps_real, eps_fake)


def test_levels_are_logit_normal():
    recipe, n = recipe_of(), 20_000
    recipe.loss("discriminator", real_batch(n), rng_of(n), 0)
    u = VP_STEPS.time_to_unit(recipe.discriminator.seen[0][1])
    u = u[(u > 0) & (u < 1)]
    logit = (u / (1 - u)).log()
    assert logit.mean().item() == pytest.approx(1, abs=0.04)
    assert logit.std().item() == pytest.approx(1, abs=0.04)


# ---------------------------------------------------------------- losses


def test_the_losses_are_the_hinge_pair_averaged_over_positions():
    recipe, batch = recipe_of(), real_batch(8)
    terms = recipe.loss("discriminator", batch, rng_of(8), 0)
    (real, _, _), (fake, _, _) = recipe.discriminator.seen
    a = recipe.discriminator.a
    d_real, d_fake = (torch.stack([x @ a, x @ a + 2], 1) for x in (real, fake))
    expected = (1 - d_real).relu().mean(1) + (1 + d_fake).relu().mean(1)
    torch.testing.assert_close(terms.total(), expected)
    torch.testing.assert_close(terms.metrics["real_logit"], d_real.mean(1).detach())
    accuracy = ((d_real > 0).double().mean(1) + (d_fake < 0).double().mean(1)) / 2
    torch.testing.assert_close(terms.metrics["accuracy"], accuracy)
    recipe.discriminator.seen.clear()
    terms = recipe.loss("student", batch, rng_of(8), 0)
    ((fake, _, _),) = recipe.discriminator.seen
    torch.testing.assert_close(terms.total(), -(fake @ a + 1))


def test_gradients_reach_the_student_through_the_noising_and_only_in_its_phase():
    recipe, batch = recipe_of(), real_batch(8)
    student = recipe.actors.roles["student"]
    recipe.loss("discriminator", batch, rng_of(8), 0).total().mean().backward()
    assert student.b.grad is None
    assert recipe.discriminator.a.grad is not None
    terms = recipe.loss("student", batch, rng_of(8), 0)
    s = recipe.discriminator.seen[-1][1]
    terms.total().mean().backward()
    expected = -VP_STEPS.coefficients(s).alpha.mean() * recipe.discriminator.a.detach()
    torch.testing.assert_close(student.b.grad, expected)


def test_the_relativistic_pair_compares_matching_positions():
    recipe = recipe_of(LADDConfig(adversarial="relativistic"))
    terms = recipe.loss("student", real_batch(4), rng_of(4), 0)
    (fake, _, _), (real, _, _) = recipe.discriminator.seen
    difference = (real - fake) @ recipe.discriminator.a
    torch.testing.assert_close(terms.total(), torch.nn.functional.softplus(difference))


@pytest.mark.parametrize("size", [1, 4])
def test_misaligned_pairs_are_more_fakes(size):
    recipe, batch = recipe_of(LADDConfig(misaligned=True)), real_batch(size)
    terms = recipe.loss("discriminator", batch, rng_of(size), 0)
    seen, a = recipe.discriminator.seen, recipe.discriminator.a
    assert len(seen) == (2 if size == 1 else 3)
    real, fakes = seen[0][0], [x for x, _, _ in seen[1:]]
    if size > 1:
        assert torch.equal(fakes[1], real.roll(-1, 0))
        assert torch.equal(seen[2][2]["text"], batch.cond["text"]), "the conditions stay where they are"
        assert torch.equal(seen[2][1], seen[0][1])
    hinge = torch.stack([(1 + torch.stack([x @ a, x @ a + 2], 1)).relu().mean(1) for x in fakes]).mean(0)
    expected = (1 - torch.stack([real @ a, real @ a + 2], 1)).relu().mean(1) + hinge
    torch.testing.assert_close(terms.total(), expected)


def test_the_penalty_is_the_squared_slope_exact_or_estimated():
    batch, n = real_batch(20_000), 20_000
    exact = recipe_of(LADDConfig(r1_weight=0.6, r1_noise=0.0)).loss("discriminator", batch, rng_of(n), 0)
    slope = torch.tensor(1.0 + 4 + 9, dtype=F64)
    torch.testing.assert_close(exact.terms["r1"], slope.expand(n))
    rest = exact.total() - exact.terms["discriminator"]
    torch.testing.assert_close(rest, (0.3 * slope).expand(n))
    near = recipe_of(LADDConfig(r1_weight=0.6)).loss("discriminator", batch, rng_of(n), 0).terms["r1"]
    assert near.mean().item() == pytest.approx(slope.item(), rel=0.04)


def test_exact_penalties_work_through_attention():
    net = UNet2DBackbone.make(1, 8, widths=(8, 16), attention=(False, True))
    teacher = NetworkDenoiser(net, VP_STEPS, Plain(Kind.EPS))
    config = LADDConfig(r1_weight=1.0, r1_noise=0.0)
    roles = build_roles(teacher, LADD.role_specs(config), RolesConfig(), 0, shape=(1, 8, 8))
    recipe = LADD(config, Actors(roles, VP_STEPS, (1, 8, 8)))
    batch = Batch(2, {}, torch.zeros(2, 1, 8, 8))
    terms = recipe.loss("discriminator", batch, rng_of(2), 0)
    terms.total().mean().backward()
    assert all(p.grad is not None for p in roles["discriminator"].parameters())
    assert all(p.grad is None for p in roles["teacher"].backbone.parameters())
    before = copy.deepcopy(roles["teacher"].backbone.state_dict())
    recipe.loss("student", batch, rng_of(2), 0).total().mean().backward()
    assert all(torch.equal(v, before[k]) for k, v in roles["teacher"].backbone.state_dict().items())


def test_the_distillation_half_pulls_towards_the_teachers_answer():
    """One fixed level and an exact Gaussian teacher: the target is its posterior mean, the weight alpha."""
    u = 0.6
    config = LADDConfig(distill_weight=2.5, distill_time=TimeConfig(low=u, high=u + 1e-9), guidance_scale=1.0)
    process, n = RectifiedFlow(), 16
    recipe = recipe_of(config, process)
    terms = recipe.loss("student", real_batch(n), rng_of(n), 0)
    eps = rng_of(n).normal("distill/eps", (3,), F64)
    t = torch.full((n,), u, dtype=F64)
    b = recipe.actors.roles["student"].b
    target = gaussian(process, 0.7, 0.5).x0(process.add_noise(b.detach().expand(n, 3), eps, t), t, {})
    torch.testing.assert_close(terms.terms["distill"], (1 - u) * (b - target).square().mean(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(terms.total(), terms.terms["adversarial"] + 2.5 * terms.terms["distill"])


def test_real_samples_can_be_the_teachers():
    recipe, n = recipe_of(LADDConfig(real="teacher", teacher_steps=20), RectifiedFlow()), 4000
    recipe.loss("discriminator", Batch(n), rng_of(n), 0)
    real, s, _ = recipe.discriminator.seen[0]
    c = recipe.process.coefficients(s)
    mean = (real.mean(1) / c.alpha)[c.alpha > 0.3].mean()
    assert mean.item() == pytest.approx(0.7, abs=0.1)
    with pytest.raises(UserError, match="clean samples"):
        recipe_of().loss("discriminator", Batch(n), rng_of(n), 0)


def test_a_domain_may_make_the_samples():
    x = torch.full((5, 3), 0.2, dtype=F64, requires_grad=True)
    roles = {"teacher": gaussian(VP_STEPS, 0.7, 0.5), "discriminator": Critic()}
    cond = {"text": torch.full((5,), 9)}
    actors = Actors(roles, VP_STEPS, (3,), generate=lambda batch, rng: (x * 1.0, cond), dtype=F64)
    recipe = LADD(LADDConfig(), actors)
    recipe.loss("student", real_batch(5), rng_of(5), 0).total().mean().backward()
    assert x.grad.abs().sum() > 0
    assert recipe.discriminator.seen[-1][2]["text"].tolist() == [9] * 5


# ---------------------------------------------------------------- plan and settings


def test_the_plan_uses_evenly_chosen_times():
    config = LADDConfig()
    assert LADD.plan(config, VP_STEPS, 4).times == (999.0, 749.0, 499.0, 249.0)
    assert LADD.plan(config, VP_STEPS, 2).times == (999.0, 499.0)
    assert LADD.plan(config, VP_STEPS, 1).times == (999.0,)
    for wrong in (0, 3, 8):
        with pytest.raises(UserError, match="steps"):
            LADD.plan(config, VP_STEPS, wrong)


def test_phases():
    phases = LADD.phases(LADDConfig(discriminator_updates=3))
    assert [(p.name, p.trains, p.every) for p in phases] == [
        ("discriminator", ("discriminator",), 1),
        ("student", ("student",), 3),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_shares": (1.0,)},
        {"warmup_shares": (0.0,) * 4},
        {"time_shares": (-1.0, 1.0, 1.0, 1.0)},
        {"discriminator_updates": 0},
        {"teacher_steps": 0},
        {"r1_weight": -1.0},
        {"misaligned": True, "adversarial": "relativistic"},
    ],
)
def test_wrong_settings_are_user_errors(wrong):
    with pytest.raises(UserError):
        LADDConfig(**wrong)


def test_the_discriminator_must_have_something_to_learn():
    bed = NetworkDenoiser(UNet2DBackbone.make(1, 8, widths=(8, 16)), VP_STEPS, Plain(Kind.EPS))
    headless = make_discriminator(bed, DiscriminatorConfig(head="mean"), (1, 8, 8), {}, 0)
    with pytest.raises(UserError, match="learned heads"):
        recipe_of(discriminator=headless)
    with pytest.raises(UserError, match="Discriminator"):
        recipe_of(discriminator=nn.Linear(1, 1))


# ---------------------------------------------------------------- it trains


@pytest.mark.slow
def test_a_student_in_the_plane_improves():
    bed = plane()
    config = LADDConfig(
        student_times=(0.42, 0.2),
        warmup_steps=0,
        time_shares=(0.8, 0.2),
        noise=TimeConfig(law="lognormal", mean=-1.0, std=1.0),
        adversarial="softplus",
        r1_weight=0.02,
    )
    teacher, student = bed.copy(), bed.copy()
    teacher.backbone.requires_grad_(False)
    heads = make_discriminator(teacher, DiscriminatorConfig(width=32, taps="blocks"), (2,), {}, seed=0)
    roles = {"student": student, "teacher": teacher, "discriminator": heads}
    recipe = LADD(config, Actors(roles, bed.teacher.process, (2,)))
    start = recipe.grid[0]
    before = bed.distance(student, start)
    trained = {"discriminator": list(heads.parameters()), "student": list(student.backbone.parameters())}
    frozen = [p.clone() for p in teacher.backbone.parameters()]
    descend(recipe, trained, {"discriminator": 3e-3, "student": 8e-4}, steps=90, batch=128, data=bed.data)
    assert bed.distance(student, start) < 0.5 * before
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.backbone.parameters(), strict=True))
    made = run_plan(student, LADD.plan(config, recipe.process, 2), torch.zeros(3, 2), {}, rng_of(3))
    assert made.shape == (3, 2)
