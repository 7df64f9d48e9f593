"""Dual-expert consistency distillation: exact maps, what learns from what and when, and every switch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core.gaussian_bed import MEAN, STD, ExactGaussian, ExactJump
from core.recipe_bed import QuickRng as Quick
from torch import Tensor, nn
from torch.testing import assert_close

from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.losses.trajectory import consistency_loss
from fewstep.core.networks.experts import RoutedExperts
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, Process, RectifiedFlow, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.solvers import Move, find_solver
from fewstep.video.motion.coherence import coherence_loss
from fewstep.video.recipes.cut import CutGrid, cut_grid
from fewstep.video.recipes.dcm import DCM, DCMConfig
from fewstep.video.recipes.target_judge import JudgeConfig, linear_renoise

F64 = torch.float64
FLOW = RectifiedFlow()
THEIRS = {"shift": 17.0, "end": 0.001}
SHAPE = (2, 5, 3, 3)
ALONE = JudgeConfig(adversarial_weight=0.0, feature_weight=0.0)


def settings_of(**changes) -> DCMConfig:
    return DCMConfig(**{"judge": ALONE, "semantic_steps": 10, **changes})


def oracle(config: DCMConfig, student: Denoiser, detail: Denoiser | None = None, shape=SHAPE) -> DCM:
    """A recipe of denoisers given by hand, with the exact teacher."""
    process = student.process
    roles = {"student": student, "detail": detail or student, "teacher": ExactGaussian(process)}
    return DCM(config, Actors(roles, process, shape, dtype=F64))


def clips(rng: Rng, shape=SHAPE) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", shape, F64))


def at_knot(grid: CutGrid, index: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a grid draws where it draws one knot only."""
    end = grid.cut if index > grid.kappa else grid.end
    found = (float(grid.knots.times[index]), float(grid.knots.previous[index]), end)
    return tuple(times(each, n) for each in found)


class Wavy(Denoiser):
    """A student far from exact."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def predict(self, x_t, t, cond):
        return Prediction(ExactGaussian(self.process).x0(x_t, t, cond) + (3 * x_t).sin(), Kind.X0)


class ExactFlowJump(ExactGaussian):
    """A flow student whose jump to ``end`` is the exact map, from pure noise too."""

    def __init__(self, end: float) -> None:
        super().__init__(FLOW)
        self.end = end

    def predict(self, x_t, t, cond):
        x_e = self.flow(x_t, t, torch.full_like(t, self.end))
        gap = (t - self.end).reshape(-1, *[1] * (x_t.ndim - 1))
        return Prediction((x_t - x_e) / torch.where(gap == 0, 1.0, gap), Kind.FLOW)


# ---------------------------------------------------------------- the cut


def test_the_grid_of_the_paper_and_its_hand_chosen_steps():
    grid = cut_grid(FLOW, 50, 37, **THEIRS)
    expected = {18: 0.91243, 34: 0.97541, 37: 0.98176, 43: 0.99204, 49: 1.0}
    for index, value in expected.items():
        assert grid.knots.times[index].item() == pytest.approx(value, abs=5e-6)
    assert grid.end == pytest.approx(0.016732, abs=5e-7)
    assert grid.cut == grid.knots.times[37].item()
    assert grid.steps(4) == tuple(grid.knots.times[[49, 43, 37, 18]].tolist())


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear()])
@pytest.mark.parametrize("kappa", [0, 9, 30, 48])
def test_both_sides_tile_the_range(process, kappa):
    grid, n = cut_grid(process, 50, kappa), 4000
    assert torch.equal(grid.knots.previous[1:], grid.knots.times[:-1])
    for upper, low, high in ((True, kappa + 1, 49), (False, 0, kappa)):
        t, s, end = grid.draw(upper, Quick(0, 0, tuple(range(n))))
        assert sorted(set(t.tolist())) == grid.knots.times[low : high + 1].tolist()
        assert bool((s < t).all())
        assert bool((end <= s).all())
        assert set(end.tolist()) == {grid.cut if upper else grid.end}
        assert bool((t > grid.cut).all()) if upper else bool((t <= grid.cut).all())
    level = grid.draw_level(Quick(0, 0, tuple(range(n))), "level")
    assert sorted(set(level.tolist())) == grid.knots.previous[: kappa + 1].tolist()


@pytest.mark.parametrize("steps", range(2, 12))
@pytest.mark.parametrize("kappa", [7, 37, 43])
def test_half_of_the_steps_lie_on_either_side_and_the_cut_is_among_them(steps, kappa):
    grid = cut_grid(FLOW, 50, kappa)
    found = grid.steps(steps)
    assert len(found) == steps
    assert found[0] == grid.knots.times[-1].item()
    assert grid.cut in found
    assert list(found) == sorted(set(found), reverse=True)
    assert sum(t > grid.cut for t in found) == steps // 2
    index = torch.tensor([grid.knots.times.tolist().index(t) for t in found] + [-1])
    above, below = index[: steps // 2 + 1].diff(), index[steps // 2 :].diff()
    assert all(int(each.max() - each.min()) <= 1 for each in (above, below))


@pytest.mark.parametrize("steps", [1, 26])
def test_too_few_or_too_many_steps_are_refused(steps):
    with pytest.raises(UserError, match=f"2 steps or more.*12 and 38.*not in {steps}"):
        cut_grid(FLOW, 50, 37).steps(steps)


@pytest.mark.parametrize(
    ("process", "options", "said"),
    [
        (VP.scaled_linear(), {"shift": 3.0}, "flow teachers.*VP"),
        (FLOW, {"end": 0.03}, "first knot"),
        (FLOW, {"kappa": 49}, "kappa is 49.*0 to 48"),
        (VP.linear(50, 1e-3, 0.2), {"kappa": 48}, "of 49 knots.*0 to 47"),
    ],
)
def test_cuts_that_do_not_fit_the_process_are_refused(process, options, said):
    with pytest.raises(UserError, match=said):
        cut_grid(process, **{"num_knots": 50, "kappa": 37, **options})


# ---------------------------------------------------------------- exact maps of a Gaussian


def residual(recipe: DCM, index: int) -> float:
    """The root mean square difference between jump and target from one knot."""
    recipe.grid = replace(recipe.grid)
    object.__setattr__(recipe.grid, "draw", lambda upper, rng: at_knot(recipe.grid, index, len(rng.ids)))
    rng = Rng.for_batch(0, 0, 16)
    ends = recipe.ends(index > recipe.grid.kappa, clips(rng), {}, rng)
    return float((ends.made - ends.target).square().mean().sqrt())


def test_the_exact_map_to_the_cut_has_no_residual():
    """Beside the teacher's own error of one Euler step, 5e-7 at most so near to pure noise."""
    config = settings_of(**THEIRS)
    recipe = oracle(config, ExactFlowJump(config.grid(FLOW).cut))
    assert max(residual(recipe, index) for index in range(38, 50)) < 5e-7


