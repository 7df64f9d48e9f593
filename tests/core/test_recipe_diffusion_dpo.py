"""Diffusion-DPO as a recipe: at the reference, its pairs, its noise levels, and that it moves to what is preferred."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import Learner, QuickRng
from core.score_bed import F64, gaussian
from torch.testing import assert_close

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.losses.distances import l2
from fewstep.core.prediction import Kind, Prediction, compose
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import solve
from fewstep.core.times import TimeConfig

TABLE = VP.scaled_linear()
JUDGES = {"left": lambda x, batch: x[:, 0], "size": lambda x, batch: x.square().mean(1)}
SIZE = 16


def recipe_of(student: Denoiser | None = None, reference: Denoiser | None = None, process=TABLE, **settings):
    reference = reference or gaussian(process, [0.3, -0.2], 0.5)
    roles = {"student": student or Learner(process, 0.3, 0.5), "reference": reference}
    return DiffusionDPO(DiffusionDPOConfig(**settings), Actors(roles, process, (2,), dtype=F64, judges=JUDGES))


def loss(recipe, rng=None):
    rng = rng or Rng.for_batch(0, 0, SIZE)
    return recipe.loss("prefer", Batch(len(rng.ids)), rng, 0)


class Watched(Denoiser):
    """Notes what a denoiser was asked, and whether with gradient."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process, self.asked = inner, inner.process, []

    def null(self, cond):
        return cond

    def predict(self, x_t, t, cond):
        self.asked.append((x_t.detach(), t, torch.is_grad_enabled()))
        return self.inner.predict(x_t, t, cond)


def test_at_the_reference_the_loss_is_log_two_and_its_gradient_a_quarter_of_beta():
    reference, student = Learner(TABLE, 0.3, 0.5), Learner(TABLE, 0.3, 0.5)
    recipe = recipe_of(student, reference, beta=40.0)
    terms, rng = loss(recipe), Rng.for_batch(0, 0, SIZE)
    assert_close(terms.total(), torch.full((SIZE,), math.log(2), dtype=F64), rtol=1e-9, atol=0)
    assert terms.metrics["accuracy"].tolist() == [0.5] * SIZE
    found = torch.autograd.grad(terms.total().mean(), list(student.parameters()))
    pair, t, eps = recipe.pair(Batch(SIZE), rng), recipe.times(rng, 0), rng.normal("eps", (2,), F64)
    errors = [l2(student.eps(TABLE.add_noise(x, eps, t), t, {}), eps) for x in (pair.winner, pair.loser)]
    want = torch.autograd.grad(40 / 4 * (errors[0] - errors[1]).mean(), list(student.parameters()))
    for one, other in zip(found, want, strict=True):
        assert one.abs() > 1e-6
        assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_members_share_time_and_noise_and_the_reference_gets_no_gradient():
    student, reference = Watched(Learner(TABLE, 0.3, 0.5)), Watched(gaussian(TABLE, [0.3, -0.2], 0.5))
    recipe, rng = recipe_of(student, reference, solver_steps=3), Rng.for_batch(0, 0, SIZE)
    loss(recipe, rng)
    assert [grad for *_, grad in student.asked] == [True, True]
    assert [grad for *_, grad in reference.asked] == [False] * (2 * 3 + 2)  # both samples' steps, and both errors
    pair, eps = recipe.pair(Batch(SIZE), rng), rng.normal("eps", (2,), F64)
    for (x_t, t, _), x0 in zip(student.asked, (pair.winner, pair.loser), strict=True):
        assert torch.equal(t, recipe.times(rng, 0))
        assert_close(x_t, TABLE.add_noise(x0, eps, t))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m_sde"])
def test_pairs_are_samples_of_the_guided_reference_from_one_noise(solver):
    class Labelled(Denoiser):
        process = TABLE

        def null(self, cond):
            return {"label": 0 * cond["label"]}

        def predict(self, x_t, t, cond):
            return Prediction(cond["label"][:, None] * torch.ones_like(x_t) + 0.1 * x_t, Kind.X0)

    recipe = recipe_of(None, Labelled(), guidance_scale=3.0, solver=solver, solver_steps=4, solver_spacing="even")
    cond, rng = {"label": torch.ones(SIZE, dtype=F64)}, Rng.for_batch(0, 2, SIZE)
    pair = recipe.pair(Batch(SIZE, cond), rng)
    grid, noise = time_grid(TABLE, 4, "even"), rng.normal("pair/noise", (2,), F64)
    first, second = (
        solve(
            Guided(Labelled(), 3.0),
            initial_state(TABLE, scale * noise, grid[0]),
            grid,
            cond,
            solver,
            rng=rng,
            stream="pair/solver",
        ).x
        for scale in (1.0, 1.1)
    )
    won = first[:, 0] < second[:, 0]
    assert torch.equal(pair.first_won, won)
    assert 0 < won.sum() < SIZE
    assert_close(pair.winner, torch.where(won[:, None], first, second))
    assert_close(pair.loser, torch.where(won[:, None], second, first))
    assert (first - second).abs().max() < 0.5  # of one noise, also on the way


