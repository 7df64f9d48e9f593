"""TDM as a recipe: intervals, the law of what it noises, its limits, a student that improves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from core.recipe_bed import QuickRng, Watched, descend, plane
from core.score_bed import F64, Mixture, gaussian
from torch import nn

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.losses.integral import distribution_matching_loss
from fewstep.core.metrics.sliced import sliced_wasserstein
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, ResidualShift, TrigFlow
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.tdm import TDM, TDMConfig, noise_intervals
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.tensors import expand_to


class GaussianFlow(Denoiser):
    """The jump that is exact for Gaussian data: from each student time to the next one, or to clean data."""

    def __init__(self, process, grid, mean=0.7, std=0.5):
        self.process, self.grid, self.mean, self.std = process, grid, mean, std

    def predict(self, x_t, t, cond):
        c = self.process.coefficients(t)
        ends = torch.tensor([*self.grid[1:], math.nan], dtype=F64)
        index = torch.tensor([self.grid.index(float(v)) for v in t])
        d = self.process.coefficients(ends[index].nan_to_num())
        last = ends[index].isnan()
        alpha = torch.where(last, torch.ones_like(c.alpha), d.alpha)
        sigma = torch.where(last, torch.zeros_like(c.sigma), d.sigma)
        spread = ((alpha**2 * self.std**2 + sigma**2) / (c.alpha**2 * self.std**2 + c.sigma**2)).sqrt()
        end = alpha[:, None] * self.mean + spread[:, None] * (x_t - c.alpha[:, None] * self.mean)
        # the (x0, eps) that explains x_t and lands there by DDIM
        x0 = (end - (sigma / c.sigma)[:, None] * x_t) / (alpha - c.alpha * sigma / c.sigma)[:, None]
        eps = (x_t - c.alpha[:, None] * x0) / c.sigma[:, None]
        return Prediction(compose(Clean(x0, eps), Kind.FLOW, t, self.process), Kind.FLOW)


class Linear(nn.Module, Denoiser):
    """``x0 = k x_t / hypot + b``, trainable."""

    def __init__(self, process, k=0.4, b=0.1):
        super().__init__()
        self.process = process
        self.k, self.b = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (k, b))

    def predict(self, x_t, t, cond):
        c = self.process.coefficients(t)
        return Prediction(self.k * x_t / expand_to(torch.hypot(c.alpha, c.sigma), x_t) + self.b, Kind.X0)


def recipe_of(process, student, config=None, **roles):
    made = {"student": student, "teacher": gaussian(process, 0.7, 0.5), "fake_score": gaussian(process, 0.2, 0.8)}
    return TDM(config or TDMConfig(), Actors(made | roles, process, (1,), dtype=F64))


def rng_of(batch, step=0):
    return QuickRng(0, step, tuple(range(batch)))


# ---------------------------------------------------------------- where noise is drawn


@pytest.mark.parametrize("process", [VP.scaled_linear(), EDM(), RectifiedFlow(shift=3.0), TrigFlow(), CosineVP()])
def test_intervals_are_disjoint_and_cover_the_range(process):
    config = TDMConfig()
    intervals = noise_intervals(config, process)
    starts = [float(process.time_to_unit(torch.tensor(t, dtype=F64))) for t in config.grid(process)]
    assert [high for _, high in intervals] == pytest.approx([u - 0.01 for u in starts])
    assert [low for low, _ in intervals] == pytest.approx([u + 1e-3 for u in starts[1:]] + [0.02])
    assert all(below[1] < above[0] for above, below in itertools.pairwise(intervals))


def test_drawn_times_stay_inside_their_interval_and_reach_all_of_it():
    """Indices of Stable Diffusion: (m, t_i - 10] for the steps 899, 674, 449, 224, and from 20 in the last."""
    recipe = recipe_of(VP.scaled_linear(), Linear(VP.scaled_linear()))
    batch = Batch(4000)
    landing = recipe.land(batch, rng_of(4000), grad=False)
    t = recipe.diffuse(landing, batch, rng_of(4000)).t
    for i, (low, high) in enumerate([(675, 889), (450, 664), (225, 439), (20, 214)]):
        drawn = t[landing.interval == i]
        assert drawn.min().item() == pytest.approx(low, abs=2)
        assert drawn.max().item() == pytest.approx(high, abs=2)
        assert drawn.min().item() >= low
        assert drawn.max().item() <= high
        assert len(drawn) > 800


def test_some_noise_is_always_added_on_a_short_table():
    """Otherwise the conditional target would divide by the kernel's zero standard deviation."""
    process = VP.linear(100)
    recipe = recipe_of(process, Linear(process), TDMConfig(student_start=1.0, target="conditional"))
    landing = recipe.land(Batch(2000), rng_of(2000), grad=False)
    at = recipe.diffuse(landing, Batch(2000), rng_of(2000))
    for i, end in enumerate([74, 49, 24]):
        assert at.t[landing.interval == i].min().item() == end + 1
    assert bool(recipe.fake_target(landing, at)[0].isfinite().all())


