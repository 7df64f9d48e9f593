from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactConsistency, ExactGaussian, ExactJump
from core.tiny_loop import make_recipe, mlp_teacher, train
from torch import Tensor, nn
from torch.testing import assert_close

from fewstep.core.analytic import MixtureTeacher
from fewstep.core.denoiser import Backbone, EDMScaling, NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.grids import knot_grid
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.consistency import Consistency, ConsistencyConfig
from fewstep.core.recipes.weights import average_weights, copy_weights, set_parameters
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan


def gaussian_data(rng: Rng) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", (1,), torch.float64))


def oracle(process, config, student=ExactConsistency) -> Consistency:
    """The recipe with exact networks in place of all roles."""
    roles = {"student": student(process), "teacher": ExactGaussian(process), "target": student(process)}
    return Consistency(config, Actors(roles, process, (1,), dtype=torch.float64))


def rms_loss(recipe, n=2000) -> float:
    rng = Rng.for_batch(0, 0, n)
    return recipe.loss("student", gaussian_data(rng), rng, 0).terms["consistency"].mean().sqrt().item()


# ---------------------------------------------------------------- the loss with exact networks


@pytest.mark.parametrize(("knots", "expected"), [(50, 1.60e-3), (100, 4.55e-4)])
def test_exact_student_has_the_published_residual(knots, expected):
    config = ConsistencyConfig(boundary="lcm", num_knots=knots, distance="l2")
    recipe = oracle(PROCESSES["vp"], config)
    # the loss is dominated by its first knot: 2000 draws of 50 knots see it to a tenth
    assert rms_loss(recipe, 4000) == pytest.approx(expected, rel=0.12)


def test_exact_jumps_have_that_residual_too():
    class Student(ExactJump):
        def __init__(self, process):
            super().__init__(process, process.t_min)

    recipe = oracle(PROCESSES["vp"], ConsistencyConfig(boundary="jump", distance="l2"), Student)
    assert rms_loss(recipe, 4000) == pytest.approx(1.60e-3, rel=0.12)


def test_heun_s_residual_is_far_below_ddim_s():
    losses = [
        rms_loss(oracle(PROCESSES["edm"], ConsistencyConfig(solver=solver, num_knots=39, distance="l2")))
        for solver in ("ddim", "heun")
    ]
    assert losses[1] == pytest.approx(2.7e-4, rel=0.5)
    assert losses[0] > 4 * losses[1]


def test_training_pairs_give_the_distillation_gradient_in_expectation():
    """CT's target is noisy but unbiased to first order: the mean over pairs tends to the teacher's Euler step."""
    process = PROCESSES["edm"]
    config = ConsistencyConfig(mode="training", num_knots=400)
    recipe = oracle(process, config)
    n = 200_000
    rng = Rng.for_batch(0, 0, 1)
    x0 = MEAN + STD * rng.normal("x0", (n,), torch.float64)
    pair = recipe.pair(x0, {}, rng, 0)
    step = pair.x_t + (pair.s - pair.t) * ExactGaussian(process).eps(pair.x_t, pair.t, {})
    near = (pair.x_t - MEAN).abs() < 0.5 * pair.t  # a window: conditional expectations agree there
    assert (pair.x_s - step)[near].mean().abs() < 0.05 * (pair.t - pair.s).item()


def test_micro_batches_and_repeats_see_the_same_losses():
    recipe = oracle(CosineVP(), ConsistencyConfig(boundary="jump"))
    rng = Rng.for_batch(3, 5, 6)
    batch = gaussian_data(rng)
    whole = recipe.loss("student", batch, rng, 5).terms["consistency"]
    parts = [
        recipe.loss("student", batch.select(i, i + 2), rng.select(i, i + 2), 5).terms["consistency"] for i in (0, 2, 4)
    ]
    assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("boundary", ["edm", "lcm", "jump"])
@pytest.mark.parametrize("target", ["stopgrad", "ema"])
def test_gradient_reaches_the_online_side_of_the_student_only(boundary, target):
    config = ConsistencyConfig(boundary=boundary, target=target, guidance_max=4.0, guidance_scale=2.0)
    process = PROCESSES["vp"]
    network = mlp_teacher(process, num_classes=3)
    recipe = make_recipe(Consistency, config, network, dtype=torch.float64)
    rng = Rng.for_batch(0, 0, 8)
    batch = Batch(8, {"label": rng.integers("label", 3)}, gaussian_data(rng).x0)
    recipe.loss("student", batch, rng, 0).total().mean().backward()
    student = recipe.actors.module("student")
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    for name in recipe.actors.roles:
        if name != "student":
            assert all(p.grad is None for p in recipe.actors.module(name).parameters())


