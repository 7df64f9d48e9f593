"""f-distill as a recipe: weights of the density ratio on top of DMD2."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import ExactRatio, GridRng, QuickRng, Watched, at_level, descend, in_pieces, on_bed, plane
from core.score_bed import VP_LEVEL, bed

from fewstep.core.errors import UserError
from fewstep.core.networks.discriminator import Discriminator, SampleDiscriminator
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.adversarial import AdversarialConfig
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.f_distill import FDistill, FDistillConfig
from fewstep.core.recipes.generator import FakeScoreConfig
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

LEVEL = at_level(CosineVP(), VP_LEVEL)
X0_PER_SCORE = 0.6**2 / 0.8  # of the two gaps; x_t moves by 0.8 of x0
ROWS = {
    "reverse_kl": {"R1": (1.02286349, -1.35384615), "R2": (-0.24409224, -0.09616103)},
    "forward_kl": {"R1": (0.05893070, -0.48834628), "R2": (-0.30362121, -0.02219756)},
    "jensen_shannon": {"R1": (0.05280212, -0.25769089), "R2": (-0.12764085, -0.03147645)},
    "chi2": {"R1": (-0.02045000, -1.07525024), "R2": (-0.96442964, 0.19836409)},
    "hellinger": {"R1": (0.08828125, -0.30550712), "R2": (-0.13233737, -0.03067852)},
}


def config(**settings) -> FDistillConfig:
    """Exact gradients: one level, nothing normalised, no clamp to speak of, nothing beside the divergence."""
    exact = {
        "time": LEVEL,
        "normalise": False,
        "normalise_weight": False,
        "ratio_limit": 60.0,
        "ratio_bins": 0,
        "ratio_low": 1e-30,
        "ratio_high": 1e30,
        "adversarial": AdversarialConfig(),
    }
    return FDistillConfig(**(exact | settings))


@pytest.mark.parametrize("name", ["R1", "R2"])
@pytest.mark.parametrize("divergence", list(ROWS))
def test_expected_gradients_are_those_of_the_divergence(divergence, name):
    here = bed(name)
    _, terms = on_bed(FDistill, config(divergence=divergence), here, {"discriminator": ExactRatio(here)})
    want = [X0_PER_SCORE / 0.8 * g for g in ROWS[divergence][name]]
    assert here.gradient(terms.total()) == pytest.approx(want, abs=1e-6)


def test_with_a_constant_weight_it_is_dmd2_to_the_bit():
    here = bed("R2", nodes=21)
    settings = {"time": LEVEL, "adversarial": AdversarialConfig(weight=0.0)}
    _, plain = on_bed(DMD2, DMD2Config(**settings), here)
    judge = {"discriminator": ExactRatio(here)}
    _, weighted = on_bed(FDistill, FDistillConfig(divergence="reverse_kl", **settings), here, judge)
    assert torch.equal(plain.total(), weighted.total())
    assert here.gradient(plain.total()) == here.gradient(weighted.total())
    _, early = on_bed(FDistill, FDistillConfig(ratio_start=3, **settings), here, judge, step=2)
    late = on_bed(FDistill, FDistillConfig(ratio_start=3, **settings), here, judge, step=3)[1]
    assert set(early.metrics) == {"gap"}
    assert set(late.metrics) == {"gap", "ratio", "divergence"}


class Undecided(Discriminator):
    def patch_logits(self, x_t, t, cond):
        return torch.zeros(len(x_t), 1, dtype=x_t.dtype)


@pytest.mark.parametrize("divergence", ["jensen_shannon", "forward_kl", "softened_reverse_kl"])
def test_an_undecided_discriminator_leaves_dmd2(divergence):
    """h is the same for every sample; over its mean it is 1, at the first step and at later ones."""
    here = bed("R2", nodes=21)
    settings = {"time": LEVEL, "adversarial": AdversarialConfig(weight=0.0)}
    _, plain = on_bed(DMD2, DMD2Config(**settings), here)
    recipe, _ = on_bed(
        FDistill, FDistillConfig(divergence=divergence, **settings), here, {"discriminator": Undecided()}
    )
    rng = QuickRng(0, 0, tuple(range(len(here.z))))
    for step in range(3):
        terms = recipe.loss("student", Batch(len(here.z)), rng, step)
        recipe.after_step(step)
        assert set(terms.metrics["ratio"].tolist()) == {1.0}
    _, again = on_bed(FDistill, FDistillConfig(divergence=divergence, **settings), here, {"discriminator": Undecided()})
    assert torch.equal(again.total(), plain.total())
    assert recipe.state()["mean_ratio"].tolist() == [1.0] * 10


def test_the_ratio_is_divided_by_its_mean_at_its_own_noise_level_and_clamped():
    here = bed("R1", nodes=21)
    settings = config(ratio_bins=10, ratio_low=0.5, ratio_high=2.0, mean_decay=0.0)
    recipe, first = on_bed(FDistill, settings, here, {"discriminator": ExactRatio(here)})
    raw = recipe.discriminator().log_ratio(here.x_t, here.t, {}).clamp(-60, 60).exp()
    torch.testing.assert_close(first.metrics["ratio"], raw.clamp(0.5, 2.0), rtol=1e-6, atol=0)
    recipe.after_step(0)
    index = int(here.process.time_to_unit(here.t[:1]) * 10)
    want = torch.ones(10, dtype=raw.dtype)
    want[index] = raw.mean()
    torch.testing.assert_close(recipe.state()["mean_ratio"], want, rtol=1e-9, atol=0)
    second = recipe.loss("student", Batch(len(here.z)), GridRng(0, 1, tuple(range(len(here.z)))), 1)
    torch.testing.assert_close(second.metrics["ratio"], (raw / raw.mean()).clamp(0.5, 2.0), rtol=1e-6, atol=0)


def test_losses_and_state_do_not_depend_on_the_split_of_the_batch():
    settings = FDistillConfig(adversarial=AdversarialConfig(weight=0.0))
    whole, state, trained = in_pieces(FDistill, settings, [])
    parts, again, _ = in_pieces(FDistill, settings, [2, 7])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    for name in ("mean_ratio", "mean_weight"):
        torch.testing.assert_close(again[name], state[name], rtol=1e-12, atol=0)
        assert (state[name] != 1).any()
    restored = FDistill(settings, trained.actors)
    restored.load_state(state)
    assert all(torch.equal(restored.state()[name], state[name]) for name in state)
    with pytest.raises(UserError, match="mean_ratio"):
        FDistill(config(ratio_bins=5), trained.actors).load_state(state)


def test_the_sums_of_all_processes_are_taken():
    settings = FDistillConfig(adversarial=AdversarialConfig(weight=0.0))
    _, state, trained = in_pieces(FDistill, settings, [], steps=1)
    recipe, seen = FDistill(settings, trained.actors), []

    def another_process_saw_the_same(sums: torch.Tensor) -> torch.Tensor:
        seen.append(sums.clone())
        return 2 * sums

    recipe.actors.total = another_process_saw_the_same
    recipe.loss("student", Batch(12), Rng.for_batch(0, 0, 12), 0)
    recipe.after_step(0)
    assert [sums.shape for sums in seen] == [(2, 10), (2, 1)]
    assert all(sums[1].sum() == 12 for sums in seen)
    assert all(torch.equal(recipe.state()[name], state[name]) for name in state)


def test_nothing_is_differentiated_through():
    here = bed("R2", nodes=21)
    roles = {"teacher": Watched(here.teacher), "fake_score": Watched(here.fake), "discriminator": ExactRatio(here)}
    _, terms = on_bed(FDistill, config(), here, roles)
    assert roles["teacher"].attached == roles["fake_score"].attached == [False]
    assert not any(value.requires_grad for value in terms.metrics.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [({"ratio_low": 2.0}, "two sides of 1"), ({"ratio_bins": -1}, "ratio_bins"), ({"ratio_start": -1}, "start")],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        FDistillConfig(**given)


def test_a_network_learns_two_blobs_in_one_step():
    here = plane()
    student, fake = here.copy(), here.copy()
    judge = SampleDiscriminator(here.teacher.process, 2, width=32)
    roles = {"student": student, "teacher": here.teacher, "fake_score": fake, "discriminator": judge}
    law = TimeConfig(law="lognormal", mean=-0.5)
    settings = FDistillConfig(
        student_start=0.5,
        time=law,
        fake=FakeScoreConfig(time=law),
        fake_updates=1,
        adversarial=AdversarialConfig(weight=1e-3, time=law, discriminator_weight=1.0),
    )
    recipe = FDistill(settings, Actors(roles, here.teacher.process, (2,)))
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
