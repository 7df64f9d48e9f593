"""The score-distillation family on exact teachers: goldens and identities, by losses and by recipes."""

from __future__ import annotations

import re

import pytest
import torch
from core.recipe_bed import GRID, GridRng, QuickRng, Watched, at_level
from core.score_bed import F64, Mixture, gaussian

from fewstep.core.annealed import value_at
from fewstep.core.denoiser import batch_of
from fewstep.core.errors import UserError
from fewstep.core.guidance import Guided
from fewstep.core.losses.integral import asd_loss, csd_loss, normalizing_weight, sds_weight
from fewstep.core.process import VP, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.sds import SDS, SDSConfig
from fewstep.core.recipes.sds_settings import IntervalConfig, InversionConfig
from fewstep.core.recipes.sds_variants import channel_noise
from fewstep.core.rng import Rng
from fewstep.core.solvers import invert

SD = VP.scaled_linear()
POINT, NOISE = torch.tensor([[0.3, 0.7]], dtype=F64), torch.tensor([[0.5, -1.0]], dtype=F64)
TWO = Mixture(SD, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5])
PROMPT = {"label": torch.tensor([0])}
T = times(400.0, 1)
AT = at_level(SD, 400.0)
LEVEL = SD.coefficients(T)
X_T = SD.add_noise(POINT, NOISE, T)


def pulled(loss_of, x=POINT):
    """The gradient a loss gives a point."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss_of(x).sum(), x)[0]


# ---------------------------------------------------------------- normalisers


@pytest.mark.parametrize(
    ("name", "size", "golden"),
    [("clean", 4.814879, (-0.763912, 0.954890)), ("noisy", 5.795146, (-0.636886, 0.796107))],
)
def test_golden_of_the_normalised_difference(name, size, golden):
    """Against progressive rendering distillation at guidance 7.5, where ASD at the same time is CSD times 6.5."""
    guided, cond = Guided(TWO, 7.5).eps(X_T, T, PROMPT), TWO.eps(X_T, T, PROMPT)
    weight = normalizing_weight(name, POINT, guided, NOISE, LEVEL.alpha, LEVEL.sigma)
    assert (1 / weight - 0.1).item() == pytest.approx(size, abs=1e-6)
    weight = weight * sds_weight("tau", LEVEL.alpha, LEVEL.sigma)
    got = pulled(lambda x: asd_loss(x, guided, cond, weight=weight))
    assert got[0].tolist() == pytest.approx(golden, abs=1e-6)
    csd = pulled(lambda x: csd_loss(x, cond, TWO.eps(X_T, T, {}), weight=6.5 * weight))
    torch.testing.assert_close(got, csd, rtol=1e-9, atol=0)


def test_a_normaliser_is_per_sample_and_detached_and_none_is_one():
    x = torch.cat([POINT, 3 * POINT]).requires_grad_()
    at = (torch.ones(2, dtype=F64), 2 * torch.ones(2, dtype=F64))
    eps = 0 * x.detach()
    for name in ("clean", "noisy"):
        found = normalizing_weight(name, x, x, eps, *at, floor=0.5)
        assert not found.requires_grad
        torch.testing.assert_close(found, 1 / (2 * x.detach().abs().mean(1) + 0.5))
    assert normalizing_weight("none", x, x, eps, *at).tolist() == [1, 1]


# ---------------------------------------------------------------- the variants as a recipe


def recipe_of(config, teacher=TWO, x=POINT, cond=PROMPT):
    """The recipe on a scene that is the point itself, as a domain's ``generate`` would give it."""
    x = x.clone().requires_grad_()
    actors = Actors({"teacher": teacher}, teacher.process, tuple(x.shape[1:]), lambda b, r: (x, cond), dtype=F64)
    return SDS(config, actors), x


def pulled_by(config, noise=NOISE, step=0, rng=None, **scene):
    """The gradient a variant gives each sample of a scene."""
    recipe, x = recipe_of(config, **scene)
    GRID["e"] = noise.expand_as(x)
    rng = rng or GridRng(0, step, tuple(range(len(x))))
    loss = recipe.loss("student", Batch(len(x)), rng, step)
    return torch.autograd.grad(loss.total().sum(), x)[0]


