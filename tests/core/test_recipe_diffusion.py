from __future__ import annotations

import math

import pytest
import torch
from core.gaussian_bed import MEAN, PROCESSES, STD, ExactGaussian
from core.tiny_loop import make_recipe, mlp_teacher, train
from torch.testing import assert_close

from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind
from fewstep.core.process import CosineVP
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.diffusion import Diffusion, DiffusionConfig, drop_condition
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample
from fewstep.core.times import TimeConfig

KINDS = [Kind.EPS, Kind.X0, Kind.V, Kind.FLOW, Kind.VELOCITY]
INNER = TimeConfig(low=0.05, high=0.95)


def data(rng: Rng, dtype=torch.float64) -> Batch:
    return Batch(len(rng.ids), {}, MEAN + STD * rng.normal("x0", (1,), dtype))


def with_exact(process, kind, mean=MEAN, **settings) -> Diffusion:
    roles = {"student": ExactGaussian(process, kind, mean=mean)}
    return Diffusion(DiffusionConfig(**{"time": INNER, **settings}), Actors(roles, process, (1,), dtype=torch.float64))


def value(recipe, n=512):
    rng = Rng.for_batch(0, 0, n)
    return recipe.loss("denoise", data(rng), rng, 0).terms["denoise"]


@pytest.mark.parametrize("name", ["vp", "cosine", "edm", "flow", "trigflow", "residual"])
def test_posterior_mean_is_the_best_network(name):
    """The expected loss of every parameterisation is least at the exact denoiser."""
    process = PROCESSES[name]
    rng = Rng.for_batch(0, 0, 1)
    cond = {"anchor": torch.zeros(1, 100_000).double()} if process.has_anchor else {}
    batch = Batch(1, cond, MEAN + STD * rng.normal("x0", (100_000,), torch.float64))
    for kind in (Kind.X0, Kind.EPS, Kind.V):
        losses = [
            with_exact(process, kind, mean=mean).loss("denoise", batch, rng, 0).terms["denoise"].item()
            for mean in (MEAN - 0.2, MEAN, MEAN + 0.2)
        ]
        assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("kind", KINDS)
def test_named_weightings_do_not_depend_on_what_the_network_predicts(kind):
    for weighting in ("uniform", "snr", "truncated_snr", "min_snr", "karras"):
        ours = value(with_exact(CosineVP(), kind, weighting=weighting))
        assert_close(ours, value(with_exact(CosineVP(), Kind.X0, weighting=weighting)), rtol=1e-7, atol=1e-10)


def test_native_losses_are_the_named_ones():
    """eps: SNR; v of a variance-preserving process: SNR + 1; eps - x0: the flow weight; x0: uniform."""
    for kind, weighting in (
        (Kind.EPS, "snr"),
        (Kind.V, "snr_plus_one"),
        (Kind.FLOW, "flow"),
        (Kind.X0, "uniform"),
    ):
        native, named = (value(with_exact(CosineVP(), kind, weighting=w)) for w in ("native", weighting))
        assert_close(native, named, rtol=1e-7, atol=1e-10)
    velocity = value(with_exact(CosineVP(), Kind.VELOCITY))
    assert_close(velocity, (math.pi / 2) ** 2 * value(with_exact(CosineVP(), Kind.V)), rtol=1e-9, atol=1e-12)


def test_full_noise_range_is_finite_for_networks_that_see_data_there():
    recipe = with_exact(CosineVP(), Kind.V, time=TimeConfig(low=0.0, high=1.0))
    assert value(recipe).isfinite().all()


def test_conditions_are_dropped_at_the_configured_share_and_by_the_network_s_null():
    network = mlp_teacher(CosineVP(), num_classes=4)
    rng = Rng.for_batch(0, 0, 4000)
    cond = {"label": rng.integers("label", 4), "image": torch.arange(4000.0)[:, None]}
    dropped = drop_condition(network, cond, 0.1, rng)
    changed = dropped["label"] != cond["label"]
    assert changed.double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert bool((dropped["label"][changed] == 4).all())
    assert torch.equal(dropped["image"], cond["image"])
    assert drop_condition(network, cond, 0.0, rng) is cond
    with pytest.raises(UserError, match="unconditional"):
        drop_condition(mlp_teacher(CosineVP(), num_classes=4, null_class=False), cond, 0.1, rng)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="label_dropout"):
        DiffusionConfig(label_dropout=1.0)


def test_teacher_learns_and_samples_under_guidance():
    """Two classes at +-1: the trained network's samples sit there, and its unconditional samples at both."""
    process = CosineVP()
    config = DiffusionConfig(label_dropout=0.2, time=TimeConfig(low=0.0, high=1.0))
    recipe = make_recipe(Diffusion, config, mlp_teacher(process, num_classes=2, time_scale=0.1))

    def classes(rng: Rng) -> Batch:
        generator = torch.Generator().manual_seed(rng.step)
        label = torch.randint(2, (128,), generator=generator)
        return Batch(128, {"label": label}, 2.0 * label[:, None] - 1 + 0.1 * torch.randn(128, 1, generator=generator))

    losses = train(recipe, classes, steps=250, batch=128, lr=5e-3)
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    student = recipe.actors.denoiser("student")
    with torch.no_grad():
        for label in (0, 1):
            x = teacher_sample(student, (1,), {"label": torch.full((100,), label)}, Rng.for_batch(1, 0, 100), steps=20)
            assert x.mean().item() == pytest.approx(2.0 * label - 1, abs=0.25)
        x = teacher_sample(student, (1,), {"label": torch.full((200,), 2)}, Rng.for_batch(2, 0, 200), steps=20)
    assert x.std().item() > 0.6
    assert recipe.plan(config, process, 4).times == (1.0, 0.75, 0.5, 0.25)
    assert recipe.plan(config, process, 4).mode == "deterministic"
    assert [spec.init for spec in Diffusion.role_specs(DiffusionConfig(init="teacher"))] == ["teacher"]
