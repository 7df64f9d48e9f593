"""What generator recipes share: phases, the fake score's losses, dropout that two copies share."""

from __future__ import annotations

import copy

import pytest
import torch
from core.recipe_bed import QuickRng
from core.score_bed import F64, Mixture, gaussian

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import EDM, VP, CosineVP, RectifiedFlow, ResidualShift
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diff_instruct import DiffInstruct, DiffInstructConfig
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.generator import FakeScoreConfig, GeneratorConfig
from fewstep.core.recipes.rollout import Sample
from fewstep.core.times import TimeConfig


def rng_of(batch, step=0):
    return QuickRng(0, step, tuple(range(batch)))


def test_copies_in_training_mode_drop_the_same_units():
    """Identical copies with dropout 0.5 agree exactly when judged, and would not under masks of their own."""
    process = CosineVP()
    teacher = NetworkDenoiser(MLPBackbone(3, dropout=0.5).train(), process, Plain(Kind.V))
    fake = teacher.with_backbone(copy.deepcopy(teacher.backbone))
    roles = {"student": teacher, "teacher": teacher, "fake_score": fake}
    recipe = DiffInstruct(DiffInstructConfig(), Actors(roles, process, (3,)))
    rng = rng_of(16)
    with rng.network_noise("network"):  # as the loop calls a recipe
        gap = recipe.loss("student", Batch(16), rng, 0).metrics["gap"]
        at = recipe.noised(Sample(torch.ones(16, 3), {}), recipe.config.time, rng, 0)
        apart = teacher.x0(at.x_t, at.t, {}) - fake.x0(at.x_t, at.t, {})
    assert gap.abs().max().item() == 0.0
    assert apart.abs().max().item() > 1e-3


def test_warm_up_holds_the_student_back():
    config = DMD2Config(fake_updates=2, fake_warmup=5)
    due = [[p.name for p in DMD2.phases(config) if p.due(s)] for s in range(8)]
    assert due[:5] == [["fake_score"]] * 5
    assert due[5:] == [["fake_score", "student"], ["fake_score"], ["fake_score", "student"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fake_updates": 0}, "fake_updates"),
        ({"fake_warmup": -1}, "fake_warmup"),
        ({"update_mode": "alternate"}, "would never train"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        GeneratorConfig(**given)
    with pytest.raises(UserError, match="label_dropout"):
        FakeScoreConfig(label_dropout=1.0)


@pytest.mark.parametrize("kind", [Kind.EPS, Kind.V, Kind.FLOW, Kind.X0])
@pytest.mark.parametrize("process", [VP.scaled_linear(), RectifiedFlow(), EDM()])
def test_the_native_loss_is_the_plain_error_of_what_the_network_predicts(process, kind):
    fake = Mixture(process, [0.3, 0.7], [-1.0, 1.0], [0.4, 0.6], kind)
    law = TimeConfig(low=0.3, high=0.9)
    config = DMD2Config(fake=FakeScoreConfig(weighting="native", time=law))
    roles = {"student": fake, "teacher": fake, "fake_score": fake}
    recipe = DMD2(config, Actors(roles, process, (1,), dtype=F64))
    sample, rng = Sample(torch.linspace(-1, 1, 9, dtype=F64)[:, None], {}), rng_of(9)
    at = recipe.noised(sample, law, rng, 0)
    value = recipe.fake_score_loss(sample, Batch(9), rng, 0).total()
    c = process.coefficients(at.t)
    a, s = c.alpha[:, None], c.sigma[:, None]
    truth = {
        Kind.EPS: at.eps,
        Kind.X0: sample.x0,
        Kind.FLOW: at.eps - sample.x0,
        Kind.V: a * at.eps - s * sample.x0,
    }[kind]
    raw = fake.predict(at.x_t, at.t, {}).value
    torch.testing.assert_close(value, (raw - truth).square().mean(1), rtol=1e-9, atol=1e-12)


def test_the_karras_weight_takes_the_processs_own_data_spread():
    fake = gaussian(EDM(), 0.2, 0.8)
    for spread in (0.5, 2.0):
        process = EDM(sigma_data=spread)
        fake = gaussian(process, 0.2, 0.8)
        recipe = DMD2(DMD2Config(), Actors({"student": fake, "teacher": fake, "fake_score": fake}, process, (1,)))
        sample, rng = Sample(torch.ones(5, 1, dtype=F64), {}), rng_of(5)
        at = recipe.noised(sample, recipe.config.fake.time, rng, 0)
        error = (fake.x0(at.x_t, at.t, {}) - 1).square()[:, 0]
        expected = error * (1 / at.sigma**2 + 1 / spread**2)
        torch.testing.assert_close(recipe.fake_score_loss(sample, Batch(5), rng, 0).total(), expected)


def test_an_anchor_goes_with_the_noise_to_every_network():
    """Under a residual shift, teacher, fake score and their losses see x_t around the same low-quality input."""
    process = ResidualShift()
    y = torch.full((6, 1), 3.0, dtype=F64)
    inner, shown = gaussian(process, 0.7, 0.5), []

    class Anchored(Mixture):
        def predict(self, x_t, t, cond):
            shown.append(process.offset(x_t, t, cond["anchor"]))
            prediction = inner.predict(shown[-1], t, {})
            return prediction

    both = Anchored(process, [1.0], [0.7], [0.5])
    x0 = torch.zeros(6, 1, dtype=F64, requires_grad=True)
    actors = Actors({"teacher": both, "fake_score": both}, process, (1,), lambda b, r: (x0, {"anchor": y}), dtype=F64)
    recipe = DMD2(DMD2Config(), actors)
    for phase, law in (("student", recipe.config.time), ("fake_score", recipe.config.fake.time)):
        shown.clear()
        recipe.loss(phase, Batch(6), rng_of(6), 0)
        at = recipe.noised(Sample(x0.detach(), {"anchor": y}), law, rng_of(6), 0)
        assert shown
        for core in shown:  # the sample is zero: only noise is left once the anchor is taken off
            torch.testing.assert_close(core, at.sigma[:, None] * at.eps)
    terms = recipe.loss("student", Batch(6), rng_of(6), 0)
    assert terms.metrics["gap"].abs().max().item() == 0.0
