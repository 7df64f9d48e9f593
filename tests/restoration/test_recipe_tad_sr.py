"""TAD-SR on exact Gaussian teachers: the score difference in closed form, what reaches whom, where training ends."""

from __future__ import annotations

import itertools

import pytest
import torch
from core.recipe_bed import QuickRng, Watched
from torch import nn
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher
from fewstep.core.check import format_results, run
from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.losses.adversarial import discriminator_loss
from fewstep.core.losses.integral import score_difference_loss
from fewstep.core.networks.discriminator import Discriminator, DiscriminatorConfig, make_discriminator
from fewstep.core.networks.freezing import freeze
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, RectifiedFlow, ResidualShift, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state, run_plan, teacher_sample
from fewstep.restoration.recipes.rollout import Start, rollout
from fewstep.restoration.recipes.tad_sr import TADSR, TADSRConfig

F64 = torch.float64
MEAN, STD, ANCHOR = 0.3, 0.5, 0.1
LONG, SHORT = ResidualShift(), ResidualShift(num_steps=4, min_noise=0.2)
ONLY_HSD = {"mse_weight": 0.0, "gan_weight": 0.0}
ONLY_MSE = {"hsd_weight": 0.0, "gan_weight": 0.0}


def gaussian(process=LONG, mean=MEAN, std=STD):
    return GaussianTeacher(process, mean, std)


def column(*values):
    return torch.tensor(values, dtype=F64)[:, None]


def anchors(n, value=ANCHOR):
    return {"anchor": torch.full((n, 1), value, dtype=F64)}