def test_target_side_of_the_same_network_carries_no_gradient():
    """The gradient equals that of a copy frozen as target: none leaks through the stop-gradient side."""
    network = mlp_teacher(EDM(), kind=None)
    grads = []
    for target in ("stopgrad", "ema"):
        config = ConsistencyConfig(distance="l2", boundary="edm", target=target)
        recipe = make_recipe(Consistency, config, network, dtype=torch.float64)
        rng = Rng.for_batch(0, 0, 16)
        recipe.loss("student", gaussian_data(rng), rng, 0).total().mean().backward()
        grads.append([p.grad for p in recipe.actors.module("student").parameters()])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_target_and_teacher_are_evaluated_without_a_graph():
    modes = []

    class Spy(ExactConsistency):
        def predict(self, x_t, t, cond):
            modes.append(torch.is_grad_enabled())
            return super().predict(x_t, t, cond)

    process = CosineVP()
    roles = {"student": Spy(process), "teacher": Spy(process)}
    recipe = Consistency(ConsistencyConfig(boundary="jump"), Actors(roles, process, (1,), dtype=torch.float64))
    rng = Rng.for_batch(0, 0, 4)
    recipe.loss("student", gaussian_data(rng), rng, 0)
    assert modes == [False, True, False]  # teacher, student, target


def test_dropout_masks_agree_on_both_sides():
    """A student under dropout compared with itself at one point: equal masks give a zero gap."""
    network = mlp_teacher(CosineVP(), dropout=0.5)
    recipe = make_recipe(Consistency, ConsistencyConfig(boundary="jump", distance="l2"), network, dtype=torch.float64)
    recipe.actors.module("student").train()
    x, t, rng = torch.randn(4, 1, dtype=torch.float64), torch.full((4,), 0.5).double(), Rng.for_batch(0, 0, 4)
    with rng.network_noise("dropout"):
        first = recipe.evaluate("student", x, t, {})
    with rng.network_noise("dropout"):
        second = recipe.evaluate("student", x, t, {})
    assert torch.equal(first, second)
    assert not torch.equal(recipe.evaluate("student", x, t, {}), first)


def test_target_average_follows_the_student():
    network = mlp_teacher(CosineVP())
    config = ConsistencyConfig(boundary="jump", target="ema", ema_decay=0.9, guidance_scale=1.0, guidance_max=2.0)
    recipe = make_recipe(Consistency, config, network, dtype=torch.float64)
    student, target = recipe.actors.module("student"), recipe.actors.module("target")
    start = [p.detach().clone() for p in target.parameters()]
    for a, b in zip(start, student.parameters(), strict=True):  # the new layers for guidance included
        assert torch.equal(a, b)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    for _ in range(3):
        recipe.after_step(0)
    for a, b in zip(start, target.parameters(), strict=True):
        assert_close(b - a, torch.full_like(a, 1 - 0.9**3), rtol=1e-9, atol=1e-10)


def test_weights_of_different_shapes_are_not_exchanged():
    with pytest.raises(UserError, match="same shapes"):
        copy_weights(nn.Linear(2, 2), nn.Linear(2, 3))
    with pytest.raises(UserError, match="fit"):
        set_parameters(nn.Linear(2, 2), [torch.zeros(2, 2)])
    a, b = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    b.running_mean.fill_(5.0)
    average_weights(a, b, 0.5)
    assert a.running_mean[0] == 5.0  # statistics are copied, not averaged


# ---------------------------------------------------------------- guidance


