"""SinSR: each of its three terms on exact Gaussian teachers, what is trained by which, where training ends."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng
from torch import nn
from torch.testing import assert_close

from fewstep.core.analytic import GaussianTeacher
from fewstep.core.check import format_results, run
from fewstep.core.denoiser import Backbone, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, ResidualShift
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.restoration.process import ResidualDenoiser
from fewstep.restoration.recipes.sinsr import SinSR, SinSRConfig

F64 = torch.float64
PROCESS = ResidualShift()
SLOPE, MIDDLE, ANCHOR, REACH = 0.438447, 0.299119, 0.1, 2 * 0.99
ALONE = {"distill_weight": 0.0, "inverse_weight": 0.0, "data_weight": 0.0}


class TwoWays(nn.Module, Denoiser):
    """One affine map from noise (at the greatest level) and one back to it (at the least): "a x + b" each."""

    def __init__(self, forth=(0.5, 0.0), back=(1.0, 0.0), kind=Kind.X0):
        super().__init__()
        self.process, self.kind, self.seen = PROCESS, kind, []
        self.forth, self.back = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (forth, back))

    def predict(self, x_t, t, cond):
        self.seen.append((x_t, t))
        a, b = self.back if bool((t == 0).all()) else self.forth
        return Prediction(a * x_t + b, self.kind)


def column(*values):
    return torch.tensor(values, dtype=F64)[:, None]


def recipe_of(student, **settings):
    config = SinSRConfig(**settings)
    roles = {"student": student, "teacher": GaussianTeacher(PROCESS, 0.3, 0.5)}
    kept = {spec.name: roles[spec.name] for spec in SinSR.role_specs(config)}
    return SinSR(config, Actors(kept, PROCESS, (1,), dtype=F64))


NOISE, CLEAN = column(0, 1, -1), column(0.5, 0.2, -0.4)
BATCH = Batch(3, {"anchor": torch.full((3, 1), ANCHOR, dtype=F64), "noise": NOISE}, CLEAN)


def loss_of(student, **settings):
    return recipe_of(student, **settings).loss("student", BATCH, Rng.for_batch(0, 0, 3), 0)


def test_the_three_terms_are_the_squared_errors_of_the_paper():
    student = TwoWays((0.4, 0.1), (2.0, -0.2))
    terms = loss_of(student).terms
    z, target = ANCHOR + REACH * NOISE, MIDDLE + SLOPE * NOISE
    assert_close(terms["distill"], (0.4 * z + 0.1 - target).square()[:, 0], atol=1e-5, rtol=0)
    assert_close(terms["inverse"], (2 * target - 0.2 - z).square()[:, 0], atol=1e-5, rtol=0)
    assert_close(terms["data"], (0.4 * (2 * CLEAN - 0.2) + 0.1 - CLEAN).square()[:, 0])
    assert [t[0].item() for _, t in student.seen] == [14, 0, 0, 14]


def test_the_way_to_data_does_not_train_the_way_back():
    student = TwoWays()
    loss_of(student, **ALONE | {"data_weight": 1.0}).total().sum().backward()
    assert student.forth.grad.abs().sum() > 0
    assert student.back.grad is None or not student.back.grad.any()
    student = TwoWays()
    loss_of(student, **ALONE | {"inverse_weight": 1.0}).total().sum().backward()
    assert student.back.grad.abs().sum() > 0
    assert student.forth.grad is None or not student.forth.grad.any()


@pytest.mark.parametrize("term", ["distill", "inverse", "data"])
def test_a_term_without_weight_is_not_computed(term):
    found = loss_of(TwoWays(), **ALONE | {f"{term}_weight": 0.5})
    assert set(found.terms) == {term}
    assert_close(found.total(), 0.5 * found.terms[term])
    roles = [spec.name for spec in SinSR.role_specs(SinSRConfig(**ALONE | {f"{term}_weight": 0.5}))]
    assert ("teacher" in roles) == (term != "data")


def test_prepared_targets_need_no_teacher():
    student = TwoWays((0.0, 0.0))
    recipe = recipe_of(student, target="prepared")
    assert list(recipe.actors.roles) == ["student"]
    batch = Batch(3, {**BATCH.cond, "target": column(1, 2, 3)}, CLEAN)
    found = recipe.loss("student", batch, Rng.for_batch(0, 0, 3), 0)
    assert_close(found.terms["distill"], column(1, 4, 9)[:, 0])


def test_trained_on_both_ways_they_are_the_teacher_s_and_its_inverse():
    student = TwoWays()
    recipe = recipe_of(student, **ALONE | {"distill_weight": 1.0, "inverse_weight": 1.0})
    optimizer = torch.optim.LBFGS(student.parameters(), line_search_fn="strong_wolfe", max_iter=12)

    def closure():
        optimizer.zero_grad()
        loss = recipe.loss("student", BATCH, Rng.for_batch(0, 0, 3), 0).total().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert student.forth[0].item() == pytest.approx(0.221438, abs=1e-4)
    assert student.back[0].item() == pytest.approx(1 / 0.221438, rel=1e-3)
    z = initial_state(PROCESS, NOISE, 14.0, BATCH.cond)
    (a, b), (c, d) = student.forth, student.back
    assert_close(c * (a * z + b) + d, z, atol=1e-3, rtol=0)


def test_the_data_term_restores_the_spread_that_discretisation_takes():
    """With the inverse fixed, starts of N(0.3, 0.5^2) data lead back to the data, not to the teacher's narrower law."""
    back = 1 / 0.221438
    student = TwoWays(back=(back, -back * MIDDLE + ANCHOR))
    recipe = recipe_of(student, **ALONE | {"data_weight": 1.0})
    rng = QuickRng(0, 0, tuple(range(500)))
    x0 = 0.3 + 0.5 * rng.normal("x0", (1,), F64)
    batch = Batch(500, {"anchor": torch.full_like(x0, ANCHOR)}, x0)
    with torch.no_grad():
        begun = recipe.inverse(x0, batch.cond)
        student.forth.copy_(torch.linalg.lstsq(torch.cat([begun, torch.ones_like(begun)], 1), x0).solution[:, 0])
    assert recipe.loss("student", batch, rng, 0).total().max() < 1e-20
    assert begun.std().item() / REACH == pytest.approx(0.5 / SLOPE, rel=0.05), (
        "wider than the noise sampling starts with"
    )