def config(variant, **settings):
    return SDSConfig(**{"variant": variant, "time": AT, "weight": "uniform"} | settings)


def test_the_recipe_gives_the_normalised_golden():
    for name, golden in (("clean", (-0.763912, 0.954890)), ("noisy", (-0.636886, 0.796107))):
        got = pulled_by(config("asd", asd_ratio=0.0, weight="tau", normalizer=name))
        assert got[0].tolist() == pytest.approx(golden, abs=1e-6)


def test_identities_of_the_family_by_recipe():
    tau, sds = (LEVEL.sigma / LEVEL.alpha).item(), pulled_by(config("sds"))
    csd, guided = pulled_by(config("csd")), Guided(TWO, 7.5).eps(X_T, T, PROMPT)
    same = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(pulled_by(config("x0")), tau * sds, **same)
    torch.testing.assert_close(pulled_by(config("sds", weight="tau")), tau * sds, **same)
    torch.testing.assert_close(pulled_by(config("sjc")), sds, **same)
    torch.testing.assert_close(pulled_by(config("sjc", variance_reduced=False)), guided, **same)
    torch.testing.assert_close(sds, pulled_by(config("sds", guidance_scale=0.0)) + 7.5 * csd, **same)
    torch.testing.assert_close(pulled_by(config("asd", asd_ratio=0.0)), 6.5 * csd, **same)
    away = torch.cat([NOISE, 2 * NOISE])
    two = pulled_by(config("sds"), away, x=torch.cat([POINT, POINT]), cond={"label": torch.tensor([0, 1])})
    torch.testing.assert_close(two[:1], sds, **same)


ISM = {"delta": 0.05, "warmup": 0, "inversions": 0, "factor": 1.0}


def test_golden_of_interval_score_matching():
    got = pulled_by(config("ism", ism=IntervalConfig(**ISM)))
    assert got[0].tolist() == pytest.approx([-5.5499608, 6.9756373], abs=2e-7)
    tenth = pulled_by(config("ism", ism=IntervalConfig(**ISM | {"factor": 0.1})))
    torch.testing.assert_close(tenth, got / 10)


@pytest.mark.parametrize(("delta", "distance"), [(100, 0.06835), (10, 0.02228), (1, 0.002349)])
def test_intervals_tend_to_the_classifier_score(delta, distance):
    got = pulled_by(config("ism", ism=IntervalConfig(**ISM | {"delta": delta / 999})))
    tau = (LEVEL.sigma / LEVEL.alpha).item()
    x_t = invert(TWO, SD.add_noise(POINT, NOISE, times(400.0 - delta, 1)), [400.0 - delta, 400.0], {}).x
    limit = tau * 7.5 * (TWO.eps(x_t, T, PROMPT) - TWO.eps(x_t, T, {}))
    assert (got - limit).norm().item() == pytest.approx(tau * distance, rel=1e-3)


def test_the_inversion_chain_of_intervals():
    """Noised 2 strides of 100 below s = 350 and inverted up to there; the interval shrinks during warm-up."""
    how = IntervalConfig(**ISM | {"inversions": 2, "stride": 100 / 999, "delta": 50 / 999})
    x_s = invert(TWO, SD.add_noise(POINT, NOISE, times(150.0, 1)), [150.0, 250.0, 350.0], {}).x
    eps_s = TWO.eps(x_s, times(350.0, 1), {})
    x_t = invert(TWO, x_s, [350.0, 400.0], {}).x
    wanted = (LEVEL.sigma / LEVEL.alpha) * (Guided(TWO, 7.5).eps(x_t, T, PROMPT) - eps_s)
    torch.testing.assert_close(pulled_by(config("ism", ism=how)), wanted, rtol=0, atol=1e-9)
    low = IntervalConfig(**ISM | {"inversions": 5, "stride": 0.2})  # 1000 levels below: noised at the least level
    x_s = invert(TWO, SD.add_noise(POINT, NOISE, times(0.0, 1)), [0.0, 200.0, 350.0], {}).x
    x_t = invert(TWO, x_s, [350.0, 400.0], {}).x
    wanted = (LEVEL.sigma / LEVEL.alpha) * (Guided(TWO, 7.5).eps(x_t, T, PROMPT) - TWO.eps(x_s, times(350.0, 1), {}))
    torch.testing.assert_close(pulled_by(config("ism", ism=low)), wanted, rtol=0, atol=1e-9)
    steps = IntervalConfig(delta=0.05, delta_start=0.1, warmup=100)
    assert [steps.delta_at(step) for step in (0, 50, 100, 999)] == pytest.approx([0.1, 0.075, 0.05, 0.05])