def test_a_wrong_end_on_one_side_shows_at_once(monkeypatch):
    config = settings_of(**THEIRS)
    grid = config.grid(FLOW)
    recipe, before = oracle(config, ExactFlowJump(grid.cut)), float(grid.knots.previous[37])
    right, wrong = recipe.jump, ExactFlowJump(before)

    def jump(role, x, t, end, cond):
        if torch.equal(t, times(t[0].item(), len(t))) and t[0].item() in grid.knots.times[38:].tolist():
            return right(wrong, x, t, times(before, len(t)), cond)
        return right(role, x, t, end, cond)

    monkeypatch.setattr(recipe, "jump", jump)
    assert residual(recipe, 38) > 1e-4


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear(), EDM()])
def test_the_exact_detail_map_leaves_the_teacher_s_error_only(process):
    """Which closes up with the knots, where Euler's steps do: the second order of one step."""
    found = []
    for knots in (50, 200):
        config = settings_of(num_knots=knots, kappa=knots // 2)
        grid = config.grid(process)
        recipe = oracle(config, Wavy(process), ExactJump(process, grid.end))
        found.append(residual(recipe, knots // 3))
    assert found[1] < found[0] / 8


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear(), EDM()])
@pytest.mark.parametrize("semantic", [True, False])
def test_where_the_teacher_reaches_the_end_the_target_is_its_point(process, semantic):
    config = settings_of(kappa=48 if semantic else 0)  # one knot on the side that is looked at
    recipe, rng = oracle(config, Wavy(process)), Rng.for_batch(0, 0, 4)
    grid, batch = recipe.grid, clips(rng)
    t, s, end = at_knot(grid, 49 if semantic else 0, 4)
    assert torch.equal(s, end)
    ends = recipe.ends(semantic, batch, {}, rng)
    x_t = process.add_noise(batch.x0, rng.normal_like("eps", batch.x0), t)
    x_s, _ = find_solver("ddim").step(Move(recipe.actors.denoiser("teacher"), x_t, t, s, {}))
    assert torch.equal(ends.target, x_s)
    assert (ends.made - x_s).abs().max() > 1e-4


@pytest.mark.parametrize("process", [FLOW, VP.scaled_linear(), EDM()])
def test_exact_experts_one_after_the_other_are_the_exact_map(process):
    config = settings_of(kappa=20)
    grid = config.grid(process)
    student = RoutedExperts(ExactJump(process, grid.cut), ExactJump(process, grid.end), grid.cut)
    plan = DCM.plan(config, process, 2)
    assert plan.times == (process.t_max, grid.cut)
    if process is FLOW:  # the bed divides by alpha
        plan = replace(plan, times=(1 - 1e-9, grid.cut))
    rng = Quick(0, 0, tuple(range(50)))
    x = rng.normal("z", (3,), F64)
    made = run_plan(student, plan, x, {}, rng)
    start = process.coefficients(times(plan.times[0], 1)).sigma * x if not process.discrete else x
    law = ExactGaussian(process)
    wanted = law.flow(start, times(plan.times[0], 50), times(process.t_min, 50))
    assert_close(made, wanted, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- losses


def test_coherence_is_blind_to_pictures_and_to_what_repeats_with_the_lag():
    made = torch.randn(3, 2, 7, 4, 4, dtype=F64)
    assert_close(coherence_loss(made + torch.randn(3, 2, 1, 4, 4, dtype=F64), made, 3), torch.zeros(3, dtype=F64))
    period = torch.randn(3, 2, 3, 4, 4, dtype=F64).repeat(1, 1, 3, 1, 1)[:, :, :7]
    assert_close(coherence_loss(made + period, made, 3), torch.zeros(3, dtype=F64))
    assert (coherence_loss(made + period, made, 2) > 0.1).all()


@pytest.mark.parametrize("lag", [1, 3])
def test_coherence_of_a_drift_is_its_square_over_the_lag(lag):
    made, ramp = torch.randn(2, 2, 6, 3, 3, dtype=F64), 0.7 * torch.arange(6, dtype=F64).reshape(1, 1, 6, 1, 1)
    assert_close(coherence_loss(made + ramp, made, lag), torch.full((2,), 0.49 * lag**2, dtype=F64))
    picture = torch.randn(2, 2, 1, 3, 3, dtype=F64)
    assert_close(coherence_loss(made + ramp + picture, made, lag), coherence_loss(made + ramp, made, lag))


def test_the_loss_is_what_its_terms_say():
    config = settings_of(kappa=20, coherence_weight=2.0, coherence_lag=2)
    recipe, rng = oracle(config, Wavy(FLOW)), Rng.for_batch(0, 0, 6)
    batch = clips(rng)
    for phase in ("semantic", "detail"):
        ends = recipe.ends(phase == "semantic", batch, {}, rng)
        difference = ends.made - ends.target
        huber = ((difference**2 + 1e-6).sqrt() - 1e-3).flatten(1).mean(1)
        lagged = (difference[:, :, 2:] - difference[:, :, :-2]).square().flatten(1).mean(1)
        wanted = huber + 2 * lagged if phase == "semantic" else huber
        assert_close(recipe.loss(phase, batch, rng, 0).total(), wanted)


def test_a_micro_batch_s_losses_are_those_of_the_whole():
    recipe, rng = oracle(settings_of(kappa=20), Wavy(FLOW)), Rng.for_batch(0, 3, 6)
    batch = clips(rng)
    for phase in ("semantic", "detail"):
        whole = recipe.loss(phase, batch, rng, 0).total()
        parts = [recipe.loss(phase, batch.select(a, b), rng.select(a, b), 0).total() for a, b in ((0, 1), (1, 6))]
        assert_close(torch.cat(parts), whole)


def test_renoising_keeps_the_variance_and_the_linear_formula_does_not():
    """Data N(., 0.25) from 0.3 to 0.7: (1 - a)^2 0.25 + a^2 = 0.5125, and 0.366 where two noises add up like one."""
    n, e, a = 400_000, times(0.3, 400_000), times(0.7, 400_000)
    rng = Quick(0, 0, tuple(range(n)))
    x0, first, second = (rng.normal(name, (1,), F64) for name in ("x0", "first", "second"))
    x_e = FLOW.add_noise(0.5 * x0, first, e)
    assert FLOW.renoise(x_e, second, e, a).var().item() == pytest.approx(0.5125, rel=0.01)
    assert linear_renoise(FLOW, x_e, second, e, a).var().item() == pytest.approx(0.366, rel=0.01)
    assert_close(linear_renoise(FLOW, x_e, first, e, a), FLOW.add_noise(0.5 * x0, first, a))  # with its own noise
    assert_close(linear_renoise(FLOW, x_e, second, e, a), (0.3 * x_e + 0.4 * second) / 0.7)


# ---------------------------------------------------------------- plans, phases, refusals


def test_phases_follow_one_another():
    config = DCMConfig(semantic_steps=3)
    due = [[phase.name for phase in DCM.phases(config) if phase.due(step)] for step in range(5)]
    assert due == [["semantic"]] * 3 + [["detail", "discriminator"]] * 2
    assert [phase.name for phase in DCM.phases(settings_of())] == ["semantic", "detail"]
    assert "discriminator" not in {spec.name for spec in DCM.role_specs(settings_of())}
    recipe = oracle(settings_of(semantic_steps=3), Wavy(FLOW))
    assert [recipe.reset_optimizers(step) for step in range(5)] == [False, False, True, False, False]


def test_sampling_ends_where_the_detail_expert_does_or_at_clean_data():
    assert DCM.plan(DCMConfig(), FLOW, 4).end == "t_min"
    plan = DCM.plan(DCMConfig(**THEIRS), FLOW, 4)
    assert (plan.end, plan.mode) == ("clean", "deterministic")
    assert plan.times == pytest.approx((1.0, 0.9920, 0.9818, 0.9124), abs=5e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_knots": 1}, "num_knots"),
        ({"kappa": 49}, "kappa"),
        ({"kappa": -1}, "kappa"),
        ({"end": 1.0}, "end"),
        ({"shift": -1.0}, "shift"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"coherence_lag": 0}, "coherence_lag"),
        ({"coherence_weight": -1.0}, "coherence_weight"),
        ({"semantic_steps": -1}, "semantic_steps"),
        ({"guidance_scale": 3.0, "guidance_max": 2.0}, "guidance_max"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        DCMConfig(**changes)
    with pytest.raises(UserError, match=r"judge\.feature_weight"):
        JudgeConfig(feature_weight=-1.0)


def test_clips_shorter_than_the_lag_are_refused():
    with pytest.raises(UserError, match="coherence_lag is 3 and clips have 3 latent frame"):
        oracle(settings_of(), Wavy(FLOW), shape=(2, 3, 4, 4))
    oracle(settings_of(coherence_weight=0.0), Wavy(FLOW), shape=(2, 3, 4, 4))
    with pytest.raises(UserError, match="clips 'c f h w'"):
        oracle(settings_of(), Wavy(FLOW), shape=(2, 3))


def test_a_student_without_a_second_expert_cannot_be_sampled_from():
    with pytest.raises(UserError, match="two experts, not from a Wavy"):
        DCM.student_view(settings_of(), Wavy(FLOW))


# ---------------------------------------------------------------- learning


class Affine(Backbone):
    """``flow = a_i x + b_i``, a pair of numbers per knot, those of the exact teacher at first."""

    def __init__(self, grid: CutGrid) -> None:
        super().__init__()
        self.grid = grid.knots.times
        t = self.grid
        slope = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)
        self.slope = nn.Parameter(slope)
        self.shift = nn.Parameter(-MEAN - slope * (1 - t) * MEAN)

    def forward(self, x, time, cond):
        index = (self.grid[:, None] - time.double() / 1000).abs().argmin(0)
        a, b = (each[index].reshape(-1, *[1] * (x.ndim - 1)) for each in (self.slope, self.shift))
        return a * x + b


def test_two_trained_experts_sample_better_in_two_steps_than_the_teacher_in_two():
    shape, config = (1, 3, 2, 2), settings_of(num_knots=12, kappa=7, coherence_lag=1, shift=3.0)
    grid = config.grid(FLOW)
    roles = {name: NetworkDenoiser(Affine(grid), FLOW, Plain(Kind.FLOW)) for name in ("student", "detail")}
    student = Held(roles["student"])
    recipe = oracle(config, student, roles["detail"], shape)
    optimizers = {
        "semantic": torch.optim.Adam(roles["student"].backbone.parameters(), 0.02),
        "detail": torch.optim.Adam(roles["detail"].backbone.parameters(), 0.02),
    }
    for phase, optimizer in optimizers.items():
        for step in range(120):
            rng = Quick(0, step, tuple(range(48))).fork(phase)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 - step / 120)
            optimizer.zero_grad()
            recipe.loss(phase, clips(rng, shape), rng, step).total().mean().backward()
            optimizer.step()
    plan, rng = DCM.plan(config, FLOW, 2), Quick(1, 0, tuple(range(4000)))
    noise = rng.normal("z", (1,), F64)
    with torch.no_grad():
        made = run_plan(RoutedExperts(student, roles["detail"], grid.cut), plan, noise, {}, rng)
        theirs = run_plan(ExactGaussian(FLOW), plan, noise, {}, rng)
    assert abs(made.std().item() - STD) < abs(theirs.std().item() - STD) / 3
    assert made.mean().item() == pytest.approx(MEAN, abs=0.05)


class Held(Denoiser):
    """A denoiser that is no network to the recipe: its experts are given by hand."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, inner.process

    def predict(self, x_t, t, cond):
        return self.inner.predict(x_t, t, cond)


def test_the_distance_is_the_per_element_huber_of_the_code():
    x = torch.randn(3, 4, dtype=F64)
    value = consistency_loss(x, torch.zeros_like(x), distance="huber_element", c=1e-3)
    assert_close(value, ((x**2 + 1e-6).sqrt() - 1e-3).mean(1))
    assert DCMConfig().huber_c == 1e-3
