"""DMD2's two scores: a LoRA fake and the share of it in the teacher, drawn guidance scales, flow matching's numbers.

The gradient's identity and that no network is differentiated: test_losses_integral, test_recipe_dmd2; guidance between
two Gaussians for every recipe: test_check.
"""

from __future__ import annotations

import pytest
import torch
from core.recipe_bed import QuickRng
from core.score_bed import F64, gaussian
from torch import nn
from torch.testing import assert_close

from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Plain
from fewstep.core.errors import UserError
from fewstep.core.networks.adapters import lora_state
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import RectifiedFlow, times
from fewstep.core.recipe import Actors, Batch
from fewstep.core.recipes.dmd2 import DMD2, DMD2Config
from fewstep.core.recipes.f_distill import FDistill, FDistillConfig
from fewstep.core.recipes.rollout import Sample, noised_at
from fewstep.core.rng import Rng

FLOW = RectifiedFlow(shift=5.0)
LORA_FAKE = RolesConfig(overrides={"fake_score": "lora"}, rank=2, alpha=3.0)


# ---------------------------------------------------------------- numbers of flow matching


def test_a_grid_of_four_steps_under_shift_five():
    grid = DMD2.plan(DMD2Config(student_steps=4), FLOW, 4).times
    assert grid == pytest.approx((1.0, 0.9375, 5 / 6, 0.625), abs=1e-12)


@pytest.mark.parametrize(("t", "expected"), [(0.2, -0.2), (0.5, -0.8), (0.8, -0.8 * 0.64 / 0.52)])
def test_the_expected_pull_between_gaussians(t, expected):
    """(m_g - m_r) t^2 / ((1-t)^2 s_r^2 + t^2) for data N(1, 1/4), samples N(0, 1)."""
    real, fake = gaussian(FLOW, 1.0, 0.5), gaussian(FLOW, 0.0, 1.0)
    recipe = DMD2(DMD2Config(), Actors({"teacher": real, "fake_score": fake, "student": fake}, FLOW, (1,), dtype=F64))
    axis = torch.linspace(-3, 3, 21, dtype=F64)
    x0, eps = (part.reshape(-1, 1) for part in torch.meshgrid(axis, axis, indexing="ij"))  # symmetric: means are 0
    sample = Sample(x0, {})
    at = noised_at(FLOW, sample, times(t, len(x0)), eps)
    below, above = recipe.clean_pair(sample, at, Rng(0, 0, ()), through=False)
    assert (above - below).mean().item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx({0.2: -0.2, 0.5: -0.8, 0.8: -0.9846}[t], abs=1e-4)


class Told(Denoiser):
    """N(mean of the label, std^2); notes the condition it is asked under."""

    def __init__(self, means, std):
        self.process, self.means, self.std, self.seen = FLOW, torch.tensor(means, dtype=F64), std, []

    def null(self, cond):
        return dict(cond) | {"label": torch.zeros_like(cond["label"])}

    def predict(self, x_t, t, cond):
        self.seen.append(cond)
        mean = self.means[cond["label"]][:, None]
        c = self.process.coefficients(t)
        shifted = gaussian(self.process, 0.0, self.std).predict(x_t - c.alpha[:, None] * mean, t, {})
        assert shifted.kind is Kind.X0
        return type(shifted)(shifted.value + mean, Kind.X0)


def gradient(config, roles, label=1, n=16):
    """The student's gradient at fixed samples, with the recipe."""
    cond = {"label": torch.full((n,), label)}
    actors = Actors(roles, FLOW, (1,), dtype=F64)
    recipe = DMD2(config, actors)
    rng = QuickRng(0, 0, tuple(range(n)))
    shift = torch.zeros((), dtype=F64, requires_grad=True)
    moved = roles["student"]

    class Moved(Denoiser):
        process = FLOW

        def predict(self, x_t, t, given):
            found = moved.predict(x_t, t, given)
            return type(found)(found.value + shift * torch.ones_like(found.value), found.kind)

    recipe.actors.roles["student"] = Moved()
    return recipe, torch.stack(
        [
            torch.autograd.grad(value, shift, retain_graph=True)[0]
            for value in recipe.loss("student", Batch(n, cond), rng, 0).terms["matching"]
        ]
    )


def test_distilled_guidance_is_the_gaussian_of_the_guided_mean():
    """N(m_u + s (m_c - m_u), std^2) is where nothing pulls; s = 1 is the conditional."""
    for scale in (1.0, 3.0):
        aim = -0.5 + scale * (0.7 + 0.5)
        for mean, rests in ((aim, True), (aim + 0.1, False)):
            fake = Told([mean, mean], 0.4)
            roles = {"teacher": Told([-0.5, 0.7], 0.4), "fake_score": fake, "student": fake}
            _, pull = gradient(DMD2Config(guidance_scale=scale, normalise=False), roles)
            assert (pull.abs().max().item() < 1e-12) is rests
            assert rests or pull.min().item() > 0