def test_offset_noise_is_one_number_per_channel():
    rng = Rng.for_batch(0, 0, 4)
    drawn = channel_noise(rng, torch.zeros(4, 3, 5, 6, dtype=F64))
    assert drawn.shape == (4, 3, 1, 1)
    assert drawn.std().item() == pytest.approx(1, abs=0.6)
    assert not channel_noise(rng, POINT).any()


NEGATIVE = PROMPT | {"negative/label": torch.tensor([[1]])}


def test_noise_free_distillation_leaves_the_negative_prompt_s_noise_out_where_there_is_much():
    cond, uncond, negative = (TWO.eps(X_T, T, c) for c in (PROMPT, {}, {"label": torch.tensor([1])}))
    guided = uncond + 7.5 * (cond - uncond)
    torch.testing.assert_close(pulled_by(config("nfsd"), cond=NEGATIVE), guided - negative)
    torch.testing.assert_close(pulled_by(config("nfsd", nfsd_split=0.41), cond=NEGATIVE), guided)
    with pytest.raises(UserError, match="'nfsd' needs a negative prompt"):
        pulled_by(config("nfsd"))


def test_the_classifier_score_moves_from_the_empty_to_the_negative_prompt():
    cond, uncond, negative = (TWO.eps(X_T, T, c) for c in (PROMPT, {}, {"label": torch.tensor([1])}))
    moving = config("csd", negative_share=(0.0, 0.0, 1.0, 100.0))
    for step, share in ((0, 0.0), (25, 0.25), (100, 1.0), (500, 1.0)):
        wanted = cond - share * negative - (1 - share) * uncond
        torch.testing.assert_close(pulled_by(moving, step=step, cond=NEGATIVE), wanted)
    torch.testing.assert_close(pulled_by(config("csd"), cond=NEGATIVE), cond - negative)
    with pytest.raises(UserError, match="needs a negative prompt"):
        pulled_by(moving)


def test_an_inverted_sample_is_pulled_to_what_the_teacher_makes_of_its_own_noise():
    """Without fresh noise and guidance, for a Gaussian: inversion is linear, so the noise found is ``(z - mean) c``."""
    mean, teacher = torch.tensor([[1.0, -2.0]], dtype=F64), gaussian(SD, [1.0, -2.0], 0.5)
    how = InversionConfig(steps=200, guidance_scale=1.0, eta=0.0, overshoot=0.0)
    got = pulled_by(config("sdi", sdi=how, guidance_scale=1.0), 9 * NOISE, teacher=teacher)
    ratio = got / (POINT - mean)
    assert ratio[0, 0].item() == pytest.approx(ratio[0, 1].item(), rel=0.05)
    a, s = LEVEL.alpha.item(), LEVEL.sigma.item()
    # along the flow (x_t - a mean)/sqrt(V_t) is constant; the sample stands for the least noise, where V is 0.25
    flow = a * mean + (a * a * 0.25 + s * s) ** 0.5 / 0.5 * (POINT - mean)
    own = (flow - a * POINT) / s
    wanted = pulled_by(config("x0", guidance_scale=1.0), own, teacher=teacher)
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0)
    assert not torch.allclose(got, pulled_by(config("sdi", guidance_scale=1.0), teacher=teacher))


