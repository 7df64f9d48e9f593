"""Negative prompts, Perp-Neg and what a fake score is told: alternatives that come in the condition."""

from __future__ import annotations

import math

import pytest
import torch
from core.recipe_bed import GRID, GridRng, QuickRng, at_level
from core.score_bed import F64, Mixture

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided, guide, negatives, perp_neg, plain, told
from fewstep.core.process import VP, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.sds import SDS, SDSConfig
from fewstep.core.recipes.vsd import VSD, VSDConfig

SD = VP.scaled_linear()
T, AT = times(400.0, 1), at_level(SD, 400.0)
POINT, NOISE = torch.tensor([[0.3, 0.7]], dtype=F64), torch.tensor([[0.5, -1.0]], dtype=F64)
X_T = SD.add_noise(POINT, NOISE, T)
THREE = Mixture(SD, [0.4, 0.3, 0.3], [[1.0, -2.0], [-1.0, 0.5], [2.0, 1.0]], [0.5, 0.5, 0.5])
PROMPT = {"label": torch.tensor([0])}
AWAY = PROMPT | {"negative/label": torch.tensor([[1, 2]])}
WEIGHTED = AWAY | {"negative/weights": torch.tensor([[-0.7, -0.2]], dtype=F64)}


def eps(label=None):
    return THREE.eps(X_T, T, {} if label is None else {"label": torch.tensor([label])})


class Seen(Denoiser):
    """A denoiser that notes its conditions; its unconditional one has a label of its own and nothing else."""

    def __init__(self, inner):
        self.inner, self.process, self.conds = inner, inner.process, []

    def null(self, cond):
        return {**cond, "label": torch.full_like(cond["label"], -1)}

    def predict(self, x_t, t, cond):
        self.conds.append(cond)
        return self.inner.predict(x_t, t, cond)


def test_networks_see_plain_entries_and_everyone_their_own():
    cond = WEIGHTED | {"fake/label": torch.tensor([2])}
    assert set(plain(cond)) == {"label"}
    assert told(cond, "fake")["label"].item() == 2
    assert told(cond, "nobody") == plain(cond)
    found = negatives(cond)
    assert [c["label"].item() for c in found.conds] == [1, 2]
    assert found.weights is cond["negative/weights"]
    assert negatives(PROMPT) == ((), None)
    for scale in (1.0, 3.0):
        watched = Seen(THREE)
        Guided(watched, scale).eps(X_T, T, cond)
        assert all(set(seen) == {"label"} for seen in watched.conds)
    with pytest.raises(UserError, match="as many negative prompts"):
        negatives(WEIGHTED | {"negative/other": torch.zeros(1, 3)})
    with pytest.raises(UserError, match="without the negative prompts"):
        negatives(PROMPT | {"negative/weights": torch.zeros(1, 2)})


def test_a_negative_prompt_stands_in_for_the_empty_one():
    torch.testing.assert_close(Guided(THREE, 7.5).eps(X_T, T, AWAY), guide(eps(0), eps(1), 7.5))
    torch.testing.assert_close(Guided(THREE, 1.0).eps(X_T, T, AWAY), eps(0))


def test_perp_neg_by_the_condition():
    wanted = perp_neg(eps(0), eps(), [eps(1), eps(2)], [-0.7, -0.2], 7.5)
    torch.testing.assert_close(Guided(THREE, 7.5).eps(X_T, T, WEIGHTED), wanted, rtol=1e-9, atol=1e-12)
    c = SD.coefficients(T)
    clean = (X_T - c.sigma * wanted) / c.alpha
    torch.testing.assert_close(Guided(THREE, 7.5).x0(X_T, T, WEIGHTED), clean, rtol=1e-9, atol=1e-12)
    watched = Seen(THREE)
    Guided(watched, 7.5).eps(X_T, T, WEIGHTED)
    assert [len(c["label"]) for c in watched.conds] == [4]  # one batch
    none = AWAY | {"negative/weights": torch.zeros(1, 2, dtype=F64)}
    torch.testing.assert_close(Guided(THREE, 7.5).eps(X_T, T, none), guide(eps(0), eps(), 7.5))
    scales = torch.tensor([7.5], dtype=F64)
    torch.testing.assert_close(Guided(THREE, "s").eps(X_T, T, WEIGHTED | {"s": scales}), wanted)


