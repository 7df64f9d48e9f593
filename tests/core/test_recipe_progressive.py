from __future__ import annotations

import itertools

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactGaussian
from core.tiny_loop import make_recipe, mlp_teacher, train
from torch.testing import assert_close

from fewstep.core.analytic import MixtureTeacher
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.prediction import Clean, Kind
from fewstep.core.process import VP, CosineVP
from fewstep.core.recipe import Batch
from fewstep.core.recipes.progressive import Progressive, ProgressiveConfig, halves, two_steps_in_one
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.solvers import solve
from fewstep.core.steps import first_order_step


def data(rng: Rng, dtype=torch.float64) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", (1,), dtype))


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow", "trigflow", "offset", "residual"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_step_with_the_target_lands_where_two_teacher_steps_do(name, steps):
    process = PROCESSES[name]
    teacher = ExactGaussian(process, Kind.X0 if process.discrete else Kind.V)
    cond = {"anchor": torch.full((steps, 1), 0.1).double()} if process.has_anchor else {}
    index = torch.arange(steps)
    t, middle, after = halves(process, steps, index)
    x = torch.randn(steps, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = two_steps_in_one(teacher, x, t, middle, after, cond)
    grid = time_grid(process, 2 * steps, "trailing")
    for i in range(steps):
        row = {k: v[i : i + 1] for k, v in cond.items()}
        stops = [*grid[2 * i : 2 * i + 3]]
        end = solve(teacher, x[i : i + 1], stops, row, to_clean=i == steps - 1) if i == steps - 1 else None
        end = end or solve(teacher, x[i : i + 1], stops, row, to_clean=False)
        alpha, sigma, shift = (each[i].item() for each in after)
        now = process.coefficients(t[i : i + 1])
        core = process.offset(x[i : i + 1], t[i : i + 1], row.get("anchor"))
        eps = (core - now.alpha[:, None] * target[i : i + 1]) / now.sigma[:, None]
        landed = alpha * target[i : i + 1] + sigma * eps + shift * row.get("anchor", torch.zeros(1, 1))
        assert_close(landed, end.x, rtol=1e-9, atol=1e-10)


def test_optimal_students_are_products_of_teacher_factors_not_the_flow():
    """After log2(N0) rounds the exact one-step student is N0-step DDIM; its distance to the flow falls as 1/N0."""
    process, teacher = CosineVP(), ExactGaussian(CosineVP(), Kind.V)
    x = torch.tensor([[1.3], [-0.4]], dtype=torch.float64)
    errors = []
    for start in (8, 16, 32, 64):
        product = solve(teacher, x, time_grid(process, start), {}).x
        flow = MEAN + STD * x  # the exact map of unit noise
        errors.append((product - flow).abs().max().item())

        # a first step of the next round's student is two of the teacher's
        index = torch.zeros(2, dtype=torch.long)
        t, middle, after = halves(process, start // 2, index)
        target = two_steps_in_one(teacher, x, t, middle, after, {})
        landed = first_order_step(Clean(target, x), after)  # at pure noise the noise is the state
        two = solve(teacher, x, time_grid(process, start)[:3], {}, to_clean=False).x
        assert_close(landed, two, rtol=1e-9, atol=1e-10)
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios)


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow"])
def test_point_data_is_a_fixed_point_of_every_round(name):
    process = PROCESSES[name]
    teacher = MixtureTeacher(process, [1.0], [[0.7]], [1e-9], kind=Kind.X0)
    for steps in (1, 2, 4, 8):
        t, middle, after = halves(process, steps, torch.arange(steps))
        x = torch.randn(steps, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        target = two_steps_in_one(teacher, x, t, middle, after, {})
        assert_close(target, torch.full_like(target, 0.7), rtol=1e-6, atol=1e-6)


def test_grids_of_neighbouring_rounds_are_nested():
    for process in (CosineVP(), PROCESSES["vp"], PROCESSES["flow"]):
        for steps in (1, 2, 4, 8, 16):
            assert time_grid(process, 2 * steps)[::2] == pytest.approx(time_grid(process, steps))
    t, middle, after = halves(CosineVP(), 2, torch.tensor([0, 1]))
    assert t.tolist() == [1.0, 0.5]
    assert middle.tolist() == [0.75, 0.25]
    assert (after.alpha[1].item(), after.sigma[1].item()) == (1.0, 0.0)


# ---------------------------------------------------------------- rounds


def test_rounds_halve_the_steps_and_anneal_the_rate():
    config = ProgressiveConfig(start_steps=8, final_steps=1, round_steps=10, last_factor=3)
    assert config.rounds() == [(8, 0, 10), (4, 10, 20), (2, 20, 50), (1, 50, 80)]
    assert [config.round_at(k)[0] for k in (0, 9, 10, 49, 50, 79, 500)] == [8, 8, 4, 2, 1, 1, 1]
    recipe = make_recipe(Progressive, config, mlp_teacher(CosineVP()))
    assert [k for k in range(100) if recipe.reset_optimizers(k)] == [9, 19, 49]
    assert [recipe.lr_factor(k) for k in (0, 5, 9, 10, 80)] == [1.0, 0.5, pytest.approx(0.1), 1.0, 0.0]
    steady = make_recipe(Progressive, ProgressiveConfig(anneal=False), mlp_teacher(CosineVP()))
    assert steady.lr_factor(123) == 1.0


def test_promotion_makes_the_averaged_student_the_next_teacher_bit_for_bit():
    config = ProgressiveConfig(start_steps=2, round_steps=3, last_factor=1)
    recipe = make_recipe(Progressive, config, mlp_teacher(CosineVP()))
    student, teacher = recipe.actors.denoiser("student"), recipe.actors.denoiser("round_teacher")
    averaged = [p.detach() + 0.5 for p in student.backbone.parameters()]
    recipe.actors.averaged = lambda name: averaged if name == "student" else []
    x, t = torch.randn(5, 1), torch.rand(5, dtype=torch.float64)
    before = teacher.x0(x, t, {})
    recipe.after_step(0)
    recipe.after_step(1)
    assert torch.equal(teacher.x0(x, t, {}), before)
    recipe.after_step(2)
    for p, q, value in zip(teacher.backbone.parameters(), student.backbone.parameters(), averaged, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(q, value)
    assert torch.equal(teacher.x0(x, t, {}), student.x0(x, t, {}))
    recipe.after_step(5)  # the last round promotes no one


def test_later_rounds_learn_from_the_promoted_student_without_guidance_again():
    calls = []

    class Teacher(ExactGaussian):
        def null(self, cond):
            return cond

        def predict(self, x_t, t, cond):
            calls.append(len(x_t))
            return super().predict(x_t, t, cond)

    config = ProgressiveConfig(start_steps=2, round_steps=3, last_factor=1, guidance_scale=2.0)
    process = CosineVP()
    teacher = Teacher(process, Kind.V)
    recipe = make_recipe(Progressive, config, mlp_teacher(process), teacher=teacher, dtype=torch.float64)
    rng = Rng.for_batch(0, 0, 4)
    recipe.loss("student", data(rng), rng, 0)
    assert calls == [8, 8]  # two steps, both halves of guidance
    recipe.loss("student", data(rng), rng, 3)
    assert calls == [8, 8]


def test_gradient_reaches_the_student_only():
    recipe = make_recipe(Progressive, ProgressiveConfig(), mlp_teacher(CosineVP()), dtype=torch.float64)
    for step in (0, 6000):
        rng = Rng.for_batch(0, step, 8)
        recipe.loss("student", data(rng), rng, step).total().mean().backward()
    assert all(p.grad is not None for p in recipe.actors.module("student").parameters())
    for name in ("teacher", "round_teacher"):
        assert all(p.grad is None for p in recipe.actors.module(name).parameters())


def test_range_of_guidance_is_told_to_every_round():
    config = ProgressiveConfig(guidance_scale=1.0, guidance_max=4.0)
    assert {spec.name: spec.extras for spec in Progressive.role_specs(config)} == {
        "student": ("guidance",),
        "teacher": (),
        "round_teacher": ("guidance",),
    }
    assert Progressive.plan(config, CosineVP(), 1).extras == {"guidance": 2.5}


def test_networks_that_predict_noise_are_refused_at_zero_terminal_snr():
    with pytest.raises(UserError, match="says nothing of x0"):
        make_recipe(Progressive, ProgressiveConfig(), mlp_teacher(CosineVP(), kind=Kind.EPS))
    zero_snr = VP(torch.cat([PROCESSES["vp"].alphas_cumprod[:-1], torch.zeros(1).double()]))
    with pytest.raises(UserError, match="says nothing of x0"):
        make_recipe(Progressive, ProgressiveConfig(), mlp_teacher(zero_snr, kind=Kind.EPS))
    make_recipe(Progressive, ProgressiveConfig(), mlp_teacher(PROCESSES["vp"], kind=Kind.EPS))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_steps": 6}, "power of two"),
        ({"start_steps": 2, "final_steps": 4}, "power of two"),
        ({"round_steps": 0}, "at least 1"),
        ({"last_factor": 0}, "last_factor"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ProgressiveConfig(**settings)


def test_plan_is_the_last_round_s():
    config = ProgressiveConfig(start_steps=8, final_steps=2)
    plan = Progressive.plan(config, PROCESSES["vp"], 2)
    assert plan.times == (999, 499)
    assert (plan.mode, plan.end) == ("deterministic", "clean")
    with pytest.raises(UserError, match="2 step"):
        Progressive.plan(config, PROCESSES["vp"], 1)


# ---------------------------------------------------------------- learning


def learn(updates: int, batch: int, start: int):
    process = CosineVP()
    teacher = MixtureTeacher(process, [0.3, 0.7], [[-1.0], [0.8]], [0.2, 0.35], kind=Kind.V)
    config = ProgressiveConfig(start_steps=start // 2, round_steps=updates, last_factor=1)
    recipe = make_recipe(Progressive, config, mlp_teacher(process, time_scale=0.1), teacher=teacher)

    def mixture(rng: Rng) -> Batch:
        generator = torch.Generator().manual_seed(rng.step)
        first = torch.rand(batch, 1, generator=generator) < 0.3
        eps = torch.randn(batch, 1, generator=generator)
        return Batch(batch, {}, torch.where(first, -1 + 0.2 * eps, 0.8 + 0.35 * eps))

    rounds = len(config.rounds())
    train(recipe, mixture, steps=updates * rounds, batch=batch, lr=3e-3, cosine=False)
    rng = Rng.for_batch(5, 0, 500)
    noise = rng.normal("noise", (1,))
    with torch.no_grad():
        x = run_plan(recipe.actors.denoiser("student"), recipe.plan(config, process, 1), noise, {}, rng)
        sampler = solve(teacher, noise, time_grid(process, start), {}).x
        one = solve(teacher, noise, time_grid(process, 1), {}).x
    return (x - sampler).square().mean().sqrt().item(), (one - sampler).square().mean().sqrt().item()


def test_one_step_student_learns_the_four_step_sampler():
    student, untaught = learn(updates=150, batch=64, start=4)
    assert student < 0.4 * untaught


@pytest.mark.slow
def test_one_step_student_learns_the_eight_step_sampler():
    student, untaught = learn(updates=400, batch=256, start=8)
    assert student < 0.25 * untaught