def test_margins_that_leave_no_room_are_refused():
    with pytest.raises(UserError, match="leave no room"):
        recipe_of(VP.linear(), Linear(VP.linear()), TDMConfig(student_steps=80))
    with pytest.raises(UserError, match="margins"):
        TDMConfig(low_margin=-0.1)


# ---------------------------------------------------------------- what is noised


@pytest.mark.parametrize("process", [VP.scaled_linear(), RectifiedFlow(), TrigFlow(), EDM(sigma_max=20.0)])
def test_the_exact_student_lands_on_the_marginals_of_the_data(process):
    """Then x_tau has the diffused data's mean and variance, the teacher is right, and nothing pulls."""
    config = TDMConfig(student_start=1.0)
    grid = config.grid(process)
    teacher = gaussian(process, 0.7, 0.5)
    n = 20000
    recipe = recipe_of(process, GaussianFlow(process, list(grid)), config, fake_score=teacher)
    batch, rng = Batch(n), rng_of(n)
    landing = recipe.land(batch, rng, grad=False)
    at = recipe.diffuse(landing, batch, rng)
    c = process.coefficients(at.t)
    # VP starts from unit noise around 0 rather than from the data's law: a known, small bias
    spread = (c.alpha**2 * 0.25 + c.sigma**2).sqrt()
    unit = (at.x_t[:, 0] - 0.7 * c.alpha) / spread
    for i in range(4):
        mine = unit[landing.interval == i]
        assert mine.mean().item() == pytest.approx(0, abs=0.08)
        assert mine.std().item() == pytest.approx(1, abs=0.04)
    terms = recipe.loss("student", batch, rng, 0)
    assert terms.metrics["gap"].abs().max().item() < 1e-20
    assert terms.total().abs().max().item() < 1e-12


def test_the_anchor_of_a_residual_shift_is_carried_along():
    process = ResidualShift()
    y = torch.full((6, 1), 3.0, dtype=F64)
    config = TDMConfig(student_steps=2, student_start=1.0, low_margin=0.0, high_margin=0.0)
    student = Mixture(process, [1.0], [0.7], [0.5])

    class Anchored(Denoiser):
        def __init__(self):
            self.process = process

        def predict(self, x_t, t, cond):
            return student.predict(process.offset(x_t, t, cond["anchor"]), t, {})

    recipe = recipe_of(process, Anchored(), config)
    batch = Batch(6, {"anchor": y})
    landing = recipe.land(batch, rng_of(6), grad=False)
    at = recipe.diffuse(landing, batch, rng_of(6))
    core = process.offset(at.x_t, at.t, y)
    torch.testing.assert_close(at.x_t - core, process.coefficients(at.t).anchor[:, None] * y)
    # around the student's clean sample and its effective noise, as without an anchor
    n = (core - at.after.alpha[:, None] * landing.clean.x0) / at.after.sigma[:, None]
    assert n.abs().max().item() < 6


def test_one_step_is_dmd_with_twice_the_gradient():
    process = VP.scaled_linear()
    student = Linear(process)
    config = TDMConfig(student_steps=1, student_start=1.0, distance="l2")
    recipe = recipe_of(process, student, config)
    batch, rng = Batch(32), rng_of(32)
    terms = recipe.loss("student", batch, rng, 0)
    got = torch.autograd.grad(terms.total().mean(), [student.k, student.b])
    landing = recipe.land(batch, rng, grad=True)
    at = recipe.diffuse(landing, batch, rng)
    torch.testing.assert_close(landing.point, landing.clean.x0.detach())
    roles = recipe.actors.roles
    pair = (roles[name].x0(at.x_t, at.t, {}) for name in ("teacher", "fake_score"))
    dmd = distribution_matching_loss(landing.clean.x0, *pair)
    expected = torch.autograd.grad(dmd.mean(), [student.k, student.b])
    torch.testing.assert_close(got, tuple(2 * g for g in expected))


# ---------------------------------------------------------------- the fake score's targets


@pytest.mark.parametrize("target", ["importance", "conditional", "plain"])
def test_targets_coincide_in_the_last_interval_only(target):
    process = RectifiedFlow()
    recipe = recipe_of(process, Linear(process), TDMConfig(target=target, importance="sum"))
    batch, rng = Batch(400), rng_of(400)
    landing = recipe.land(batch, rng, grad=False)
    at = recipe.diffuse(landing, batch, rng)
    found, weight = recipe.fake_target(landing, at)
    snr = ((at.after.alpha / at.after.sigma) ** 2).clamp_max(5.0)
    last = landing.interval == 3
    torch.testing.assert_close(found[last], landing.clean.x0[last])
    torch.testing.assert_close(weight[last], snr[last])
    differs = not torch.allclose(found[~last], landing.clean.x0[~last])
    assert differs is (target == "conditional")
    reweighted = not torch.allclose(weight[~last], snr[~last])
    assert reweighted is (target != "plain")
    assert bool(weight.isfinite().all() and found.isfinite().all())


