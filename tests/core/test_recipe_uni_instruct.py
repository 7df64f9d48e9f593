"""Uni-Instruct as a recipe: expanded f-divergences with an exact and with a learned density ratio."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import ExactRatio, QuickRng, Watched, at_level, descend, in_pieces, on_bed, plane
from core.score_bed import F64, VP_LEVEL, bed

from fewstep.core.errors import UserError
from fewstep.core.losses.adversarial import discriminator_loss
from fewstep.core.losses.score_family import sid_loss
from fewstep.core.networks.discriminator import SampleDiscriminator
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.recipes.uni_instruct import UniInstruct, UniInstructConfig
from fewstep.core.times import TimeConfig

LEVEL = at_level(CosineVP(), VP_LEVEL)
SCORE_TO_X0 = 0.6**4 / 0.8**2
FISHER = {"R1": (5.35315732, -5.20710059), "R2": (-0.67211964, -0.46833776)}
FORWARD = {"R1": (0.16351470, -0.67750594), "R2": (-0.84245618, -0.03079572)}
JENSEN_SHANNON = {"R1": (0.08144589, -0.31348500), "R2": (-0.32076532, -0.11751346)}
SIM = {"R1": (2.83813398, -1.87825493), "R2": (-0.67728145, -0.13340875)}


def config(**settings) -> UniInstructConfig:
    """Exact gradients: one level, the ratio from the start, nothing beside the divergence."""
    exact = {
        "time": LEVEL,
        "ratio_start": 0,
        "normalise": False,
        "adversarial": AdversarialConfig(),
        "ratio_limit": 60.0,
    }
    return UniInstructConfig(**(exact | settings))


def run(name: str = "R2", nodes: int = 201, step: int = 0, **settings):
    here = bed(name, nodes=nodes)
    recipe, terms = on_bed(UniInstruct, config(**settings), here, {"discriminator": ExactRatio(here)}, step)
    return here, recipe, terms


@pytest.mark.parametrize("name", ["R1", "R2"])
@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"divergence": "reverse_kl"}, FISHER),
        ({"divergence": "reverse_kl", "path_term": False}, SIM),
        ({"divergence": "forward_kl"}, FORWARD),
        ({"divergence": "forward_kl", "path_term": False}, FORWARD),
        ({"divergence": "jensen_shannon"}, JENSEN_SHANNON),
    ],
)
def test_expected_gradients_are_those_of_the_expanded_divergences(name, settings, rows):
    here, _, terms = run(name, **settings)
    assert here.gradient(terms.total()) == pytest.approx([SCORE_TO_X0 * g for g in rows[name]], abs=1e-6)


def test_only_a_divergence_that_asks_for_the_ratio_has_a_discriminator():
    def roles(**settings):
        return {spec.name for spec in UniInstruct.role_specs(config(**settings))}

    assert "discriminator" not in roles(divergence="reverse_kl")
    assert "discriminator" in roles(divergence="forward_kl")
    assert "discriminator" in roles(divergence="reverse_kl", adversarial=AdversarialConfig(weight=1e-4))


def test_what_is_logged_is_the_divergence_itself():
    for divergence, value in (("forward_kl", 0.98517986), ("jensen_shannon", 0.51843069), ("reverse_kl", 1.28459581)):
        here, _, terms = run("R2", divergence=divergence)
        assert here.mean(terms.metrics["divergence"]).item() == pytest.approx(SCORE_TO_X0 * value, abs=1e-6)
        assert here.mean(terms.metrics["ratio"]).item() == pytest.approx(1.0, abs=1e-6)
    assert here.mean(run("R2")[2].total()).item() == pytest.approx(0.0, abs=1e-8)  # forward KL: no information


@pytest.mark.parametrize("divergence", ["forward_kl", "chi2", "jeffreys"])
def test_before_the_ratio_counts_it_is_twice_sid_with_alpha_one(divergence):
    here, _, terms = run("R2", nodes=31, step=6, ratio_start=7, divergence=divergence)
    clean = here.teacher.x0(here.x_t, here.t, {}), here.fake.x0(here.x_t, here.t, {})
    want = 2 * sid_loss(here.x0, *clean, alpha=1.0, normalise=False)
    torch.testing.assert_close(terms.total(), want, rtol=1e-7, atol=1e-8)
    assert set(terms.metrics["ratio"].tolist()) == {1.0}
    counted = run("R2", nodes=31, step=7, ratio_start=7, divergence=divergence)[2]
    assert not torch.allclose(counted.total(), want, rtol=1e-3)


def test_the_ratio_is_clamped():
    _, _, terms = run("R1", ratio_limit=0.5)
    low, high = terms.metrics["ratio"].min().item(), terms.metrics["ratio"].max().item()
    assert (low, high) == pytest.approx((torch.e**-0.5, torch.e**0.5))


def test_the_mean_weight_of_the_steps_before_divides_whatever_the_split_of_the_batch():
    settings = config(normalise_weight=True, weight_decay=0.0, divergence="jensen_shannon")
    here = bed("R2", nodes=31)
    recipe, first = on_bed(UniInstruct, settings, here, {"discriminator": ExactRatio(here)})
    plain = run("R2", nodes=31, divergence="jensen_shannon")[2].total()
    torch.testing.assert_close(first.total(), plain / 0.5)  # h(1): nothing has been seen
    ratio = first.metrics["ratio"]
    recipe.after_step(0)
    assert recipe.state()["mean_weight"].item() == pytest.approx((ratio / (1 + ratio)).mean().item(), rel=1e-9)

    whole, state, trained = in_pieces(UniInstruct, settings, [])
    parts, again, _ = in_pieces(UniInstruct, settings, [1, 5])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(again["mean_weight"], state["mean_weight"], rtol=1e-12, atol=0)
    restored = UniInstruct(settings, trained.actors)
    restored.load_state(state)
    assert torch.equal(restored.state()["mean_weight"], state["mean_weight"])
    with pytest.raises(UserError, match="mean_weight"):
        restored.load_state({})


def test_gradients_pass_through_networks_and_ratio():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake), "discriminator": ExactRatio(here)}
    on_bed(UniInstruct, config(), here, roles)
    assert roles["teacher"].attached == roles["fake_score"].attached == [True]


def test_a_ratio_held_constant_would_give_another_gradient():
    """The theory's own number for that mistake: 1.5008 instead of 0.1635."""

    class Held(ExactRatio):
        def patch_logits(self, x_t, t, cond):
            return super().patch_logits(x_t, t, cond).detach()

    here, _, right = run("R1")
    _, wrong = on_bed(UniInstruct, config(), here, {"discriminator": Held(here)})
    torch.testing.assert_close(right.total(), wrong.total())
    assert here.gradient(wrong.total())[0] == pytest.approx(SCORE_TO_X0 * 1.50082434, abs=1e-6)
    assert here.gradient(right.total())[0] == pytest.approx(SCORE_TO_X0 * 0.16351470, abs=1e-6)


