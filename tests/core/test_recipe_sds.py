"""SDS and its relatives as a recipe: identities between the variants, collapse, scenes instead of students."""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import GRID, GridRng, QuickRng, Watched, at_level, descend, on_bed
from core.score_bed import F64, STUDENTS, TEACHERS, VP_LEVEL, Mixture, bed, gaussian

from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP, CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.sds import SDS, SDSConfig
from fewstep.core.recipes.vsd import VSD, VSDConfig
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig

SD = VP.scaled_linear()
T400 = at_level(SD, 400.0)
POINT, NOISE = torch.tensor([[0.3, 0.7]], dtype=F64), torch.tensor([[0.5, -1.0]], dtype=F64)
TWO = Mixture(SD, [0.5, 0.5], [[1.0, -2.0], [-1.0, 0.5]], [0.5, 0.5])


def gradient(config: SDSConfig, x: torch.Tensor, noise: torch.Tensor, teacher: Denoiser = TWO, label: int = 0):
    """What each sample of a scene is pulled by."""
    x = x.clone().requires_grad_()
    cond = {"label": torch.full((len(x),), label)}
    actors = Actors({"teacher": teacher}, teacher.process, tuple(x.shape[1:]), lambda b, r: (x, cond), dtype=F64)
    GRID["e"] = noise
    loss = SDS(config, actors).loss("student", Batch(len(x), cond), GridRng(0, 0, tuple(range(len(x)))), 0)
    return torch.autograd.grad(loss.total().sum(), x)[0]


def test_golden_sds_and_csd_of_two_classes():
    sds = gradient(SDSConfig(time=T400, guidance_scale=7.5, weight="uniform"), POINT, NOISE)
    assert sds[0].tolist() == pytest.approx([-3.8098830, 6.1440666], abs=1e-6)
    csd = gradient(SDSConfig(time=T400, variant="csd", weight="uniform"), POINT, NOISE)
    assert csd[0].tolist() == pytest.approx([-0.4960710, 0.6200888], abs=1e-6)


def test_golden_mean_of_one_gaussian():
    teacher = gaussian(SD, [1.0, -2.0], 0.5)
    got = gradient(SDSConfig(time=T400, guidance_scale=1.0, weight="uniform"), POINT, 0 * NOISE, teacher)
    assert got[0].tolist() == pytest.approx([-0.5076, 1.9578], abs=1e-4)


@pytest.mark.parametrize("weight", ["uniform", "sigma2", "alpha_sigma2", "sigma"])
def test_weights_are_functions_of_the_noise_level(weight):
    a2 = 0.4244830
    factor = {"uniform": 1, "sigma2": 1 - a2, "alpha_sigma2": a2**0.5 * (1 - a2), "sigma": (1 - a2) ** 0.5}[weight]
    for variant in ("sds", "csd", "asd", "x0"):
        plain, got = (
            gradient(SDSConfig(time=T400, variant=variant, weight=w), POINT, NOISE) for w in ("uniform", weight)
        )
        torch.testing.assert_close(got, factor * plain, rtol=1e-6, atol=0)


def test_identities_between_the_variants():
    def of(**settings) -> torch.Tensor:
        return gradient(SDSConfig(time=T400, weight="uniform", **settings), POINT, NOISE)

    c = SD.coefficients(torch.tensor([400.0]))
    sds, csd = of(guidance_scale=7.5), of(variant="csd")
    torch.testing.assert_close(of(variant="x0", guidance_scale=7.5), c.sigma / c.alpha * sds, rtol=1e-10, atol=0)
    torch.testing.assert_close(sds, of(guidance_scale=0.0) + 7.5 * csd, rtol=1e-10, atol=0)
    torch.testing.assert_close(of(variant="asd", asd_ratio=0.0), 6.5 * csd, rtol=1e-10, atol=0)


def test_asd_compares_with_a_noisier_time():
    law = TimeConfig(low=100 / 999, high=400 / 999)
    config = SDSConfig(time=law, variant="asd", asd_ratio=0.5, weight="uniform", guidance_scale=2.0)
    x, noise = POINT.repeat(16, 1), NOISE.repeat(16, 1)
    rng, cond = GridRng(0, 0, tuple(range(16))), {"label": torch.zeros(16, dtype=torch.long)}
    t = law.draw(SD, rng, "noised/t")
    later = (t + rng.uniform("asd") * 0.5 * (t - 100)).round()
    assert (later - t).max() > 20
    x_t = SD.add_noise(x, noise, t)
    with_cond, without = TWO.eps(x_t, t, cond), TWO.eps(x_t, t, TWO.null(cond))
    want = without + 2 * (with_cond - without) - TWO.eps(SD.add_noise(x, noise, later), later, cond)
    torch.testing.assert_close(gradient(config, x, noise), want, rtol=1e-10, atol=1e-12)