class Affine(nn.Module, Denoiser):
    """``a x_t + b y + c``, and what it was asked."""

    def __init__(self, process=LONG, a=0.0, b=0.0, c=0.0):
        super().__init__()
        self.process, self.seen = process, []
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (a, b, c))

    def predict(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        return Prediction(self.a * x_t + self.b * cond.get("anchor", torch.zeros_like(x_t)) + self.c, Kind.X0)


class Fixed(Denoiser):
    """A student whose sample is a given tensor."""

    def __init__(self, x0, process=LONG):
        self.x0_, self.process = x0, process

    def predict(self, x_t, t, cond):
        return Prediction(self.x0_ * 1.0, Kind.X0)


class Critic(Discriminator):
    """A linear discriminator that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.a, self.seen = nn.Parameter(torch.tensor(2.0, dtype=F64)), []

    def patch_logits(self, x_t, t, cond):
        self.seen.append((x_t, t, cond))
        return torch.cat([self.a * x_t.flatten(1), self.a * x_t.flatten(1) + 1], 1)


def recipe_of(student, teacher=None, process=LONG, shape=(1,), **settings):
    config = TADSRConfig(**settings)
    roles = {"student": student, "teacher": teacher or gaussian(process), "discriminator": Critic()}
    kept = {spec.name: roles[spec.name] for spec in TADSR.role_specs(config)}
    return TADSR(config, Actors(kept, process, shape, dtype=F64))


# ---------------------------------------------------------------- the score difference


def eps_pair(teacher, z_student, z_teacher, t, noises, anchor=ANCHOR):
    """The teacher's noises of two samples under each of ``noises``, "n 1"."""
    process, n = teacher.process, len(noises)
    y, at = torch.full_like(noises, anchor), times(t, n)
    found = []
    for z in (z_student, z_teacher):
        x_t = process.add_noise(torch.full_like(noises, z), noises, at, y)
        found.append(teacher.eps(x_t, at, {"anchor": y}))
    return found


NOISES = torch.linspace(-3, 3, 61, dtype=F64)[:, None]


def test_the_score_difference_is_the_same_for_every_noise():
    of_student, of_teacher = eps_pair(gaussian(), 0.9, 0.4, 2.0, NOISES)
    z = torch.full_like(NOISES, 0.9).requires_grad_()
    (g,) = torch.autograd.grad(score_difference_loss(z, of_student, of_teacher).sum(), z)
    assert g.mean().item() == pytest.approx(0.475790, abs=1e-6)
    assert (g.max() - g.min()).item() < 1e-12


def test_score_distillation_at_the_same_point_is_noisy_and_leads_to_the_mean():
    of_student, _ = eps_pair(gaussian(), 0.9, 0.4, 2.0, NOISES)
    (slope, at_zero) = torch.linalg.lstsq(torch.cat([NOISES, torch.ones_like(NOISES)], 1), of_student - NOISES).solution
    assert at_zero.item() == pytest.approx(0.570948, abs=1e-6)
    assert abs(slope.item()) == pytest.approx(0.653700, abs=1e-6)
    per_unit = 0.475790 / 0.5
    assert at_zero.item() == pytest.approx(per_unit * (0.9 - MEAN), abs=1e-5)


def strength(std, t, process=LONG):
    above, below = eps_pair(gaussian(process, std=std), 1.0, 0.0, t, column(0.3))
    return (above - below).item()


def test_fine_structure_weighs_more_at_little_noise_only():
    assert [strength(s, 0.0) for s in (1.0, 0.3, 0.05)] == pytest.approx([0.0400, 0.4368, 9.757], rel=2e-3)
    assert [strength(s, 14.0) for s in (1.0, 0.3, 0.05)] == pytest.approx([0.0100, 0.0100, 0.0101], rel=1e-2)
    published = {0.0: (244.2, 0.05), 1.0: (17.9, 0.05), 2.0: (8.39, 0.005), 14.0: (1.0001, 5e-5)}  # half a last digit
    for t, (ratio, rounding) in published.items():
        assert strength(0.05, t) / strength(1.0, t) == pytest.approx(ratio, abs=rounding)


def cosines(n=8):
    k, i = torch.arange(n, dtype=F64)[:, None], torch.arange(n, dtype=F64)[None]
    basis = torch.cos(torch.pi * (i + 0.5) * k / n) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return basis


def test_through_the_recipe_each_frequency_of_a_picture_has_its_strength():
    n, basis = 8, cosines()
    assert_close(basis @ basis.T, torch.eye(n, dtype=F64))
    spread = torch.logspace(0, -1.5, n, dtype=F64)  # smooth pictures: little variance at high frequencies
    teacher = GaussianTeacher(LONG, torch.zeros(n, dtype=F64), covariance=basis.T @ torch.diag(spread**2) @ basis)
    z = torch.randn(64, n, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    recipe = recipe_of(Fixed(z), teacher, shape=(n,), hsd_target="data", target="data", **ONLY_HSD)
    gt = torch.zeros_like(z)
    batch = Batch(64, {"anchor": torch.zeros_like(z)}, gt)
    rng = Rng.for_batch(0, 0, 64)
    (g,) = torch.autograd.grad(recipe.loss("student", batch, rng, 0).total().sum(), z)
    t = recipe.compared_level(rng.across_phases("tad-sr"))
    c = LONG.coefficients(t)
    a, s = c.alpha[:, None], c.sigma[:, None]
    wanted = a * s / (a**2 * spread**2 + s**2) * (z.detach() @ basis.T)
    assert_close(g @ basis.T * n, wanted)
    assert (wanted[t == 0, -1].abs().mean() / wanted[t == 0, 0].abs().mean()) > 50


@pytest.mark.parametrize("t", [0.0, 2.0, 13.0])
def test_where_samples_agree_no_network_says_anything(t):
    net = MLPBackbone(3, width=16, depth=2, concat=("anchor",), concat_dim=3, seed=3).double()
    teacher = NetworkDenoiser(freeze(net), LONG, Plain(Kind.X0))
    y, z = (torch.randn(5, 3, generator=torch.Generator().manual_seed(s), dtype=F64) for s in (0, 1))
    recipe = recipe_of(Fixed(z), teacher, shape=(3,), target="data", hsd_target="data", **ONLY_HSD)
    at = times(t, 5)
    recipe.compared_level = lambda rng: at
    start = Start(y, 14.0, {"anchor": y})
    batch = Batch(5, {"anchor": y}, z)
    value, size = recipe.score_difference(z, z, start, batch, Rng.for_batch(0, 0, 5))
    assert torch.equal(value, torch.zeros(5, dtype=F64))
    assert torch.equal(size, torch.zeros(5, dtype=F64))
    plain = recipe_of(Fixed(z), teacher, shape=(3,), hsd_target="sds", **ONLY_HSD)
    plain.compared_level = recipe.compared_level
    assert plain.score_difference(z, z, start, batch, Rng.for_batch(0, 0, 5))[1].min() > 1e-3


def test_noise_of_the_comparison_is_centred_and_as_large_as_the_process_says():
    n = 20_000
    seen = Watching(gaussian())
    z = torch.full((n, 1), 0.9, dtype=F64)
    recipe = recipe_of(Fixed(z), seen, target="data", hsd_target="data", **ONLY_HSD)
    recipe.loss("student", Batch(n, anchors(n), z), QuickRng(0, 0, tuple(range(n))), 0)
    (x_t, t), (other, _) = seen.asked
    assert torch.equal(x_t, other), "the same noise at the same level, and here the same sample"
    assert sorted(set(t.tolist())) == [0, 1, 2]
    for level in (0, 1, 2):
        here = t == level
        c = LONG.coefficients(t[here][:1])
        push = x_t[here] - c.alpha * 0.9 - c.anchor * ANCHOR
        assert push.mean().item() == pytest.approx(0, abs=4 * c.sigma.item() / int(here.sum()) ** 0.5)
        assert push.std().item() == pytest.approx(c.sigma.item(), rel=0.03)


class Watching(Watched):
    def __init__(self, inner):
        super().__init__(inner)
        self.asked = []

    def predict(self, x_t, t, cond):
        self.asked.append((x_t, t))
        return super().predict(x_t, t, cond)


@pytest.mark.parametrize(
    ("process", "share", "levels"),
    [(LONG, 0.2, {0, 1, 2}), (SHORT, 0.2, {0}), (SHORT, 0.01, {0}), (LONG, 1.0, set(range(15)))],
)
def test_scores_are_compared_at_a_share_of_the_levels_and_at_least_at_one(process, share, levels):
    recipe = recipe_of(Affine(process), process=process, hsd_share=share)
    rng = Rng.for_batch(0, 0, 400)
    assert set(recipe.compared_level(rng).tolist()) == levels
    assert set(recipe.judged_level(rng).tolist()) == set(range(int(process.t_max))), "all but the noisiest"


def test_levels_of_a_continuous_clock_keep_off_its_ends():
    process = RectifiedFlow()
    recipe = recipe_of(Affine(process), process=process)
    rng = Rng.for_batch(0, 0, 400)
    low, high = (process.time_to_unit(f(rng)) for f in (recipe.compared_level, recipe.judged_level))
    assert low.min() >= 0.02
    assert 0.19 < low.max() <= 0.2
    assert high.min() >= 0.02
    assert high.max() <= 0.98


# ---------------------------------------------------------------- what reaches whom


def test_the_gradient_of_the_score_difference_is_its_direction_over_the_elements():
    n, shape = 4, (2, 3, 3)
    z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    gt, y = (torch.zeros(n, *shape, dtype=F64, requires_grad=True) for _ in range(2))
    net = MLPBackbone(18, width=8, depth=1, concat=("anchor",), concat_dim=18).double()
    teacher = Watched(NetworkDenoiser(net, LONG, Plain(Kind.X0)))
    recipe = recipe_of(
        Fixed(z), teacher, shape=shape, target="data", hsd_target="data", **ONLY_HSD | {"hsd_weight": 3.0}
    )
    rng = Rng.for_batch(0, 0, n)
    recipe.loss("student", Batch(n, {"anchor": y}, gt), rng, 0).total().mean().backward()
    shared = rng.across_phases("tad-sr")
    t, eps = recipe.compared_level(shared), shared.normal("hsd/eps", shape, F64)
    with torch.no_grad():
        above, below = (teacher.eps(LONG.add_noise(x, eps, t, y), t, {"anchor": y}) for x in (z, gt))
    assert_close(z.grad, 3 * (above - below) / (n * 18))
    assert not any(teacher.attached)
    assert gt.grad is None
    assert y.grad is None
    assert all(p.grad is None for p in net.parameters())


def test_a_direction_that_is_not_finite_shows_in_the_loss():
    z = torch.zeros(2, 1, dtype=F64).requires_grad_()
    bad = torch.tensor([[float("nan")], [1.0]], dtype=F64)
    value = score_difference_loss(z, bad, torch.zeros(2, 1, dtype=F64))
    assert value.isfinite().tolist() == [False, True]


def test_both_phases_see_the_same_samples_levels_and_noise():
    student = Affine(a=0.5)
    recipe = recipe_of(student)
    gt = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    batch, critic = Batch(6, anchors(6), gt), recipe.actors.roles["discriminator"]
    for phase in recipe.phases(recipe.config):
        recipe.loss(phase.name, batch, Rng(0, 3, tuple(range(6)), phase.name), 3)
    assert [phase.name for phase in recipe.phases(recipe.config)] == ["discriminator", "student"]
    (real, t, _), (fake, t_fake, _), (again, t_again, _) = critic.seen
    assert torch.equal(fake, again)
    assert torch.equal(t, t_fake)
    assert torch.equal(t, t_again)
    assert again.requires_grad
    assert not fake.requires_grad
    (x, at, _), _ = student.seen
    assert torch.equal(at, torch.full((6,), 14.0, dtype=F64)), "always from pure noise"
    made = 0.5 * x.detach()
    c = LONG.coefficients(t)
    assert_close(real - fake.detach(), c.alpha[:, None] * (gt - made)), "under common noise"


def test_the_adversarial_terms_are_hinges():
    recipe = recipe_of(Affine(a=0.1), gan_weight=0.5)
    batch, rng = Batch(6, anchors(6), column(*range(6))), Rng.for_batch(0, 0, 6)
    loss = recipe.loss("discriminator", batch, rng, 0)
    (real, t, cond), (fake, _, _) = recipe.actors.roles["discriminator"].seen
    critic = Critic()
    wanted = (1 - critic.patch_logits(real, t, cond)).relu().mean(1) + (
        1 + critic.patch_logits(fake, t, cond)
    ).relu().mean(1)
    assert_close(loss.total(), wanted)
    terms = recipe.loss("student", batch, rng, 0)
    assert terms.weights == {"mse": 1.0, "hsd": 1.0, "gan": 0.5}
    assert_close(terms.terms["gan"], -critic.patch_logits(fake, t, cond).mean(1))


@pytest.mark.parametrize(
    ("settings", "roles", "phases", "terms"),
    [
        ({}, ("student", "teacher", "discriminator"), ("discriminator", "student"), {"mse", "hsd", "gan"}),
        ({"gan_weight": 0}, ("student", "teacher"), ("student",), {"mse", "hsd"}),
        (ONLY_MSE, ("student", "teacher"), ("student",), {"mse"}),
        (ONLY_HSD, ("student", "teacher"), ("student",), {"hsd"}),
        ({**ONLY_MSE, "target": "data"}, ("student",), ("student",), {"mse"}),
        ({**ONLY_MSE, "target": "prepared"}, ("student",), ("student",), {"mse"}),
    ],
)
def test_a_term_without_weight_takes_its_networks_along(settings, roles, phases, terms):
    recipe = recipe_of(Affine(), **settings)
    assert tuple(spec.name for spec in recipe.role_specs(recipe.config)) == roles
    assert tuple(phase.name for phase in recipe.phases(recipe.config)) == phases
    made = {"noise": column(1, 2), "target": column(3, 4)} if recipe.config.target == "prepared" else {}
    found = recipe.loss("student", Batch(2, anchors(2) | made, column(0, 0)), Rng.for_batch(0, 0, 2), 0)
    assert set(found.terms) == terms


def test_without_a_need_for_them_no_targets_are_sampled():
    teacher = Watching(gaussian())
    recipe = recipe_of(Affine(), teacher, mse_weight=0, hsd_target="data")
    batch = Batch(2, anchors(2), column(0, 0))
    recipe.loss("discriminator", batch, Rng.for_batch(0, 0, 2), 0)
    assert not teacher.asked
    recipe.loss("student", batch, Rng.for_batch(0, 0, 2), 0)
    assert len(teacher.asked) == 2, "two scores"
    recipe = recipe_of(Affine(), teacher)
    recipe.loss("student", batch, Rng.for_batch(0, 0, 2), 0)
    assert len(teacher.asked) == 2 + 15 + 2


# ---------------------------------------------------------------- targets


def mse_target(process, noise, settings, seed=0, x0=None):
    """What the regression pulls to, read off its gradient at a student that says 0."""
    n, z = len(noise), torch.zeros_like(noise, requires_grad=True)
    recipe = recipe_of(Fixed(z, process), process=process, **{**ONLY_MSE, **settings})
    cond = anchors(n) | {"noise": noise}
    rng = Rng.for_batch(seed, 0, n)
    loss = recipe.loss("student", Batch(n, cond, torch.zeros_like(noise) if x0 is None else x0), rng, 0)
    (g,) = torch.autograd.grad(loss.total().sum(), z)
    return -g / 2


@pytest.mark.parametrize(
    ("process", "wanted"),
    [(LONG, (0.299119, 0.737565, -0.139328)), (SHORT, (0.299402, 0.596792, 0.002012))],
)
def test_targets_are_the_deterministic_teacher_s_samples_of_the_student_s_noise(process, wanted):
    found = mse_target(process, column(0, 1, -1), {})
    assert found[:, 0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert found[0] + found[2] - 2 * found[0] == pytest.approx(found[0] - found[1], abs=1e-12), "affine in the noise"


def test_fewer_teacher_steps_and_one_step_are_blurrier():
    spread = [(mse_target(LONG, column(1, 0), {"teacher_steps": n})).diff(dim=0).abs().item() for n in (0, 15, 5, 1)]
    assert spread[0] == spread[1] == pytest.approx(0.438447, abs=1e-6)
    assert spread[3] < spread[2] < spread[1]
    assert mse_target(LONG, column(1), {"teacher_steps": 1}).item() == pytest.approx(0.302508, abs=1e-6)


def test_ancestral_targets_spread_as_published_and_data_are_data():
    n = 2000
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = mse_target(LONG, noise, {"target": "ancestral"})
    assert found.std().item() == pytest.approx(0.405, abs=0.02)
    assert not torch.equal(found, mse_target(LONG, noise, {"target": "ancestral"}, seed=1))
    x0 = column(*range(5))
    assert torch.equal(mse_target(LONG, column(*range(5)), {"target": "data"}, x0=x0), x0)


def test_prepared_targets_are_taken_as_they_are_and_only_where_asked_for():
    z, made = column(0.0, 0.0).requires_grad_(), {"noise": column(1, -1), "target": column(5, 6)}
    student = Watching(Fixed(z))
    recipe = recipe_of(student, target="prepared", **ONLY_MSE)
    batch = Batch(2, anchors(2) | made, column(0, 0))
    loss = recipe.loss("student", batch, Rng.for_batch(0, 0, 2), 0).total()
    assert_close(loss, column(25, 36)[:, 0])
    assert_close(student.asked[0][0], initial_state(LONG, made["noise"], 14.0, anchors(2)))
    with pytest.raises(UserError, match=r"domain\.targets"):
        recipe.loss("student", Batch(2, anchors(2), column(0, 0)), Rng.for_batch(0, 0, 2), 0)
    with pytest.raises(UserError, match=r"set recipe\.target to prepared"):
        recipe_of(student, **ONLY_MSE).loss("student", batch, Rng.for_batch(0, 0, 2), 0)


def test_networks_are_not_shown_what_a_prepared_set_adds():
    student = Affine()
    recipe = recipe_of(student, target="prepared")
    cond = anchors(2) | {"noise": column(1, 2), "target": column(3, 4)}
    for phase in ("discriminator", "student"):
        recipe.loss(phase, Batch(2, cond, column(0, 0)), Rng.for_batch(0, 0, 2), 0)
    seen = [c for _, _, c in student.seen] + [c for _, _, c in recipe.actors.roles["discriminator"].seen]
    assert all(set(each) == {"anchor"} for each in seen)


def test_a_rollout_from_noise_is_the_teacher_s_sample_and_goes_on_from_within():
    teacher, rng, cond = gaussian(), Rng.for_batch(0, 0, 3), anchors(3)
    whole = teacher_sample(teacher, (1,), cond, rng, steps=15, dtype=F64)
    x = initial_state(LONG, rng.normal("noise", (1,), F64), 14.0, cond)
    assert torch.equal(rollout(teacher, Start(x, 14.0, cond), 15, rng), whole)
    for now, after in itertools.pairwise(range(14, 10, -1)):
        c, d = (LONG.coefficients(times(float(t), 3)) for t in (now, after))
        m = d.sigma / c.sigma
        k, j = d.alpha - m * c.alpha, d.anchor - m * c.anchor
        x0 = teacher.x0(x, times(float(now), 3), cond)
        x = k[:, None] * x0 + m[:, None] * x + j[:, None] * cond["anchor"]
        assert_close(rollout(teacher, Start(x, float(after), cond), 15, rng), whole)


def test_students_of_several_times_start_from_noised_data_and_are_sampled_there():
    fractions = (1.0, 12 / 15, 8 / 15, 4 / 15)
    student = Affine()
    recipe = recipe_of(student, student_times=fractions, target="data", **ONLY_MSE)
    gt = torch.full((200, 1), 5.0, dtype=F64)
    for step in range(30):
        recipe.loss("student", Batch(200, anchors(200), gt), Rng.for_batch(0, step, 200), step)
    assert {t[0].item() for _, t, _ in student.seen} == {3, 7, 11, 14}
    for x, t, _ in student.seen:
        c = LONG.coefficients(t[:1])
        mean = ANCHOR if t[0] == 14 else (c.alpha * 5 + c.anchor * ANCHOR).item()
        assert x.mean().item() == pytest.approx(mean, abs=5 * c.sigma.item() / 200**0.5)
    assert TADSR.plan(recipe.config, LONG, 4).times == (14, 11, 7, 3)


# ---------------------------------------------------------------- training


def trained(steps=16, n=64, **settings):
    """Descends by the recipe's gradients alone, preconditioned by the second moments of the student's inputs."""
    student = Affine(a=0.5, b=0.2, c=-0.3)
    recipe = recipe_of(student, gan_weight=0.0, **settings)
    variance = 1 + (2 * 0.99) ** 2  # of z_T, for anchors of variance 1
    moments = torch.tensor([[variance, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=F64)
    for step in range(steps):
        rng = QuickRng(0, step, tuple(range(n)))
        y = rng.normal("y", (1,), F64)
        loss = recipe.loss("student", Batch(n, {"anchor": y}, y), rng, step).total().mean()
        gradients = torch.stack(torch.autograd.grad(loss, [student.a, student.b, student.c]))
        with torch.no_grad():
            for parameter, move in zip(student.parameters(), torch.linalg.solve(moments, gradients), strict=True):
                parameter -= 0.4 * move
    return student


@pytest.mark.parametrize("settings", [{}, {"mse_weight": 0.0, "hsd_weight": 2.0}])
def test_a_linear_student_arrives_at_the_slope_of_the_many_step_teacher(settings):
    student = trained(**settings)
    assert student.a.item() == pytest.approx(0.438447 / 1.98, abs=1e-4)
    assert student.a.item() == pytest.approx(0.221438, abs=1e-4)
    one_step = (0.302508 - 0.299995) / 1.98
    assert one_step == pytest.approx(0.00127, abs=1e-5)
    noise = column(0, 1, -1)
    made = run_plan(student, TADSR.plan(TADSRConfig(), LONG, 1), noise, anchors(3), Rng.for_batch(0, 0, 3))
    assert made[:, 0].tolist() == pytest.approx((0.299119, 0.737565, -0.139328), abs=2e-3)


# ---------------------------------------------------------------- time-aware heads on a network's features


class Maps(Backbone):
    """Two levels of features of a picture and its anchor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.back = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x, time, cond):
        h = self.first(torch.cat([x, cond["anchor"]], 1)).tanh()
        self.second(h)
        return self.back(h)


def test_heads_that_start_at_zero_learn_to_tell_noise_levels():
    with Rng(0, 0, ()).network_noise("init"):
        teacher = NetworkDenoiser(freeze(Maps()), LONG, Plain(Kind.X0))
    shape, n = (2, 8, 8), 6
    y = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    config = DiscriminatorConfig(head="time_aware", taps=("first", "second"), width=16)
    critic = make_discriminator(teacher, config, shape, {"anchor": y}, seed=0)
    z = (y + 0.3).requires_grad_()
    roles = {"student": Fixed(z), "teacher": teacher, "discriminator": critic}
    recipe = TADSR(TADSRConfig(mse_weight=0.0, hsd_weight=0.0, gan_weight=1.0), Actors(roles, LONG, shape))
    batch, rng = Batch(n, {"anchor": y}, -y), Rng.for_batch(0, 0, n)

    def pull():
        critic.eval()
        loss = recipe.loss("student", batch, rng, 0)
        (g,) = torch.autograd.grad(loss.total().mean(), z)
        logits = [critic.patch_logits(y, times(t, n), {"anchor": y}).detach() for t in (1.0, 9.0)]
        return g.abs().max().item(), logits

    size, (early, late) = pull()
    assert size == 0
    assert torch.equal(early, late)
    assert_close(early, early[:1].expand_as(early))
    critic.train()
    value = recipe.loss("discriminator", batch, rng, 0).total()
    assert_close(value, ((1 - early).relu() + (1 + early).relu()).mean(1))
    constant = torch.full((n, 3), 0.7)
    assert_close(discriminator_loss(constant, constant, "hinge"), torch.full((n,), 2.0))
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    value.mean().backward()
    optimizer.step()
    assert all(p.grad is None for p in teacher.backbone.parameters())
    size, (early, late) = pull()
    assert size > 0
    assert (early - late).abs().max() > 1e-6
    assert early.std(0).max() > 1e-6


# ---------------------------------------------------------------- settings, laws


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mse_weight": 0, "hsd_weight": 0, "gan_weight": 0}, "nothing to learn"),
        ({"gan_weight": -1}, "must not be negative"),
        ({"hsd_share": 0}, "hsd_share"),
        ({"target": "data"}, "hsd_target"),
        ({"target": "prepared", "student_steps": 2}, "prepared"),
        ({"teacher_steps": -1}, "teacher_steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TADSRConfig(**settings)


def test_roles_and_steps_it_was_not_made_for_are_named():
    actors = Actors({"student": Affine(), "teacher": gaussian(), "discriminator": Affine()}, LONG, (1,))
    with pytest.raises(UserError, match="must be a Discriminator"):
        TADSR(TADSRConfig(), actors)
    with pytest.raises(UserError, match="made for 1 step"):
        TADSR.plan(TADSRConfig(), LONG, 4)
    assert TADSRConfig().steps(VP.scaled_linear()) == 50


@pytest.mark.parametrize(
    ("process", "settings"),
    [(LONG, {"target": "ancestral"}), (VP.scaled_linear(), {"hsd_target": "data"})],
    ids=["15", "vp"],
)
def test_the_laws_of_distillation_hold(process, settings):
    results = run(TADSR, TADSRConfig(teacher_steps=3, **settings), process)
    assert all(result.passed for result in results), format_results(results)