def test_range_of_guidance_is_drawn_per_sample_and_told_to_the_student():
    seen = {}

    class Spy(ExactConsistency):
        def predict(self, x_t, t, cond):
            seen["student"] = cond["guidance"]
            return super().predict(x_t, t, cond)

    class Teacher(ExactGaussian):
        def null(self, cond):
            seen["null"] = sorted(cond)
            return cond

    process = CosineVP()
    config = ConsistencyConfig(guidance_scale=2.0, guidance_max=6.0)
    roles = {"student": Spy(process), "teacher": Teacher(process)}
    recipe = Consistency(config, Actors(roles, process, (1,), dtype=torch.float64))
    rng = Rng.for_batch(0, 0, 400)
    recipe.loss("student", gaussian_data(rng), rng, 0)
    assert seen["null"] == []  # the teacher is not told
    assert 2 <= seen["student"].min() < 2.2
    assert 5.8 < seen["student"].max() <= 6
    assert recipe.plan(config, process, 1).extras == {"guidance": 4.0}
    assert ConsistencyConfig(guidance_scale=2.0, guidance_max=6.0, sample_guidance=5.0).plan_extras() == {
        "guidance": 5.0
    }
    assert ConsistencyConfig(guidance_scale=3.0).plan_extras() == {}


# ---------------------------------------------------------------- curricula