def test_the_best_quadratic_logit_is_the_log_ratio():
    """What the discriminator is trained on has the density ratio as its optimum."""
    here = bed("R1", nodes=3)
    x = torch.linspace(-9, 9, 2001, dtype=F64)[:, None]
    t = torch.full((2001,), VP_LEVEL, dtype=F64)
    real, fake = (law.log_density(x, t).exp() for law in (here.teacher, here.fake))
    features = torch.cat([torch.ones_like(x), x, x**2], 1)
    weights = torch.zeros(3, 1, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logit = features @ weights
        never = torch.full_like(logit, 50.0)  # real logits of 50 and fake ones of -50 cost nothing
        loss = (real * discriminator_loss(logit, -never) + fake * discriminator_loss(never, logit)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    within = (x[:, 0] > -1.5) & (x[:, 0] < 1.5)
    found = (features @ weights)[within, 0].exp()
    torch.testing.assert_close(found, (real / fake)[within], rtol=0.02, atol=0)


def test_the_discriminator_is_trained_with_the_fake_score_and_needs_data():
    here = plane(1)
    student, fake = here.copy(), here.copy()
    judge = SampleDiscriminator(here.teacher.process, 2)
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    recipe = UniInstruct(UniInstructConfig(), Actors(roles, here.teacher.process, (2,)))
    assert [phase.trains for phase in recipe.phases(recipe.config)] == [("fake_score", "discriminator"), ("student",)]
    assert recipe.role_specs(recipe.config)[-1].features_of == "fake_score"
    rng = QuickRng(0, 0, tuple(range(8)))
    with pytest.raises(UserError, match="clean samples"):
        recipe.loss("fake_score", Batch(8), rng, 0)
    recipe.loss("fake_score", here.data(rng), rng, 0).total().mean().backward()
    assert all(p.grad is None for p in student.backbone.parameters())
    assert all(max(p.grad.abs().max() for p in m.parameters()) > 0 for m in (judge, fake.backbone))


def test_a_network_learns_two_blobs_in_one_step():
    here = plane()
    student, fake = here.copy(), here.copy()
    judge = SampleDiscriminator(here.teacher.process, 2, width=32)
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    law = TimeConfig(law="lognormal", mean=-0.5)
    settings = UniInstructConfig(
        divergence="jensen_shannon",
        time=law,
        fake=FakeScoreConfig(time=law),
        adversarial=AdversarialConfig(time=law, discriminator_weight=1.0),
        ratio_start=20,
        ratio_limit=2.0,
    )
    recipe = UniInstruct(settings, Actors(roles, here.teacher.process, (2,)))
    (t,) = recipe.plan(settings, recipe.process, 1).times
    before = here.distance(student, t)
    descend(
        recipe,
        {"fake_score": [*fake.backbone.parameters(), *judge.parameters()], "student": student.backbone.parameters()},
        {"fake_score": 2e-3, "student": 5e-4},
        steps=80,
        batch=256,
        data=here.data,
    )
    assert here.distance(student, t) < 0.5 * before
