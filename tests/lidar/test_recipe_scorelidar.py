"""ScoreLiDAR: its distillation on Gaussians in closed form, its geometric terms, sampling at any step count."""

from __future__ import annotations

import itertools

import pytest
import torch
from core.recipe_bed import Learner, QuickRng, at_level
from core.score_bed import F64, gaussian
from torch import nn
from torch.testing import assert_close

from fewstep.core.check import format_results, run
from fewstep.core.denoiser import Backbone, Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.losses.points import scene_loss, select_key_points, structural_loss
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, VP, LocalOffset
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.distillation_dpo import DistillationDPO, DistillationDPOConfig
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.rollout import Sample
from fewstep.core.rng import Rng
from fewstep.lidar.recipes.scorelidar import ScoreLiDAR, ScoreLiDARConfig

LOCAL = LocalOffset.linear()
MU, A, S = 0.7, 0.3, 0.76723
PLAIN = {"scene_weight": 0.0, "point_weight": 0.0}


# ---------------------------------------------------------------- the distillation term on Gaussians


class Line(nn.Module, Denoiser):
    """A student whose samples are ``theta + b z``, z its unit normal input."""

    def __init__(self, theta: float, b: float) -> None:
        super().__init__()
        self.process = EDM()
        self.theta, self.b = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (theta, b))

    def predict(self, x_t, t, cond):
        return Prediction(self.theta + self.b * x_t / t.reshape(-1, 1), Kind.X0)


class Nodes(Rng):
    """Unit normals on a grid of (z, e)."""

    def normal(self, stream, shape, dtype=torch.float32):
        return {"student/noise": Z, "noised/eps": E}[stream]


AXIS = torch.linspace(-8, 8, 33, dtype=F64)
Z, E = (grid.reshape(-1, 1) for grid in torch.meshgrid(AXIS, AXIS, indexing="ij"))
MASS = torch.exp(-(Z**2) / 2 - E**2 / 2)[:, 0]
MASS = MASS / MASS.sum()


def on_line(student: Line, fake: Denoiser | None = None, **settings) -> ScoreLiDAR:
    law = at_level(EDM(), S)
    config = ScoreLiDARConfig(time=law, fake=FakeScoreConfig(time=law, weighting="native"), **(PLAIN | settings))
    fake = fake or gaussian(EDM(), student.theta.item(), student.b.item(), Kind.EPS)
    roles = {"student": student, "teacher": gaussian(EDM(), MU, A), "fake_score": fake}
    return ScoreLiDAR(config, Actors(roles, EDM(), (1,), dtype=F64))


def expected(recipe: ScoreLiDAR, phase: str) -> torch.Tensor:
    terms = recipe.loss(phase, Batch(len(Z)), Nodes(0, 0, tuple(range(len(Z)))), 0)
    return (MASS * terms.total()).sum()


def slope(theta: float, b: float) -> tuple[float, float]:
    student = Line(theta, b)
    found = torch.autograd.grad(expected(on_line(student), "student"), [student.theta, student.b])
    return found[0].item(), found[1].item()


def test_the_expected_gradient_is_that_of_the_closed_form():
    theta, b = 0.2, 0.5
    want = S * (theta - MU) / (A**2 + S**2), S * b * (1 / (A**2 + S**2) - 1 / (b**2 + S**2))
    assert want == pytest.approx((-0.56527, 0.10784), abs=2e-5)
    assert slope(theta, b) == pytest.approx(want, abs=1e-9)
    assert slope(MU, A) == pytest.approx((0, 0), abs=1e-9)


@pytest.mark.parametrize("start", [(0.2, 0.5), (-2.0, 1.5), (3.0, 0.05)])
def test_descent_with_an_exact_fake_score_ends_at_the_teacher(start):
    theta, b = start
    for _ in range(60):
        d_theta, d_b = slope(theta, b)
        theta, b = theta - d_theta, b - d_b
    assert (theta, b) == pytest.approx((MU, A), abs=1e-3)


def test_the_fake_score_loss_is_least_at_the_exact_one():
    theta, b = 0.2, 0.5
    at_best = expected(on_line(Line(theta, b)), "fake_score").item()
    assert at_best == pytest.approx(b**2 / (b**2 + S**2), abs=1e-9)
    assert at_best == pytest.approx(0.29810, abs=1e-5)
    point = gaussian(EDM(), theta, 1e-9, Kind.EPS)
    assert expected(on_line(Line(theta, 0.0), point), "fake_score").item() == pytest.approx(0, abs=1e-9)