def test_curricula_change_the_pairs():
    process = PROCESSES["edm"]
    ct = oracle(process, ConsistencyConfig(mode="training", curriculum="sqrt", num_knots=2, curriculum_steps=100))
    assert [ct.knots_at(k) for k in (0, 100)] == [2, 151]
    ict = oracle(process, ConsistencyConfig(mode="training", curriculum="exponential", num_knots=10, end_knots=1280))
    assert ict.knots_at(0) == 11
    ect = oracle(process, ConsistencyConfig(mode="training", curriculum="tuning", curriculum_steps=8, tuning_stages=8))
    rng = Rng.for_batch(0, 0, 2000)
    gaps = []
    for step in range(8):
        t, s = ect.levels(rng, step)
        assert bool((s < t).all())
        gaps.append(((t - s) / t).mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05
    # an end without noise is the data sample, and the student returns it
    pair = ect.pair(gaussian_data(rng).x0, {}, rng, 0)
    clean = pair.s <= process.t_min
    assert 0.5 < clean.double().mean() < 1
    assert torch.equal(pair.x_s[clean], gaussian_data(rng).x0[clean])
    assert_close(
        ect.evaluate("student", pair.x_s, pair.s, {})[clean], gaussian_data(rng).x0[clean], rtol=1e-9, atol=1e-9
    )


def test_tuning_on_a_table_keeps_whole_and_distinct_indices():
    recipe = oracle(PROCESSES["vp"], ConsistencyConfig(mode="training", curriculum="tuning", curriculum_steps=8))
    t, s = recipe.levels(Rng.for_batch(0, 0, 2000), 7)
    assert torch.equal(t, t.round())
    assert torch.equal(s, s.round())
    assert bool((s < t).all())
    assert s.min() == 0


def test_lognormal_knots_have_the_mass_of_the_law():
    process = PROCESSES["edm"]
    config = ConsistencyConfig(mode="training", time_law="lognormal", num_knots=80)
    recipe = oracle(process, config)
    t, s = recipe.levels(Rng.for_batch(0, 0, 20_000), 0)
    middle = (t * s).sqrt().log()
    assert middle.mean().item() == pytest.approx(config.p_mean, abs=0.15)
    assert middle.std().item() == pytest.approx(config.p_std, abs=0.25)
    uniform = oracle(process, ConsistencyConfig(num_knots=80)).levels(Rng.for_batch(0, 0, 20_000), 0)[0]
    counts = torch.bincount(torch.searchsorted(knot_grid(process, 80).times, uniform), minlength=80)
    assert counts.min() > 150


# ---------------------------------------------------------------- plans and settings


def test_plans():
    process = PROCESSES["vp"]
    lcm = ConsistencyConfig(boundary="lcm")
    assert Consistency.plan(lcm, process, 4).times == (999, 759, 499, 259)
    assert Consistency.plan(lcm, process, 4).end == "clean"
    assert Consistency.plan(ConsistencyConfig(boundary="jump"), process, 1).end == "t_min"
    own = ConsistencyConfig(student_times=(1.0, 0.3))
    assert Consistency.plan(own, process, 2).times == (999, 299)
    assert Consistency.plan(own, process, 1).times == (999,)
    with pytest.raises(UserError, match="num_steps"):
        Consistency.plan(lcm, process, 51)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_knots": 1}, "num_knots"),
        ({"curriculum": "sqrt"}, "training"),
        ({"init": "fresh"}, "training"),
        ({"mode": "training", "guidance_scale": 3.0}, "no teacher"),
        ({"guidance_max": 0.5}, "exceed"),
        ({"sample_guidance": 3.0}, "guidance_max"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ConsistencyConfig(**settings)


def test_networks_that_say_nothing_at_full_noise_are_refused():
    with pytest.raises(UserError, match="eps"):
        make_recipe(Consistency, ConsistencyConfig(), mlp_teacher(CosineVP(), kind=Kind.EPS))
    with pytest.raises(UserError, match="index"):
        make_recipe(Consistency, ConsistencyConfig(boundary="lcm"), mlp_teacher(CosineVP()))
    data_free = make_recipe(Consistency, ConsistencyConfig(), mlp_teacher(CosineVP()))
    with pytest.raises(UserError, match="clean samples"):
        data_free.loss("student", Batch(2), Rng.for_batch(0, 0, 2), 0)


# ---------------------------------------------------------------- learning


class Small(Backbone):
    """Two layers of 64 on (x, time)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with Rng(seed, 0, ()).network_noise("init"):
            self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, time: Tensor, cond) -> Tensor:
        return self.net(torch.cat([x, time[:, None]], 1))


class Unbounded(Consistency):
    """The control: c_skip = 0, the raw network as consistency function."""

    @classmethod
    def student_view(cls, config, student):
        class View(type(student)):
            def predict(self, x_t, t, cond):
                x, time = self.scaling.inputs(x_t, t, self.process)
                return Prediction(self.backbone(x.to(x_t.dtype), time.to(x_t.dtype), cond), Kind.X0)

        return View(student.backbone, student.process, student.scaling)


def learn(recipe_type=Consistency, steps=300, batch=128):
    """The learnability bed: 1-D mixture, Karras grid of 40 knots on [0.002, 20], Heun targets."""
    process = EDM(sigma_max=20.0, sigma_data=0.9)
    teacher = MixtureTeacher(process, [0.3, 0.7], [[-1.0], [0.8]], [0.2, 0.35])
    config = ConsistencyConfig(solver="heun", num_knots=39, sigma_data=0.9, distance="l2")
    roles = {"student": NetworkDenoiser(Small(0), process, EDMScaling(0.9)), "teacher": teacher}
    recipe = recipe_type(config, Actors(roles, process, (1,)))

    def data(rng: Rng) -> Batch:
        generator = torch.Generator().manual_seed(rng.step)
        first = torch.rand(batch, 1, generator=generator) < 0.3
        eps = torch.randn(batch, 1, generator=generator)
        return Batch(batch, {}, torch.where(first, -1 + 0.2 * eps, 0.8 + 0.35 * eps))

    train(recipe, data, steps=steps, batch=batch, lr=3e-3)
    rng = Rng.for_batch(7, 0, 2000)
    noise = rng.normal("noise", (1,))
    with torch.no_grad():
        student = recipe.student_view(config, roles["student"])
        x = run_plan(student, recipe.plan(config, process, 1), noise, {}, rng)
    t = torch.full((2000,), 20.0).double()
    exact = teacher.flow_map(20.0 * noise.double(), t, torch.full_like(t, 0.002))
    return (x - exact).square().mean().sqrt().item(), x.std().item()


def test_one_step_student_learns_the_quantile_map_of_a_mixture():
    error, std = learn()
    assert error < 0.4
    assert std > 0.65


@pytest.mark.slow
def test_one_step_student_reaches_the_published_error():
    error, std = learn(steps=1500, batch=512)
    assert error < 0.3
    assert std > 0.75


@pytest.mark.slow
def test_without_the_boundary_nothing_is_learnt():
    error, std = learn(Unbounded, steps=1500, batch=512)
    assert math.isnan(error) or error > 0.5 or std < 0.4


def test_plain_scaling_students_learn_too():
    """A v network through the jump, with an averaged target: two steps, Gaussian data."""
    process = CosineVP()
    network = mlp_teacher(process)
    config = ConsistencyConfig(boundary="jump", num_knots=20, target="ema")
    recipe = make_recipe(Consistency, config, network, teacher=ExactGaussian(process))
    data = lambda rng: Batch(len(rng.ids), {}, gaussian_data(rng).x0.float())  # noqa: E731
    train(recipe, data, steps=250, batch=64, lr=3e-3)
    rng = Rng.for_batch(1, 0, 1000)
    with torch.no_grad():
        plan = recipe.plan(config, process, 2)
        x = run_plan(recipe.actors.denoiser("student"), plan, rng.normal("noise", (1,)), {}, rng)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert x.std().item() == pytest.approx(STD, abs=0.15)