def test_another_judge_and_none():
    recipe = recipe_of(metric="size")
    pair = recipe.pair(Batch(SIZE), Rng.for_batch(0, 0, SIZE))
    assert (pair.winner.square().mean(1) <= pair.loser.square().mean(1)).all()
    with pytest.raises(UserError, match="did you mean 'size'"):
        recipe_of(metric="sise")


def test_few_step_networks_are_tuned_at_their_own_times():
    recipe = recipe_of(train_times=(1.0, 0.75, 0.5, 0.25))
    rng = Rng.for_batch(0, 0, 200)
    seen = sorted(set(recipe.times(rng, 0).tolist()))
    assert seen == [249 + 250 * k for k in range(4)]
    assert recipe.plan(recipe.config, TABLE, 4).times == (999, 749, 499, 249)
    spread = recipe_of(time=TimeConfig(low=0.2, high=0.4)).times(rng, 0)
    assert 199 < spread.min() < spread.max() < 400
    flow = DiffusionDPO.plan(DiffusionDPOConfig(train_times=(1.0, 0.4)), RectifiedFlow(), 2)
    assert flow.times == pytest.approx((1.0, 0.4))
    assert DiffusionDPO.plan(DiffusionDPOConfig(), RectifiedFlow(), 4) == DiffusionDPO.plan(
        DiffusionDPOConfig(train_times=(1.0, 0.4)), RectifiedFlow(), 4
    )


def test_the_anchor_is_the_winners_own_error():
    student = Learner(TABLE, 0.0, 0.4)
    plain, anchored = loss(recipe_of(student)), loss(recipe_of(student, winner_anchor=0.3))
    assert set(plain.terms) == {"preference"}
    assert torch.equal(plain.terms["preference"], anchored.terms["preference"])
    assert anchored.weights["anchor"] == 0.3
    reference = l2_of_reference(anchored, recipe_of(student))
    assert_close(anchored.terms["anchor"] - reference, anchored.metrics["winner_error"])


def l2_of_reference(terms, recipe):
    rng = Rng.for_batch(0, 0, SIZE)
    pair, t, eps = recipe.pair(Batch(SIZE), rng), recipe.times(rng, 0), rng.normal("eps", (2,), F64)
    return l2(recipe.actors.denoiser("reference").eps(TABLE.add_noise(pair.winner, eps, t), t, {}), eps)


@pytest.mark.parametrize("process", [TABLE, CosineVP(), EDM(), RectifiedFlow()])
@pytest.mark.parametrize("objective", ["sigmoid", "hinge", "ipo"])
def test_the_loss_is_the_same_whatever_the_network_predicts(process, objective):
    class As(Denoiser):
        def __init__(self, kind: Kind) -> None:
            self.process, self.kind, self.inner = process, kind, Learner(process, 0.1, 0.6)

        def predict(self, x_t, t, cond):
            return Prediction(compose(self.inner.clean(x_t, t, cond), self.kind, t, process), self.kind)

    law = TimeConfig(low=0.2, high=0.8)
    values = [
        loss(recipe_of(As(kind), process=process, objective=objective, time=law, beta=100.0)).total()
        for kind in (Kind.X0, Kind.EPS, Kind.V, Kind.FLOW)
    ]
    for value in values[1:]:
        assert_close(value, values[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("objective", ["sigmoid", "ipo"])
def test_a_gaussian_moves_to_what_is_preferred(objective):
    """The judge likes small coordinates: the mean falls, and the model ranks pairs as the judge does."""
    law = TimeConfig(low=0.2, high=0.9)
    student = Learner(CosineVP(), 0.3, 0.5)
    reference = Learner(CosineVP(), 0.3, 0.5).requires_grad_(False)
    recipe = recipe_of(
        student, reference, CosineVP(), beta=20.0, objective=objective, time=law, solver_steps=4, noise_scale=1.5
    )
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    accuracy = []
    for step in range(40):
        rng = QuickRng(0, step, tuple(range(128)))
        terms = recipe.loss("prefer", Batch(128), rng, step)
        optimizer.zero_grad()
        terms.total().mean().backward()
        optimizer.step()
        accuracy.append(terms.metrics["accuracy"].mean().item())
    assert accuracy[0] == 0.5
    assert sum(accuracy[-10:]) / 10 > 0.6
    assert student.mean.item() < 0.2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": 0.0}, "beta"),
        ({"winner_anchor": -1.0}, "winner_anchor"),
        ({"noise_scale": 0.0}, "noise_scale"),
        ({"solver_steps": 0}, "solver_steps"),
        ({"train_times": (1.5,)}, "train_times"),
        ({"solver": "dpmp_2m"}, "dpmpp_2m"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        DiffusionDPOConfig(**given)