def test_scales_drawn_from_a_range_are_those_student_and_fake_score_are_told():
    config = DMD2Config(guidance_scale=2.0, guidance_max=6.0, normalise=False)
    fake, student = Told([0.1, 0.1], 0.4), Told([0.1, 0.1], 0.4)
    _, pull = gradient(config, {"teacher": Told([-0.5, 0.7], 0.4), "fake_score": fake, "student": student})
    scale = fake.seen[-1]["guidance"]
    assert torch.equal(scale, student.seen[-1]["guidance"])
    assert scale.min() >= 2.0
    assert scale.max() <= 6.0
    assert scale.std() > 0.5
    # the pull's mean over noise: at each sample it is the fixed scale's, which is affine in the scale
    fixed = [
        gradient(
            DMD2Config(guidance_scale=s, normalise=False),
            {"teacher": Told([-0.5, 0.7], 0.4), "fake_score": Told([0.1, 0.1], 0.4), "student": student},
        )[1]
        for s in (0.0, 1.0)
    ]
    assert_close(pull, fixed[0] + scale * (fixed[1] - fixed[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("recipe", "config"), [(DMD2, DMD2Config), (FDistill, FDistillConfig)])
def test_a_range_adds_an_input_and_a_scale_to_sample_at(recipe, config):
    ranged = config(guidance_scale=2.0, guidance_max=6.0, student_steps=2)
    extras = {spec.name: spec.extras for spec in recipe.role_specs(ranged)}
    assert extras["student"] == extras["fake_score"] == ("guidance",)
    assert extras["teacher"] == ()
    assert recipe.plan(ranged, FLOW, 2).extras == {"guidance": 4.0}
    assert recipe.plan(config(student_steps=2), FLOW, 2).extras == {}
    assert all(not spec.extras for spec in recipe.role_specs(config()))
    with pytest.raises(UserError, match="guidance_max must exceed"):
        config(guidance_scale=2.0, guidance_max=1.0)
    fake = gaussian(FLOW, 0.0, 1.0)
    roles = {"teacher": fake, "fake_score": fake, "discriminator": nn.Identity()}
    with pytest.raises(UserError, match="makes samples itself"):
        recipe(ranged, Actors(roles, FLOW, (1,), generate=lambda batch, rng: (torch.zeros(1, 1), {})))


def test_networks_train_at_drawn_scales():
    config = DMD2Config(guidance_scale=1.0, guidance_max=4.0, student_steps=2)
    network = NetworkDenoiser(MLPBackbone(2, width=8, depth=1, num_classes=2), FLOW, Plain(Kind.VELOCITY))
    for mode in ("full", "lora"):
        roles = build_roles(network, DMD2.role_specs(config), RolesConfig(mode=mode, rank=2), 0)
        recipe = DMD2(config, Actors(roles, FLOW, (2,)))
        for phase, name in (("fake_score", "fake_score"), ("student", "student")):
            total = recipe.loss(phase, Batch(4, {"label": torch.arange(4) % 2}), Rng.for_batch(0, 0, 4), 0).total()
            total.mean().backward()
            outer = recipe.actors.module(name).extra_inputs.embeddings["guidance"].outer
            assert outer.weight.grad.abs().max() > 0


# ---------------------------------------------------------------- a LoRA fake score


def lora_recipe(seed=None, config=LORA_FAKE, **options):
    """DMD2 with a LoRA fake score over its teacher; ``seed``: random factors in place of the initial ones."""
    backbone = MLPBackbone(2, width=8, depth=1, num_classes=3, time_scale=100.0).double()
    network = NetworkDenoiser(backbone, FLOW, Plain(Kind.VELOCITY))
    settings = DMD2Config(**options)
    roles = build_roles(network, DMD2.role_specs(settings), config, 0)
    if seed is not None:
        with torch.no_grad():
            for i, factor in enumerate(roles["fake_score"].backbone.parameters()):
                factor.copy_(0.3 * Rng(seed, i, tuple(range(len(factor)))).normal("f", factor.shape[1:], F64))
    return DMD2(settings, Actors(dict(roles), FLOW, (2,), dtype=F64))


def pair(recipe):
    """Both scores' clean predictions at fixed points, and those points."""
    n = 6
    rng = Rng.for_batch(3, 0, n)
    x0, cond = rng.normal("x0", (2,), F64), {"label": torch.arange(n) % 3}
    sample = Sample(x0, cond)
    at = noised_at(FLOW, sample, rng.uniform("t"), rng.normal("eps", (2,), F64))
    real, fake = recipe.clean_pair(sample, at, rng, through=False)
    return real, fake, at, cond


def test_at_the_start_the_fake_score_is_the_teacher_and_only_guidance_pulls():
    real, fake, *_ = pair(lora_recipe())
    assert torch.equal(real, fake)
    recipe = lora_recipe(guidance_scale=3.5)
    real, fake, at, cond = pair(recipe)
    teacher = recipe.actors.denoiser("teacher")
    with torch.no_grad():
        told, untold = (teacher.x0(at.x_t, at.t, c) for c in (cond, teacher.null(cond)))
    assert_close(fake - real, -2.5 * (told - untold), rtol=0, atol=1e-12)
    assert (fake - real).abs().max() > 1e-3


def test_the_whole_lora_in_the_teacher_leaves_nothing_to_learn():
    real, fake, *_ = pair(lora_recipe(seed=1, real_lora_scale=1.0))
    assert torch.equal(real, fake)
    real, fake, *_ = pair(lora_recipe(seed=1))
    assert (real - fake).abs().max() > 1e-2


def test_a_share_of_the_lora_is_that_share_added_to_the_weights():
    recipe = lora_recipe(seed=1, real_lora_scale=0.25)
    before = lora_state(recipe.actors.module("fake_score"))
    real, fake, at, cond = pair(recipe)
    plain = MLPBackbone(2, width=8, depth=1, num_classes=3, time_scale=100.0).double()
    with torch.no_grad():
        for name, layer in plain.network.named_modules():
            if f"unet.{name}.lora_A.weight" in before:
                up, down = (before[f"unet.{name}.lora_{factor}.weight"] for factor in "BA")
                layer.weight += 0.25 * up @ down
        expected = NetworkDenoiser(plain, FLOW, Plain(Kind.VELOCITY)).x0(at.x_t, at.t, cond)
    assert_close(real, expected, rtol=0, atol=1e-12)
    # nothing of it stays: the fake score acts whole, the teacher not at all
    again = pair(lora_recipe(seed=1))
    assert torch.equal(fake, again[1])
    after = lora_state(recipe.actors.module("fake_score"))
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(recipe.actors.denoiser("teacher").x0(at.x_t, at.t, cond), again[0])


def test_shares_nest_and_are_put_back_after_errors():
    recipe = lora_recipe(seed=1, config=RolesConfig(mode="lora", rank=2))
    view = recipe.actors.module("fake_score")
    shared = view.shared
    scales = {path: dict(layer.scaling) for path, layer in shared.layers.items()}

    def fail():
        with shared.acting("fake_score", 0.25), shared.acting("student"):
            assert (shared.active, shared.strength) == ("student", 1.0)
            assert all(layer.scaling["fake_score"] == 1.0 for layer in shared.layers.values())
            with shared.acting("fake_score", 0.5):
                assert all(layer.scaling == {"student": 1.0, "fake_score": 0.5} for layer in shared.layers.values())
                raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert (shared.active, shared.strength) == (None, 1.0)
    assert {path: dict(layer.scaling) for path, layer in shared.layers.items()} == scales
    with pytest.raises(UserError, match="cannot act in part"):
        view.with_extras(("guidance",), 0).weakened(0.5)


def test_recomputed_activations_see_the_share_that_acted():
    recipe = lora_recipe(seed=1)
    shared = recipe.actors.module("fake_score").shared
    layer = shared.network.get_submodule("stem")
    x = torch.ones(3, 2, dtype=F64, requires_grad=True)

    def gradient_of(run):
        with shared.acting("fake_score", 0.25):
            out = run(lambda value: layer(value).square(), x).sum()
        return torch.autograd.grad(out, x)[0]

    assert torch.equal(gradient_of(shared.checkpointed), gradient_of(lambda function, value: function(value)))


def test_a_share_trains_the_student_and_never_the_teacher():
    recipe = lora_recipe(seed=1, config=RolesConfig(mode="lora", rank=2), real_lora_scale=0.25, guidance_scale=2.0)
    with torch.no_grad():
        for factor in recipe.actors.module("student").parameters():
            factor.add_(0.1)
    loss = recipe.loss("student", Batch(4, {"label": torch.arange(4) % 3}), Rng.for_batch(0, 0, 4), 0)
    loss.total().mean().backward()
    assert all(p.grad is not None for p in recipe.actors.module("student").parameters())
    assert all(p.grad is None for p in recipe.actors.module("fake_score").parameters())


def test_a_share_needs_a_lora_over_the_teacher():
    with pytest.raises(UserError, match=r"roles\.overrides\.fake_score=lora"):
        lora_recipe(config=RolesConfig(), real_lora_scale=0.25)
    fake = gaussian(FLOW, 0.0, 1.0)
    with pytest.raises(UserError, match="real_lora_scale is for networks"):
        DMD2(
            DMD2Config(real_lora_scale=0.25),
            Actors(dict.fromkeys(("student", "teacher", "fake_score"), fake), FLOW, (1,)),
        )
    with pytest.raises(UserError, match="must lie in"):
        DMD2Config(real_lora_scale=1.5)
    with pytest.raises(UserError, match="give one of them"):
        DMD2Config(real_lora_scale=0.5, guidance_max=3.0)
