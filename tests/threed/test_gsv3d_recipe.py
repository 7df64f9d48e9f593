"""The recipe: what each stage trains, what both stages share, consistency gained, and score distillation to orbits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from threed.orbit_bed import PROCESS, BallDecoder, Free, free_recipe, orbit_batch, reads
from torch import Tensor

from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.errors import UserError
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.process import EDM
from fewstep.core.recipe import Actors, RoleSpec
from fewstep.core.rng import Rng
from fewstep.core.times import TimeConfig
from fewstep.threed.metrics.views import View, view_consistency
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder
from fewstep.threed.orbit.network import OrbitUNet
from fewstep.threed.orbit.pixels import to_pixels
from fewstep.threed.orbit.reading import KarrasV
from fewstep.threed.orbit.supervision import OrbitGeometry, PixelCodec, render_clouds
from fewstep.threed.recipes.gsv3d import GSV3D, GSV3DConfig

GEOMETRY = OrbitGeometry(size=16)
SMALL = DecoderConfig(width=16, layers=1, heads=2, upsample=1)
CONFIG = GSV3DConfig(decoder=SMALL, geometry=GEOMETRY, decoder_steps=1, latent_noise=0.0)
QUIET = EDM(sigma_min=1e-6, sigma_max=80.0, sigma_data=1.0)
RNG = Rng.for_batch(0, 3, 1)


def small_recipe(config: GSV3DConfig, process: EDM = PROCESS) -> GSV3D:
    """The recipe with LoRA over a small network, as a domain builds it."""
    teacher = NetworkDenoiser(OrbitUNet.make(48, 4, 4, widths=(16, 16), heads=2), process, KarrasV())
    roles = build_roles(teacher, GSV3D.role_specs(config), RolesConfig(mode="lora", rank=2), 0)
    return GSV3D(config, Actors(dict(roles), process, (4, 48, 4, 4)))


def gradients(recipe: GSV3D, role: str) -> list[Tensor]:
    return [p.grad for p in recipe.actors.module(role).parameters() if p.grad is not None and bool(p.grad.any())]


def test_stage_1_trains_the_decoder_alone() -> None:
    recipe = small_recipe(CONFIG)
    recipe.loss("decoder", orbit_batch(GEOMETRY, 4), RNG, 0).total().sum().backward()
    assert gradients(recipe, "decoder")
    assert not gradients(recipe, "student")


def test_renders_alone_reach_the_factors_of_the_student_and_never_the_base() -> None:
    recipe = small_recipe(replace(CONFIG, levels="law", time=TimeConfig(law="lognormal", mean=-1.0, std=0.1)))
    terms = recipe.loss("student", orbit_batch(GEOMETRY, 4), RNG, 1).terms
    assert set(terms) == {"diffusion", "rgb", "depth", "mask"}
    (terms["rgb"] + terms["depth"] + terms["mask"]).sum().backward()
    view = recipe.actors.module("student")
    assert gradients(recipe, "student")
    assert all(".lora_" in f".{name}" for name, p in view.named_parameters() if p.grad is not None)
    base = [p for name, p in view.shared.network.named_parameters() if ".lora_" not in name]  # type: ignore[union-attr]
    assert base
    assert not any(p.requires_grad or p.grad is not None for p in base)


def test_without_noise_both_stages_have_the_same_losses_in_3d() -> None:
    config = replace(CONFIG, levels="law", label_dropout=0.0, time=TimeConfig(law="lognormal", mean=-30.0, std=0.1))
    recipe, batch = small_recipe(config, QUIET), orbit_batch(GEOMETRY, 4)
    first = recipe.loss("decoder", batch, RNG, 0).terms
    second = recipe.loss("student", batch, RNG, 1).terms
    for name, value in first.items():
        assert torch.allclose(second[name], value, rtol=1e-3), name


def test_the_phases_follow_each_other_and_the_decoder_may_go_on() -> None:
    first, second = GSV3D.phases(replace(CONFIG, decoder_steps=5, train_decoder=True))
    assert [first.due(step) for step in (0, 4, 5)] == [True, True, False]
    assert [second.due(step) for step in (0, 4, 5)] == [False, False, True]
    assert (first.trains, second.trains) == (("decoder",), ("student", "decoder"))
    assert [phase.name for phase in GSV3D.phases(replace(CONFIG, decoder_steps=0))] == ["student"]
    with pytest.raises(UserError, match="made for 4 step"):
        GSV3D.plan(CONFIG, PROCESS, 2)


def test_the_gate_is_the_signals_share_or_a_cut() -> None:
    recipe, tau = small_recipe(CONFIG), torch.tensor([0.0, 1.0, 3.0])
    assert torch.allclose(recipe.gate(tau), torch.tensor([1.0, 0.5, 0.1]))
    recipe.config = replace(CONFIG, gate="cut", gate_cut=2.0)
    assert torch.equal(recipe.gate(tau), torch.tensor([1.0, 1.0, 0.0]))


def reprojection_error(latents: Tensor, truth: Tensor, batch: dict[str, Tensor]) -> float:
    """Mean square of views against their neighbours carried over by the true depth."""
    camera = GEOMETRY.cameras(batch["azimuth"], batch["polar"])
    turned = torch.arange(len(camera)).roll(-1)
    rgb, depth = to_pixels(latents)[0], truth[0]
    view = View(rgb, depth, camera.world_to_camera, camera.intrinsics)
    other = View(rgb[turned], depth[turned], camera.world_to_camera[turned], camera.intrinsics[turned])
    return float((10 ** (-view_consistency(view, other, tolerance=0.05).psnr / 10)).mean())


def test_renders_make_independently_noisy_views_agree_by_a_third_more_than_denoising_alone() -> None:
    clean = orbit_batch(GEOMETRY, 8)
    noisy = replace(clean, x0=clean.clean_samples("") + 0.25 * RNG.normal("views", (8, 48, 4, 4)))
    errors = []
    for weight in (0.0, 30.0):
        config = replace(CONFIG, weighting="uniform", weight_3d=weight, student_times=(0.3,), student_steps=1)
        recipe, free = free_recipe(torch.zeros(1, 8, 48, 4, 4), BallDecoder(GEOMETRY), config)
        optimizer = torch.optim.Adam(free.parameters(), lr=0.15)
        for step in range(20):
            optimizer.zero_grad()
            recipe.loss("student", noisy, RNG.at_step(step), step).total().sum().backward()
            optimizer.step()
        print("E", weight)
        errors.append(reprojection_error(free.latents.detach(), clean.cond["seen_depth"], dict(clean.cond)))
    print(errors)
    assert errors[1] < 0.7 * errors[0]


def test_score_distillation_pulls_renders_to_what_the_teacher_makes_of_them() -> None:
    batch = orbit_batch(GEOMETRY, 8)
    config = replace(CONFIG, guide="score", student_times=(0.3,), student_steps=1, guidance_most=1.0)
    truth = batch.clean_samples("")
    teacher = reads(Free(truth))  # it always says the truth
    recipe, free = free_recipe(torch.zeros_like(truth), BallDecoder(GEOMETRY), config, teacher=teacher)
    optimizer, gaps = torch.optim.Adam(free.parameters(), lr=0.1), []
    for step in range(12):
        optimizer.zero_grad()
        terms = recipe.loss("student", batch, RNG.at_step(step), step)
        terms.total().sum().backward()
        optimizer.step()
        camera = GEOMETRY.cameras(batch.cond["azimuth"], batch.cond["polar"])
        made = render_clouds(recipe.clouds(free.latents.detach(), batch.cond), camera)
        gaps.append(float((made.rgb - to_pixels(truth)).square().mean()))
    assert gaps[-1] < 0.5 * gaps[0]
    assert RoleSpec("teacher", init="frozen") in GSV3D.role_specs(config)


def test_a_cloud_nobody_sees_is_white_and_keeps_its_graph() -> None:
    decoder = GaussianDecoder(SMALL)
    with torch.no_grad():
        decoder.head.bias[3] = -30
    batch = orbit_batch(GEOMETRY, 4)
    camera = GEOMETRY.cameras(batch.cond["azimuth"], batch.cond["polar"])
    made = render_clouds(decoder.gaussians(batch.clean_samples(""), camera), camera)
    assert torch.equal(made.rgb, torch.ones_like(made.rgb))
    assert made.alpha.requires_grad


def test_codecs_must_encode_and_pixels_lose_nothing() -> None:
    recipe = small_recipe(CONFIG)
    recipe.actors.roles["codec"] = torch.nn.Identity()
    with pytest.raises(UserError, match="role 'codec' must turn pixels into latents"):
        _ = recipe.codec
    assert torch.allclose(
        PixelCodec().decode(PixelCodec().encode(torch.rand(2, 3, 8, 8))).mean(), torch.tensor(0.5), atol=0.2
    )
