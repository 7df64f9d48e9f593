"""SIM as a recipe: expected gradients of the theory in both spaces, gradients through frozen networks."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng, Watched, at_level, descend, on_bed, plane
from core.score_bed import VP_LEVEL, bed

from fewstep.core.losses.distances import Power, PseudoHuber, huber_scale
from fewstep.core.losses.score_family import sid_loss
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.sim import SIM, SIMConfig
from fewstep.core.times import TimeConfig

LEVEL = at_level(CosineVP(), VP_LEVEL)
L2 = {"R1": (2.83813398, -1.87825493), "R2": (-0.67728145, -0.13340875)}
HUBER = {"R1": (0.38662734, -0.35286098), "R2": (-0.18829513, -0.07091352)}
SHARP = {"R1": (0.39795998, -0.41338466), "R2": (-0.25093017, -0.12356544)}
X0_PER_SCORE = 0.36 / 0.8


def config(**settings) -> SIMConfig:
    return SIMConfig(time=LEVEL, **settings)


@pytest.mark.parametrize("name", ["R1", "R2"])
@pytest.mark.parametrize(
    ("settings", "rows", "monitor", "nodes"),
    [
        ({"distance": "l2"}, L2, {"R1": 5.04278612, "R2": 1.28459581}, 201),
        ({"huber_c": 1.0}, HUBER, {"R1": 1.22293794, "R2": 0.46936371}, 201),
        ({"huber_c": 0.1}, SHARP, {"R1": 1.78364369, "R2": 0.90771985}, 401),
    ],
)
def test_in_scores_gradients_and_monitors_are_those_of_the_theory(name, settings, rows, monitor, nodes):
    here = bed(name, nodes=nodes)
    _, terms = on_bed(SIM, config(space="score", **settings), here)
    value = terms.total()
    assert here.gradient(value) == pytest.approx(rows[name], abs=1e-6)
    assert here.mean(value).item() == pytest.approx(0.0, abs=1e-10)
    assert here.mean(terms.metrics["distance"]).item() == pytest.approx(monitor[name], abs=1e-6)


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_in_clean_samples_the_same_with_other_units(name):
    here = bed(name)
    _, terms = on_bed(SIM, config(distance="l2"), here)
    assert here.gradient(terms.total()) == pytest.approx([X0_PER_SCORE**2 * g for g in L2[name]], abs=1e-6)
    _, terms = on_bed(SIM, config(huber_c=X0_PER_SCORE), here)
    assert here.gradient(terms.total()) == pytest.approx([X0_PER_SCORE * g for g in HUBER[name]], abs=1e-6)


def test_squared_distance_is_twice_sid_with_alpha_one():
    here = bed("R2", nodes=31)
    _, terms = on_bed(SIM, config(distance="l2"), here)
    weighted = on_bed(SIM, config(distance="l2", space="score", weight_power=2.0), here)[1].total()
    x0 = here.teacher.x0(here.x_t, here.t, {}), here.fake.x0(here.x_t, here.t, {})
    want = 2 * sid_loss(here.x0, *x0, alpha=1.0, normalise=False)
    torch.testing.assert_close(terms.total(), want, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(weighted, want, rtol=1e-7, atol=1e-8)
    assert here.gradient(terms.total()) == pytest.approx(here.gradient(want), abs=1e-9)


def test_distances_by_name():
    here = bed("R2", nodes=3)
    for settings, want in (
        ({"huber_c": 0.3}, PseudoHuber(0.3)),
        ({}, PseudoHuber(huber_scale(here.x0))),
        ({"distance": "power", "power": 1.5}, Power(1.5)),
    ):
        _, terms = on_bed(SIM, config(**settings), here)
        x0 = here.teacher.x0(here.x_t, here.t, {}), here.fake.x0(here.x_t, here.t, {})
        torch.testing.assert_close(terms.metrics["distance"], want.value((x0[1] - x0[0]).detach()), rtol=1e-6, atol=0)


def test_equal_scores_give_no_gradient_at_any_sample():
    here = bed("R2", nodes=21)
    for space in ("x0", "score"):
        _, terms = on_bed(SIM, config(space=space), here, {"fake_score": here.teacher})
        got = torch.autograd.grad(terms.total().sum(), here.x0, retain_graph=True)[0]
        assert got.abs().max() == 0.0


def test_both_networks_are_differentiated_through_and_neither_is_trained():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake)}
    on_bed(SIM, SIMConfig(), here, roles)
    assert roles["teacher"].attached == roles["fake_score"].attached == [True]
    networks = plane(1)
    student, teacher, fake = (networks.copy() for _ in range(3))
    for frozen in (teacher, fake):
        frozen.backbone.requires_grad_(False)
    actors = Actors({"student": student, "teacher": teacher, "fake_score": fake}, teacher.process, (2,))
    with torch.no_grad():
        next(fake.backbone.parameters()).mul_(1.5)
    SIM(SIMConfig(), actors).loss("student", Batch(8), QuickRng(0, 0, tuple(range(8))), 0).total().mean().backward()
    assert all(p.grad is None for frozen in (teacher, fake) for p in frozen.backbone.parameters())
    assert max(p.grad.abs().max() for p in student.backbone.parameters()) > 0


def test_a_network_learns_two_blobs_in_one_step():
    here = plane()
    student, fake = here.copy(), here.copy()
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    law = TimeConfig(law="lognormal", mean=-0.5)
    settings = SIMConfig(time=law, fake=FakeScoreConfig(time=law))
    recipe = SIM(settings, Actors(roles, here.teacher.process, (2,)))
    (t,) = recipe.plan(settings, recipe.process, 1).times
    before = here.distance(student, t)
    log = descend(
        recipe,
        {"fake_score": fake.backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=80,
        batch=256,
    )
    assert here.distance(student, t) < 0.5 * before
    first, last = (sum(entry["distance"] for entry in part) for part in (log[:20], log[-20:]))
    assert last < first
