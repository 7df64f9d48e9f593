from __future__ import annotations

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactGaussian, ExactJump
from core.tiny_loop import make_recipe, mlp_teacher, train
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.tcd import TCD, TCDConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan

VP_SD = PROCESSES["vp"]


def data(rng: Rng) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", (1,), torch.float64))


class ToldJump(ExactJump):
    """Exact for the end time it is told."""

    def predict(self, x_t, t, cond):
        return super().predict(x_t, t, {"end": cond["end_time"].double()})


class PhaseJump(ExactJump):
    """Exact for the phase ends of four phases of the 50-knot grid, known from ``t`` alone."""

    def predict(self, x_t, t, cond):
        ends = torch.tensor([0.0, 239.0, 499.0, 739.0], dtype=torch.float64)
        return super().predict(x_t, t, {"end": ends[torch.bucketize(t, ends[1:])]})


def oracle(config, student, process=VP_SD) -> TCD:
    roles = {"student": student, "teacher": ExactGaussian(process), "target": student}
    return TCD(config, Actors(roles, process, (1,), dtype=torch.float64))


def rms_loss(recipe, n=3000) -> float:
    rng = Rng.for_batch(0, 0, n)
    return recipe.loss("student", data(rng), rng, 0).terms["jump"].mean().sqrt().item()


# ---------------------------------------------------------------- exact students


def test_exact_phased_student_has_the_solver_s_residual():
    config = TCDConfig(num_phases=4, end="phase", distance="l2")
    right = rms_loss(oracle(config, PhaseJump(VP_SD)))
    wrong = rms_loss(oracle(config, ExactGaussian(VP_SD)))
    assert right < 2e-3
    assert wrong > 2 * right


def test_one_knot_per_phase_makes_the_teacher_s_own_step_exact():
    """As many phases as knots: the target is the solver's state, and a student equal to the teacher has no loss."""
    config = TCDConfig(num_phases=50, end="phase", distance="l2")
    assert rms_loss(oracle(config, ExactGaussian(VP_SD))) < 1e-12


def test_student_told_its_end_has_a_second_order_residual_for_random_ends():
    losses = {}
    for n in (50, 100, 200):
        recipe = oracle(TCDConfig(num_knots=n, end_time=True, distance="l2"), ToldJump(VP_SD))
        losses[n] = rms_loss(recipe, 6000)
    assert losses[50] < 2e-3
    assert losses[50] / losses[100] > 2.5
    assert losses[100] / losses[200] > 2.5


def test_student_that_is_not_told_cannot_be_exact_for_random_ends():
    blind = rms_loss(oracle(TCDConfig(num_knots=200, distance="l2"), ExactJump(VP_SD, 0.0)))
    told = rms_loss(oracle(TCDConfig(num_knots=200, end_time=True, distance="l2"), ToldJump(VP_SD)))
    assert blind > 3 * told


def test_target_at_the_end_of_its_phase_is_the_state_itself():
    """With s == e the target must not depend on the network, however wild."""

    class Wild(ExactGaussian):
        calls = 0

        def predict(self, x_t, t, cond):
            type(self).calls += 1
            if type(self).calls % 2 == 0:  # the target's evaluation
                return Prediction(torch.full_like(x_t, float("nan")), Kind.EPS)
            return super().predict(x_t, t, cond)

    config = TCDConfig(num_knots=4, num_phases=4, end="phase", distance="l2")
    assert rms_loss(oracle(config, Wild(VP_SD))) < 1e-9


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize("end_time", [False, True])
@pytest.mark.parametrize("target", ["stopgrad", "ema"])
def test_gradient_reaches_the_student_only(end_time, target):
    config = TCDConfig(end_time=end_time, target=target, num_knots=10)
    recipe = make_recipe(TCD, config, mlp_teacher(CosineVP()), dtype=torch.float64)
    rng = Rng.for_batch(0, 0, 8)
    recipe.loss("student", data(rng), rng, 0).total().mean().backward()
    student = recipe.actors.module("student")
    assert all(p.grad is not None for p in student.parameters())
    if end_time:
        assert dict(student.named_parameters())["extra_inputs.embeddings.end_time.outer.weight"].grad.abs().max() > 0
    for name in recipe.actors.roles:
        if name != "student":
            assert all(p.grad is None for p in recipe.actors.module(name).parameters())


def test_micro_batches_see_the_same_losses():
    recipe = oracle(TCDConfig(end_time=True, num_knots=20), ToldJump(VP_SD))
    rng = Rng.for_batch(3, 5, 6)
    batch = data(rng)
    whole = recipe.loss("student", batch, rng, 5).terms["jump"]
    parts = [recipe.loss("student", batch.select(i, i + 3), rng.select(i, i + 3), 5).terms["jump"] for i in (0, 3)]
    assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-15)


def test_average_follows_and_guidance_joins_the_extras():
    config = TCDConfig(target="ema", ema_decay=0.5, end_time=True, guidance_scale=2.0, guidance_max=4.0)
    assert config.extras() == ("guidance", "end_time")
    recipe = make_recipe(TCD, config, mlp_teacher(CosineVP()), dtype=torch.float64)
    with torch.no_grad():
        for p in recipe.actors.module("student").parameters():
            p.add_(1.0)
    before = [p.detach().clone() for p in recipe.actors.module("target").parameters()]
    recipe.after_step(0)
    for a, b in zip(before, recipe.actors.module("target").parameters(), strict=True):
        assert_close(b - a, torch.full_like(a, 0.5), rtol=1e-9, atol=1e-10)


def test_plans():
    phased = TCDConfig(num_phases=4, end="phase")
    plan = TCD.plan(phased, VP_SD, 4)
    assert plan.times == (999, 739, 499, 239)
    assert (plan.mode, plan.end) == ("deterministic", "t_min")
    with pytest.raises(UserError, match="num_phases"):
        TCD.plan(phased, VP_SD, 2)
    anywhere = TCD.plan(TCDConfig(gamma=0.2, end_time=True), VP_SD, 4)
    assert anywhere.times == (999, 759, 499, 259)
    assert (anywhere.mode, anywhere.gamma, anywhere.end_time) == ("jump", 0.2, True)
    segments = TCDConfig(num_phases=2)
    assert TCD.plan(segments, VP_SD, 2).mode == "deterministic"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_phases": 51}, "num_phases"), ({"gamma": 1.2}, "gamma"), ({"ema_decay": -0.1}, "ema_decay")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TCDConfig(**settings)


def test_phased_student_learns_to_sample_in_as_many_steps():
    process, config = CosineVP(), TCDConfig(num_knots=20, num_phases=2, end="phase", distance="l2")
    recipe = make_recipe(TCD, config, mlp_teacher(process), teacher=ExactGaussian(process))
    train(recipe, lambda rng: Batch(len(rng.ids), {}, data(rng).x0.float()), steps=200, batch=64, lr=3e-3)
    rng = Rng.for_batch(1, 0, 500)
    with torch.no_grad():
        x = run_plan(
            recipe.actors.denoiser("student"), recipe.plan(config, process, 2), rng.normal("noise", (1,)), {}, rng
        )
    assert x.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert x.std().item() == pytest.approx(STD, abs=0.15)