def test_score_distillation_under_perp_neg():
    x = POINT.clone().requires_grad_()
    actors = Actors({"teacher": THREE}, SD, (2,), lambda b, r: (x, WEIGHTED), dtype=F64)
    GRID["e"] = NOISE

    def pulled(variant):
        law = SDSConfig(variant=variant, time=AT, weight="uniform")
        loss = SDS(law, actors).loss("student", Batch(1), GridRng(0, 0, (0,)), 0)
        return torch.autograd.grad(loss.total().sum(), x)[0]

    guided = perp_neg(eps(0), eps(), [eps(1), eps(2)], [-0.7, -0.2], 7.5)
    torch.testing.assert_close(pulled("sds"), guided - NOISE)
    torch.testing.assert_close(7.5 * pulled("csd"), guided - eps())
    shifted = pulled("asd")  # the reference is the prompt's own
    assert shifted.isfinite().all()


@pytest.mark.parametrize(("a", "b", "c"), [(4.0, 0.5, -2.426), (1.0, 0.5, -0.606)])
def test_weights_of_views_vanish_at_the_pure_view(a, b, c):
    """Perp-Neg's ``a exp(-b r) + c`` of the sheet, at r = 1; a weight of 0 leaves guidance as it is."""
    weight = -(a * math.exp(-b) + c)
    assert weight == pytest.approx(0, abs=1e-3)
    cond = AWAY | {"negative/weights": torch.full((1, 2), min(weight, 0.0), dtype=F64)}
    torch.testing.assert_close(Guided(THREE, 7.5).eps(X_T, T, cond), guide(eps(0), eps(), 7.5), rtol=0.05, atol=0.02)


# ---------------------------------------------------------------- what a fake score is told


CAMERA = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
VIEWS = {
    "label": torch.tensor([0, 1]),
    "camera": CAMERA,
    "fake/label": torch.tensor([2, 2]),
    "negative/label": torch.tensor([[1], [1]]),
}


def vsd(**fake):
    x = torch.cat([POINT, -POINT]).requires_grad_()
    roles = {"teacher": Seen(THREE), "fake_score": Seen(THREE)}
    actors = Actors(roles, SD, (2,), lambda b, r: (x, VIEWS), dtype=F64)
    law = VSDConfig(guidance_scale=7.5, fake=FakeScoreConfig(weighting="native", **fake))
    return VSD(law, actors), roles


def test_the_critic_has_a_prompt_of_its_own_and_the_camera():
    recipe, roles = vsd()
    for phase in ("fake_score", "student"):
        recipe.loss(phase, Batch(2), QuickRng(0, 0, (0, 1)), 0)
    assert [c["label"].tolist() for c in roles["fake_score"].conds] == [[2, 2], [2, 2]]
    assert all(torch.equal(c["camera"], CAMERA) for c in roles["fake_score"].conds)
    assert [c["label"].tolist() for c in roles["teacher"].conds] == [[0, 1, 1, 1]]
    assert all(set(c) == {"label", "camera"} for role in roles.values() for c in role.conds)


def test_the_camera_is_zeroed_at_the_configured_rate_for_a_whole_batch():
    recipe, roles = vsd(blank={"camera": 0.1})
    for step in range(120):
        recipe.loss("fake_score", Batch(2), QuickRng(0, step, (0, 1)), step)
    blank = [not c["camera"].any() for c in roles["fake_score"].conds]
    whole = [bool((c["camera"] == CAMERA).all()) for c in roles["fake_score"].conds]
    assert all(a != b for a, b in zip(blank, whole, strict=True))
    assert 3 <= sum(blank) <= 24
    roles["fake_score"].conds.clear()
    recipe.loss("student", Batch(2), QuickRng(0, 0, (0, 1)), 0)
    assert torch.equal(roles["fake_score"].conds[0]["camera"], CAMERA)  # it judges knowing the camera


def test_an_entry_that_is_always_blank_is_not_seen_when_judging():
    recipe, roles = vsd(blank={"camera": 1.0, "label": 1.0})
    for phase in ("fake_score", "student"):
        recipe.loss(phase, Batch(2), QuickRng(0, 0, (0, 1)), 0)
    assert not any(c["camera"].any() for c in roles["fake_score"].conds)
    assert all((c["label"] == -1).all() for c in roles["fake_score"].conds)  # the unconditional one, not zero
    assert torch.equal(roles["teacher"].conds[0]["camera"][:2], CAMERA)
    with pytest.raises(UserError, match=r"fake\.blank: the condition has no \['view'\]"):
        vsd(blank={"view": 1.0})[0].loss("fake_score", Batch(2), QuickRng(0, 0, (0, 1)), 0)
    with pytest.raises(UserError, match=r"fake\.blank\.camera"):
        FakeScoreConfig(blank={"camera": 1.5})


def test_several_critic_updates_per_student_update():
    config = VSDConfig(fake_updates=4)
    due = {p.name: sum(p.due(step) for step in range(40)) for p in VSD.phases(config)}
    assert due == {"fake_score": 40, "student": 10}