def test_a_fake_score_that_learns_gets_there():
    theta, b = 0.2, 0.5
    fake = Learner(EDM(), 0.7, 0.9)
    recipe = on_line(Line(theta, b), fake)
    optimizer = torch.optim.Adam(fake.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        expected_eps_error(recipe).backward()
        optimizer.step()
    assert expected_eps_error(recipe).item() == pytest.approx(b**2 / (b**2 + S**2), rel=1e-2)
    assert (fake.mean.item(), fake.std.item()) == pytest.approx((theta, b), abs=0.02)


def expected_eps_error(recipe: ScoreLiDAR) -> torch.Tensor:
    """The loss of an x0-predicting network, in units of the noise's."""
    return expected(recipe, "fake_score") / S**2


# ---------------------------------------------------------------- networks on points


class PointNet(Backbone):
    """A linear map of points, moved by the scan's mean: small, and with all that a recipe asks for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, generator=generator, dtype=F64))
        self.shift = nn.Parameter(0.1 * torch.randn(3, generator=generator, dtype=F64))

    def forward(self, x, time, cond):
        return x @ self.weight + self.shift + cond["scan"].mean(1, keepdim=True)

    def null(self, cond):
        return {**cond, "scan": torch.zeros_like(cond["scan"])}


def points(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)


COUNT = 90
BATCH = Batch(2, {"scan": points(2, 9, seed=2)}, points(2, COUNT, seed=3))
KEYS = {"key_share": 0.5, "neighbours": 8}


def recipe_of(judges=None, cls=ScoreLiDAR, fakes=("fake_score",), **settings):
    roles = {"student": 0, "teacher": 1, **dict.fromkeys(fakes, 2)}
    made = {name: NetworkDenoiser(PointNet(seed), LOCAL, Plain(Kind.EPS)) for name, seed in roles.items()}
    actors = Actors(made, LOCAL, (COUNT, 3), dtype=F64, judges=judges or {})
    return cls(cls.config_type(**settings), actors)


def rng_of() -> Rng:
    return Rng.for_batch(0, 4, 2)


def gradient(recipe, value=None) -> torch.Tensor:
    if value is None:
        value = recipe.loss("student", BATCH, rng_of(), 0).total().mean()
    parameters = list(recipe.actors.module("student").parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


def parts():
    """The pieces of the distillation term, again from the generator's streams."""
    recipe, rng = recipe_of(**PLAIN), rng_of()
    student, teacher, fake = (recipe.actors.denoiser(n).backbone for n in ("student", "teacher", "fake_score"))
    z, eps = rng.normal("student/noise", (COUNT, 3), F64), rng.normal("noised/eps", (COUNT, 3), F64)
    s0, last = LOCAL.coefficients(torch.tensor([999.0])).sigma, torch.full((2,), 999.0, dtype=F64)
    x0 = s0 * z - s0 * student(s0 * z, last, BATCH.cond)
    t = LOCAL.round(999 * rng.uniform("noised/t"))
    x_t = x0 + LOCAL.coefficients(t).sigma[:, None, None] * eps
    with torch.no_grad():
        d = teacher(x_t, t, BATCH.cond) - fake(x_t, t, BATCH.cond)
    return recipe, x0, x_t, d


def test_the_distillation_term_alone_moves_the_student_and_the_released_form_does_not():
    recipe, x0, x_t, d = parts()
    found = gradient(recipe)
    assert found.norm() > 1e-3
    assert_close(found, gradient(recipe, (d * x0).mean()), rtol=1e-9, atol=1e-12)
    assert gradient(recipe, (d * (x_t - x0)).mean()).abs().max() < 1e-15


def test_it_is_the_better_of_two_twins_bit_for_bit():
    dpo = recipe_of(
        {"any": lambda x, batch: x.sum((1, 2))}, DistillationDPO, ("fake_winner",), noise_scale=1.0, loser_weight=0.0
    )
    assert torch.equal(gradient(recipe_of(**PLAIN)), gradient(dpo))
    assert DistillationDPOConfig().time == ScoreLiDARConfig().time
    assert DistillationDPOConfig().fake == ScoreLiDARConfig().fake


def test_the_geometric_terms_are_those_of_sample_and_scene():
    recipe, x0, _, _ = parts()
    recipe = recipe_of(**KEYS)
    terms = recipe.loss("student", BATCH, rng_of(), 0)
    made, scene = x0, BATCH.x0
    assert_close(terms.terms["scene"], scene_loss(made, scene))
    keys = select_key_points(scene, rng_of().uniform("key_points", (COUNT,)), share=0.5, k=8)
    assert_close(terms.terms["point"], structural_loss(made, scene, keys))
    assert terms.weights == {"scene": 0.5, "point": 0.01}
    plain = recipe_of(**PLAIN).loss("student", BATCH, rng_of(), 0)
    assert set(plain.terms) == {"distillation"}
    assert torch.equal(plain.terms["distillation"], terms.terms["distillation"])
    squared = recipe_of(squared=True, **KEYS).loss("student", BATCH, rng_of(), 0)
    assert_close(squared.terms["scene"], scene_loss(made, scene, squared=True))
    index = recipe_of(correspondence="index", **KEYS).loss("student", BATCH, rng_of(), 0)
    assert_close(index.terms["scene"], (made - scene).square().mean((1, 2)))


def test_the_loss_and_its_gradient_are_affine_in_both_weights():
    def at(scene: float, point: float) -> torch.Tensor:
        return gradient(recipe_of(scene_weight=scene, point_weight=point, **KEYS))

    zero = at(0.0, 0.0)
    scene, point = at(1.0, 0.0) - zero, at(0.0, 1.0) - zero
    assert min(scene.norm(), point.norm()) > 1e-3
    for one, two in itertools.product((0.5, 2.0), (0.01, 3.0)):
        assert_close(at(one, two), zero + one * scene + two * point, rtol=1e-9, atol=1e-12)


def test_the_rows_of_the_complete_scene_do_not_matter():
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(5))
    batches = [Batch(2, BATCH.cond, x0) for x0 in (BATCH.x0, BATCH.x0[:, order])]
    nearest = recipe_of(point_weight=0.0)
    values = [nearest.loss("student", batch, rng_of(), 0).terms["scene"] for batch in batches]
    assert_close(values[0], values[1], rtol=1e-12, atol=0)
    rows = recipe_of(point_weight=0.0, correspondence="index")
    values = [rows.loss("student", batch, rng_of(), 0).terms["scene"] for batch in batches]
    assert (values[0] - values[1]).abs().max() > 1e-3