def test_rescaled_guidance_takes_its_spread_over_the_views_of_one_object():
    rng = QuickRng(0, 0, tuple(range(8)))
    x, noise = rng.normal("x", (2,), F64), rng.normal("n", (2,), F64)
    got = gradient(SDSConfig(time=T400, variant="x0", weight="uniform", rescale=0.5, views=4), x, noise)
    t, cond = torch.full((8,), 400.0, dtype=F64), {"label": torch.zeros(8, dtype=torch.long)}
    x_t = SD.add_noise(x, noise, t)
    with_cond, without = TWO.x0(x_t, t, cond), TWO.x0(x_t, t, TWO.null(cond))
    guided = without + 7.5 * (with_cond - without)
    want = []
    for rows in (slice(0, 4), slice(4, 8)):
        scaled = guided[rows] * with_cond[rows].std() / guided[rows].std()
        want.append(x[rows] - 0.5 * scaled - 0.5 * guided[rows])
    torch.testing.assert_close(got, torch.cat(want), rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="groups of 4"):
        gradient(SDSConfig(variant="x0", rescale=0.5, views=4), x[:6], noise[:6])


@pytest.mark.parametrize("name", ["R1", "R2"])
def test_the_expected_gradient_lacks_the_term_that_keeps_a_generator_wide(name):
    """For a linear generator only the teacher's half of the KL gradient is left; the width always shrinks."""
    here = bed(name)
    config = SDSConfig(time=at_level(here.process, VP_LEVEL), guidance_scale=1.0)
    _, terms = on_bed(SDS, config, here)
    k, b = here.gradient(terms.total())
    score = here.teacher.score(here.x_t, here.t, {}).detach()
    want = here.gradient(-(0.6**3) * score[:, 0] * here.x0[:, 0])
    assert (k, b) == pytest.approx(want, abs=1e-9)
    if name == "R1":
        (width, centre), ((_,), (mean,), (std,)) = STUDENTS["R1"], TEACHERS["R1"]
        variance = 0.8**2 * std**2 + 0.36
        assert (k, b) == pytest.approx(
            [0.6**3 * 0.8 * width / variance, 0.6**3 * 0.8 * (centre - mean) / variance], abs=1e-9
        )


def test_the_teacher_is_never_differentiated_through():
    teacher = Watched(TWO)
    for variant in ("sds", "csd", "asd", "x0"):
        gradient(SDSConfig(variant=variant), POINT, NOISE, teacher)
    assert teacher.attached
    assert not any(teacher.attached)


def test_csd_costs_one_doubled_evaluation():
    teacher = Watched(TWO)
    gradient(SDSConfig(variant="csd"), POINT, NOISE, teacher)
    assert len(teacher.attached) == 1


class Fitted(Denoiser):
    """The exact score of the Gaussian with the particles' own mean and spread."""

    def __init__(self, process, particles):
        self.process, self.particles = process, particles

    def predict(self, x_t, t, cond):
        points = self.particles.detach()
        return gaussian(self.process, points.mean().item(), points.std().item()).predict(x_t, t, cond)


@pytest.mark.parametrize("method", ["sds", "vsd"])
def test_sds_collapses_particles_and_vsd_spreads_them(method):
    process = CosineVP()
    particles = (QuickRng(3, 0, tuple(range(512))).normal("particles", (1,), F64)).requires_grad_()
    roles = {"teacher": gaussian(process, 1.5, 0.4), "fake_score": Fitted(process, particles)}
    actors = Actors(roles, process, (1,), lambda batch, rng: (particles, {}), dtype=F64)
    recipe = SDS(SDSConfig(guidance_scale=1.0), actors) if method == "sds" else VSD(VSDConfig(), actors)
    recipe.phases = lambda config: tuple(p for p in type(recipe).phases(config) if p.name == "student")
    # the loop averages over the batch: 512 undoes it, and each particle moves by 0.1 of its own gradient
    sgd = {"student": 0.1 * 512}
    descend(recipe, {"student": [particles]}, sgd, steps=500, batch=512, make=torch.optim.SGD)
    assert particles.mean().item() == pytest.approx(1.5, abs=0.02)
    if method == "sds":
        assert particles.var().item() < 1e-3
    else:
        assert particles.var().item() == pytest.approx(0.16, abs=0.01)


def test_a_student_network_is_trained_and_the_teacher_left_alone():
    network = NetworkDenoiser(MLPBackbone(2, width=16, depth=1, num_classes=2), SD, Plain(Kind.EPS))
    roles = build_roles(network, SDS.role_specs(SDSConfig()), RolesConfig(), 0)
    recipe = SDS(SDSConfig(), Actors(roles, SD, (2,)))
    batch = Batch(4, {"label": torch.tensor([0, 1, 0, 1])})
    terms = recipe.loss("student", batch, Rng.for_batch(0, 0, 4), 0)
    terms.total().mean().backward()
    assert all(p.grad is None for p in recipe.actors.module("teacher").parameters())
    assert max(p.grad.abs().max() for p in recipe.actors.module("student").parameters() if p.grad is not None) > 0
    assert terms.metrics["gap"].shape == (4,)
    assert recipe.plan(recipe.config, SD, 1).times == (999.0,)


def test_mean_divides_the_gradient_by_the_number_of_elements():
    total, mean = (gradient(SDSConfig(time=T400, reduction=r), POINT, NOISE) for r in ("sum", "mean"))
    torch.testing.assert_close(total, 2 * mean)


@pytest.mark.parametrize(
    ("given", "said"), [({"rescale": 2.0}, "rescale"), ({"views": 0}, "views"), ({"asd_ratio": -0.1}, "asd_ratio")]
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        SDSConfig(**given)