def test_the_conditional_target_teaches_the_true_density():
    """Regression of the target on x_tau gives the posterior mean that the score of x_tau's own law stands for."""
    process = CosineVP()
    student = Linear(process, k=0.7, b=0.0)
    config = TDMConfig(student_steps=2, student_start=0.99, target="conditional")
    recipe = recipe_of(process, student, config)
    batch, rng = Batch(40000), rng_of(40000)
    landing = recipe.land(batch, rng, grad=False)
    level = float(process.unit_to_time(torch.tensor(0.75, dtype=F64)))
    recipe.intervals = [(level, level + 1e-9)] * 2  # one noise level, to regress at
    at = recipe.diffuse(landing, batch, rng)
    mine = landing.interval == 0
    target, _ = recipe.fake_target(landing, at)
    x, y = at.x_t[mine][:, 0], target[mine][:, 0]
    slope = ((x * y).mean() / (x * x).mean()).item()
    a, s = at.after.alpha[0].item(), at.after.sigma[0].item()
    true_slope = (1 - s**2 / x.var().item()) / a  # x0(x) = (x + s^2 S)/a with S = -x/V
    assert slope == pytest.approx(true_slope, abs=0.05)


# ---------------------------------------------------------------- routing and learning


def test_neither_network_is_differentiated_and_one_call_of_the_student_is():
    process = RectifiedFlow()
    student = Watched(Linear(process))
    roles = {name: Watched(gaussian(process, 0.2, 0.8)) for name in ("teacher", "fake_score")}
    recipe = recipe_of(process, student, **roles)
    grads = []
    inner = student.inner.predict
    student.inner.predict = lambda x, t, c: (grads.append(torch.is_grad_enabled()), inner(x, t, c))[1]
    terms = recipe.loss("student", Batch(8), rng_of(8), 0)
    assert roles["teacher"].attached == [False]
    assert roles["fake_score"].attached == [False]
    assert grads == [False, False, False, True]
    assert terms.total().requires_grad
    assert not terms.metrics["gap"].requires_grad


def test_the_student_gets_no_gradient_from_the_fake_scores_phase():
    process = RectifiedFlow()
    student, fake = Linear(process), Linear(process)
    recipe = recipe_of(process, student, fake_score=fake)
    recipe.loss("fake_score", Batch(8), rng_of(8), 0).total().mean().backward()
    assert student.k.grad is None
    assert fake.k.grad is not None


def test_micro_batches_give_the_numbers_of_the_batch():
    process = VP.scaled_linear()
    recipe = recipe_of(process, Linear(process))
    for phase in ("fake_score", "student"):
        rng = Rng.for_batch(0, 3, 6)
        whole = recipe.loss(phase, Batch(6), rng, 3).total()
        parts = [recipe.loss(phase, Batch(3), rng.select(i, i + 3), 3).total() for i in (0, 3)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_guidance_is_of_the_teacher_only():
    process = RectifiedFlow()
    teacher = Mixture(process, [0.5, 0.5], [-1.0, 1.0], [0.4, 0.4])
    batch, losses = Batch(16, {"label": torch.ones(16, dtype=torch.long)}), {}
    for scale in (1.0, 3.0):
        recipe = recipe_of(process, Linear(process), TDMConfig(guidance_scale=scale, distance="l2", normalise=False))
        recipe.actors.roles |= {"teacher": teacher, "fake_score": Linear(process)}
        losses[scale] = recipe.loss("student", batch, rng_of(16), 0).total()
    landing = recipe.land(batch, rng_of(16), grad=False)
    at = recipe.diffuse(landing, batch, rng_of(16))
    cond, uncond = (teacher.x0(at.x_t, at.t, c) for c in (batch.cond, {}))
    fake = recipe.actors.roles["fake_score"].x0(at.x_t, at.t, {})
    for scale, value in losses.items():
        gap = fake - (uncond + scale * (cond - uncond))
        torch.testing.assert_close(value.detach(), gap.square().mean(1))


def test_a_student_of_two_steps_improves():
    here = plane(150)
    student, fake = here.copy(), here.copy()
    # in the plane x0 and eps of one prediction determine each other: the case the conditional target is for
    config = TDMConfig(student_steps=2, student_start=0.5, distance="l2", target="conditional")
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    recipe = TDM(config, Actors(roles, here.teacher.process, (2,)))
    plan = recipe.plan(config, here.teacher.process, 2)
    assert plan.mode == "deterministic"
    truth = here.data(QuickRng(3, 0, tuple(range(1000)))).x0

    def distance():
        rng = QuickRng(4, 0, tuple(range(1000)))
        with torch.no_grad():
            return sliced_wasserstein(run_plan(student, plan, rng.normal("z", (2,)), {}, rng), truth)

    before = distance()
    descend(
        recipe,
        {"fake_score": fake.backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=120,
        batch=128,
    )
    assert distance() < 0.7 * before
