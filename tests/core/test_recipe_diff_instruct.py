"""Diff-Instruct as a recipe: expected gradients of the theory, recovery of a Gaussian, a mixture in the plane."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import Learner, QuickRng, Watched, at_level, descend, on_bed, plane
from core.score_bed import F64, VP_LEVEL, bed, edm_bed, gaussian

from fewstep.core.process import EDM
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diff_instruct import LOGNORMAL, DiffInstruct, DiffInstructConfig

KL = {"R1": (1.02286349, -1.35384615), "R2": (-0.24409224, -0.09616103)}


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_the_expected_gradient_is_that_of_kl_times_tau_squared(name):
    here = bed(name)
    _, terms = on_bed(DiffInstruct, DiffInstructConfig(time=at_level(here.process, VP_LEVEL)), here)
    want = [0.6**2 / 0.8**2 * g for g in KL[name]]
    assert here.gradient(terms.total()) == pytest.approx(want, abs=1e-7)


def test_golden_gradient_in_edm_coordinates():
    here = edm_bed("R2")
    _, terms = on_bed(DiffInstruct, DiffInstructConfig(time=at_level(here.process, 0.8)), here)
    assert here.gradient(terms.total()) == pytest.approx((-0.1461110607, -0.0548644410), abs=1e-9)


def test_the_logged_gap_is_that_of_the_clean_predictions():
    here = bed("R2")
    _, terms = on_bed(DiffInstruct, DiffInstructConfig(time=at_level(here.process, VP_LEVEL)), here)
    fisher = 1.28459581  # E |S_p - S_q|^2
    assert here.mean(terms.metrics["gap"]).item() == pytest.approx(0.6**4 / 0.8**2 * fisher, abs=1e-6)
    assert not terms.metrics["gap"].requires_grad


def test_no_gradient_passes_through_either_network():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake)}
    on_bed(DiffInstruct, DiffInstructConfig(), here, roles)
    assert roles["teacher"].attached == [False]
    assert roles["fake_score"].attached == [False]


@pytest.mark.slow
def test_a_narrow_generator_and_a_fake_score_recover_a_gaussian():
    """From a generator that has nearly collapsed, which plain score distillation would finish off."""
    process = EDM()
    k, b = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.1, 0.0))
    fake = Learner(process, 0.0, 0.1)

    def generate(batch: Batch, rng):
        return b + k * rng.normal("z", (1,), F64), {}

    actors = Actors({"teacher": gaussian(process, 0.7, 0.5), "fake_score": fake}, process, (1,), generate, dtype=F64)
    recipe = DiffInstruct(DiffInstructConfig(), actors)
    seen = []
    original = recipe.after_step
    recipe.after_step = lambda step: (seen.append((abs(k.item()), b.item())), original(step))
    descend(
        recipe,
        {"fake_score": [fake.mean, fake.std], "student": [k, b]},
        {"fake_score": 0.05, "student": 0.01},
        steps=500,
        batch=256,
    )
    late = torch.tensor(seen[-100:]).mean(0)
    assert late.tolist() == pytest.approx([0.5, 0.7], abs=0.03)


def test_a_network_learns_two_blobs_in_one_step():
    here = plane()
    student, fake = here.copy(), here.copy()
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    recipe = DiffInstruct(DiffInstructConfig(), Actors(roles, here.teacher.process, (2,)))
    (t,) = recipe.plan(recipe.config, recipe.process, 1).times
    before = here.distance(student, t)
    log = descend(
        recipe,
        {"fake_score": fake.backbone.parameters(), "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=80,
        batch=256,
    )
    after = here.distance(student, t)
    assert after < 0.5 * before
    assert sum(entry["gap"] for entry in log[-20:]) < sum(entry["gap"] for entry in log[:20])


def test_the_fake_score_learns_from_detached_samples():
    here = plane(1)
    student, fake = here.copy(), here.copy()
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake}
    recipe = DiffInstruct(DiffInstructConfig(fake_updates=5), Actors(roles, here.teacher.process, (2,)))
    recipe.loss("fake_score", Batch(8), QuickRng(0, 0, tuple(range(8))), 0).total().mean().backward()
    assert all(p.grad is None for p in student.backbone.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in fake.backbone.parameters())
    due = [[phase.name for phase in recipe.phases(recipe.config) if phase.due(step)] for step in range(5)]
    assert due == [["fake_score"]] * 4 + [["fake_score", "student"]]


def test_both_laws_are_the_log_normal_one_by_default():
    config = DiffInstructConfig()
    assert config.time == config.fake.time == LOGNORMAL