def test_inversion_at_eta_one_is_noising():
    """A point mass knows its noise exactly: steps of fresh noise end in the law of noising from the start."""
    point = gaussian(SD, [0.3], 1e-6)
    x = torch.full((4000, 1), 0.3, dtype=F64)
    rng = QuickRng(0, 0, tuple(range(4000)))
    start = SD.add_noise(x, rng.normal("n", (1,), F64), times(50.0, 4000))
    found = invert(point, start, [50.0, 200.0, 400.0], {}, eta=1.0, rng=rng).x
    own = (found - LEVEL.alpha * 0.3) / LEVEL.sigma
    assert (own.mean().item(), own.std().item()) == pytest.approx((0, 1), abs=0.05)
    kept = SD.coefficients(times(50.0, 1))
    share = (kept.sigma / kept.alpha / (LEVEL.sigma / LEVEL.alpha)).item()
    correlation = torch.corrcoef(torch.stack([start[:, 0], found[:, 0]]))[0, 1].item()
    assert correlation == pytest.approx(share, abs=0.05)
    still = invert(TWO, X_T.repeat(2, 1), [torch.tensor([400.0, 400.0]), torch.tensor([400.0, 450.0])], {}).x
    torch.testing.assert_close(still[:1], X_T, rtol=0, atol=1e-12)
    torch.testing.assert_close(still[1:], invert(TWO, X_T, [400.0, 450.0], {}).x)


def test_annealed_numbers():
    assert [value_at((10.0, 100.0, 7.5, 20.0), s) for s in (0, 10, 15, 20, 99)] == [100, 100, 53.75, 7.5, 7.5]
    assert value_at(3.0, 7) == 3.0
    moving = config("sds", guidance_scale=(0.0, 1.0, 7.5, 10.0))
    torch.testing.assert_close(pulled_by(moving, step=10), pulled_by(config("sds", guidance_scale=7.5), step=10))
    torch.testing.assert_close(pulled_by(moving), pulled_by(config("sds", guidance_scale=1.0)))


@pytest.mark.parametrize("variant", ["ism", "sdi", "sjc", "nfsd"])
def test_the_teacher_is_not_differentiated_through_and_pieces_are_the_whole(variant):
    teacher, many = Watched(TWO), POINT.repeat(6, 1) + torch.arange(6, dtype=F64)[:, None] / 7
    law = SDSConfig(variant=variant)
    cond = {"label": torch.arange(6) % 2, "negative/label": torch.ones(6, 1, dtype=torch.long)}
    whole = pulled_by(law, x=many, cond=cond, teacher=teacher, rng=Rng.for_batch(0, 3, 6))
    assert not any(teacher.attached)
    pieces = [
        pulled_by(law, x=many[a:b], cond=batch_of(cond, a, b), rng=Rng.for_batch(0, 3, 6).select(a, b))
        for a, b in ((0, 2), (2, 3), (3, 6))
    ]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"variance_reduced": False}, "variance_reduced belongs to variant 'sjc', not 'sds'"),
        ({"variant": "csd", "ism": IntervalConfig(delta=0.1)}, "ism belongs to variant 'ism'"),
        ({"variant": "csd", "negative_share": 1.5}, "negative_share must lie"),
        ({"variant": "csd", "negative_share": (0.0, 0.0, 2.0, 10.0)}, "negative_share must lie"),
        ({"guidance_scale": (10.0, 1.0, 2.0, 5.0)}, "whole steps 0 <= start < end"),
        ({"guidance_scale": (0.0, 1.0, 2.0, 5.5)}, "whole steps"),
        ({"variant": "x0", "views": 4}, "give rescale too"),
        ({"variant": "nfsd", "nfsd_split": 2.0}, "nfsd_split"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        SDSConfig(**given)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (IntervalConfig, {"delta": 0.0}),
        (IntervalConfig, {"inversions": -1}),
        (InversionConfig, {"steps": 0}),
        (InversionConfig, {"eta": 2.0}),
        (InversionConfig, {"overshoot": 1.0}),
    ],
)
def test_impossible_chains_are_refused(kind, given):
    with pytest.raises(UserError, match=next(iter(given))):
        kind(**given)