class Back(Backbone):
    """An affine map "a x + b y + c" of what a network sees, the same at every level; remembers nothing."""

    def __init__(self, *given):
        super().__init__()
        self.given = nn.Parameter(torch.tensor(given, dtype=F64))

    def forward(self, x, time, cond):
        a, b, c = self.given
        return a * x + b * cond["anchor"] + c


def inverse_of(denoiser, x0=CLEAN):
    recipe = recipe_of(denoiser, **ALONE | {"inverse_weight": 1.0})
    return recipe.inverse(x0, BATCH.cond)


@pytest.mark.parametrize("std", [0.1, 0.5])
def test_of_a_network_of_residuals_the_start_is_read_from_its_noise(std):
    """By sigma_T alpha s / l, nearly sigma_T, of its output; by way of the clean sample it would be sigma s / l."""
    r, sigma, alpha = CLEAN - ANCHOR, 2 * 0.02, 1 - 0.02**2
    length = (alpha**2 * std**2 + sigma**2) ** 0.5
    silent, loud = (inverse_of(ResidualDenoiser(Back(0, 0, c), PROCESS, std)) for c in (0.0, 1.0))
    assert_close(silent, ANCHOR + REACH * r * sigma / length**2, atol=1e-6, rtol=0)
    assert_close(silent - loud, torch.full_like(r, REACH * alpha * std / length), atol=1e-6, rtol=0)
    assert (silent - loud).min() > 0.9 * REACH
    assert sigma * std / length < 0.041, "of the clean sample"


@pytest.mark.slow
def test_a_network_of_residuals_learns_the_inverse_in_the_closed_form():
    """By plain descent: read from its clean sample it would take a thousand times as many steps."""
    student = ResidualDenoiser(Back(0, 0, 0), PROCESS, 0.5)
    recipe = recipe_of(student, **ALONE | {"inverse_weight": 1.0})
    optimizer = torch.optim.SGD(student.backbone.parameters(), lr=0.05)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = recipe.loss("student", BATCH, Rng.for_batch(0, 0, 3), 0).total().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]
    target = MIDDLE + SLOPE * NOISE
    assert_close(inverse_of(student, target).detach(), ANCHOR + REACH * NOISE, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", [Kind.EPS, Kind.V])
def test_networks_of_noise_lead_back_by_their_noise(kind):
    """What a sample would start from with the noise that the network sees at the least level."""
    process = VP.scaled_linear()
    recipe = recipe_of(TwoWays(back=(0.0, 0.7), kind=kind), **ALONE | {"inverse_weight": 1.0})
    recipe.actors = Actors(dict(recipe.actors.roles), process, (1,), dtype=F64)
    recipe.actors.denoiser("student").process = process
    found = recipe.inverse(CLEAN, {})
    c = process.coefficients(torch.zeros(1, dtype=F64))
    eps = torch.full_like(CLEAN, 0.7) if kind is Kind.EPS else c.sigma * CLEAN + 0.7 * c.alpha
    assert_close(found, initial_state(process, eps, process.t_max, {}), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [(ALONE, "nothing to learn"), ({"data_weight": -1.0}, "negative"), ({"target": "ancestral"}, "inverts its target")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SinSRConfig(**settings)
    with pytest.raises(UserError, match="cannot sample in 2"):
        SinSR.plan(SinSRConfig(), PROCESS, 2)


@pytest.mark.parametrize(
    ("process", "settings"),
    [(PROCESS, {}), (VP.scaled_linear(), {})],
    ids=["residual", "vp"],
)
def test_the_laws_of_distillation_hold(process, settings):
    results = run(SinSR, SinSRConfig(teacher_steps=3, **settings), process)
    assert all(result.passed for result in results), format_results(results)