def test_guidance_of_the_teacher_is_what_the_student_learns():
    """``uncond + w (cond - uncond)``: in this network the scan's mean counts w times, in the direction alone."""
    recipe, x0, _, d = parts()
    guided = recipe_of(guidance_scale=3.5, **PLAIN)
    more = 2.5 * BATCH.cond["scan"].mean(1, keepdim=True)
    assert_close(gradient(guided), gradient(recipe, ((d + more) * x0).mean()), rtol=1e-9, atol=1e-12)


def test_what_the_geometry_needs_is_asked_for():
    with pytest.raises(UserError, match="'scorelidar' needs clean samples"):
        recipe_of(**KEYS).loss("student", Batch(2, BATCH.cond), rng_of(), 0)
    assert recipe_of(**PLAIN).loss("student", Batch(2, BATCH.cond), rng_of(), 0).total().isfinite().all()
    with pytest.raises(UserError, match=r"need points \[b, n, 3\], and samples here are \[2, 270\]"):
        recipe_of(**KEYS).geometry(Sample(BATCH.x0.flatten(1), BATCH.cond), BATCH, rng_of())
    assert "point" not in recipe_of(point_weight=0.0).loss("student", BATCH, rng_of(), 0).terms


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scene_weight": -1.0}, "scene_weight"),
        ({"point_weight": -1.0}, "point_weight"),
        ({"key_share": 0.0}, "key_share"),
        ({"key_keep": 1.5}, "key_keep"),
        ({"neighbours": 0}, "neighbours"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        ScoreLiDARConfig(**given)


def test_one_student_samples_at_any_number_of_steps():
    for n in range(1, 51):
        plan = ScoreLiDAR.plan(ScoreLiDARConfig(), LOCAL, n)
        assert list(plan.times) == [round(999 * (n - i) / n) for i in range(n)]
    assert ScoreLiDAR.plan(ScoreLiDARConfig(sampler="deterministic"), LOCAL, 8).mode == "deterministic"


@pytest.mark.parametrize("process", [LOCAL, VP.linear(1000, 3.5e-5, 7e-3)])
def test_the_laws_of_recipes_hold(process):
    results = run(ScoreLiDAR, ScoreLiDARConfig(**PLAIN), process)
    assert [r for r in results if not r.passed] == [], format_results(results)
    assert "descends reverse_kl [student]" in {r.name for r in results}


def test_points_learn_a_wall_in_one_step():
    """Offsets on a plane: teacher exact for a Gaussian sheet, student a linear net; samples get its spread."""
    sheet = torch.tensor([1.0, 1.0, 0.05], dtype=F64)

    class Sheet(Denoiser):
        process = LOCAL

        def predict(self, x_t, t, cond):
            sigma = LOCAL.coefficients(t).sigma[:, None, None]
            return Prediction(sigma * x_t / (sheet**2 + sigma**2), Kind.EPS)

    class Own(nn.Module, Denoiser):
        """Exact for the student's samples at any moment: their covariance follows from its weights."""

        process = LOCAL

        def predict(self, x_t, t, cond):
            sigma = LOCAL.coefficients(t).sigma[:, None, None]
            cov = made.weight.detach().T @ made.weight.detach()
            return Prediction(sigma * torch.linalg.solve(cov + sigma**2 * torch.eye(3, dtype=F64), x_t.mT).mT, Kind.EPS)

    class Maker(nn.Module, Denoiser):
        process = LOCAL

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.5 * torch.eye(3, dtype=F64))

        def predict(self, x_t, t, cond):
            return Prediction(x_t / LOCAL.coefficients(t).sigma[:, None, None] @ self.weight, Kind.X0)

    made = Maker()
    roles = {"student": made, "teacher": Sheet(), "fake_score": Own()}
    recipe = ScoreLiDAR(ScoreLiDARConfig(reduction="sum", **PLAIN), Actors(roles, LOCAL, (64, 3), dtype=F64))
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for step in range(150):
        rng = QuickRng(0, step, tuple(range(8)))
        optimizer.zero_grad()
        recipe.loss("student", Batch(8), rng, step).total().mean().backward()
        optimizer.step()
    spread = torch.linalg.svdvals(made.weight.detach())
    assert spread.tolist() == pytest.approx([1.0, 1.0, 0.05], abs=0.1)
