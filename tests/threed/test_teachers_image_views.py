"""Teachers that are shown a picture: what their networks are handed, what nothing means, which folders are theirs."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from threed.judge_bed import QUIET, SMALL, camera_at, normal, picture, true_views, zero123
from threed.scene_bed import difference, threed
from threed.test_gsv3d_networks import svd_folder

from fewstep.core.errors import UserError
from fewstep.core.models.files import PipelineFolder
from fewstep.core.rng import Rng
from fewstep.threed.cameras import orbit_angles
from fewstep.threed.orbit.convention import orbit_azimuths
from fewstep.threed.orbit.pixels import prepare, read_picture
from fewstep.threed.settings import JudgeConfig, ThreedConfig
from fewstep.threed.teachers.image_views import OrbitJudge, Zero123Judge, load_projection
from fewstep.threed.teachers.opening import open_judge, teacher_process

T = torch.tensor([400.0])


@pytest.fixture(scope="module")
def cone(tmp_path_factory):
    return picture(tmp_path_factory.mktemp("cone") / "cone.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return zero123(tmp_path_factory.mktemp("zero") / "m")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return svd_folder(tmp_path_factory.mktemp("svd") / "m")


def config(teacher, image, **settings):
    return ThreedConfig(teacher=str(teacher), judge=JudgeConfig(image=str(image), **settings))


def test_a_turn_is_told_from_the_picture(folder, cone):
    judge = open_judge(config(folder, cone, image_elevation_deg=20.0))
    assert isinstance(judge, Zero123Judge)
    assert (judge.size, judge.shape) == (16, (4, 8, 8))
    told = judge.told(camera_at((0.0, 20.0), (90.0, -10.0), (180.0, 50.0)), judge.encode(["x"] * 3))["turn"]
    start = math.radians(70)
    thirty = math.radians(30)
    expected = [[0.0, 0.0, 1.0, start], [thirty, 1.0, 0.0, start], [-thirty, 0.0, -1.0, start]]
    assert difference(told, torch.tensor(expected)) < 1e-5


def test_the_network_sees_what_diffusers_own_would(folder, cone):
    judge, parts = open_judge(config(folder, cone)), PipelineFolder(folder, "", {
        "unet": ("diffusers", "UNet2DConditionModel")}, {}, "")  # fmt: skip
    cond = judge.told(camera_at((70.0, 0.0)), judge.encode(["whatever"]))
    x, unet, projection = normal(1, 4, 8, 8), parts.load("unet"), load_projection(folder / "cc_projection")
    with torch.no_grad():
        token = projection(torch.cat([cond["image_embeds"], cond["turn"]], 1))[:, None]
        theirs = unet(torch.cat([x, cond["image"]], 1), T, encoder_hidden_states=token).sample
        nothing = unet(torch.cat([x, 0 * x], 1), T, encoder_hidden_states=0 * token).sample
        ours = judge.teacher.predict(x, T, cond).value
        null = judge.teacher.predict(x, T, judge.teacher.null(cond)).value
        turned = judge.teacher.predict(x, T, {**cond, "turn": -cond["turn"]}).value
    assert torch.equal(ours, theirs)
    assert difference(null, nothing) < 1e-6
    assert difference(ours, null) > 1e-3
    assert difference(ours, turned) > 1e-3


def test_samples_are_scaled_latents_and_the_picture_an_unscaled_one(folder, cone):
    judge, camera = open_judge(config(folder, cone)), camera_at((0.0, 10.0))
    seen = true_views("a red cone", camera)
    vae = judge.space.vae
    latents = vae.encode(2 * seen.rgb - 1).latent_dist.mode()
    assert difference(judge.x0(seen, camera), latents * vae.config.scaling_factor) < 1e-6
    assert judge.pictures(judge.x0(seen, camera)).shape == seen.rgb.shape
    shown = prepare(read_picture(cone), 16, fit=True)[None]
    assert difference(judge.picture["image"], vae.encode(2 * shown - 1).latent_dist.mode()) < 1e-6


def test_orbits_are_seen_at_the_angles_their_network_knows(clip, cone):
    judge = open_judge(config(clip, cone, image_elevation_deg=15.0))
    assert isinstance(judge, OrbitJudge)
    assert (judge.views, judge.shape) == (3, (3, 4, 8, 8))
    camera = judge.cameras(Rng.for_batch(0, 0, 2))
    azimuth, elevation, _ = orbit_angles(camera)
    assert difference(azimuth.reshape(2, 3) % 360, orbit_azimuths(3).float().expand(2, -1)) < 1e-3
    assert difference(elevation, torch.full_like(elevation, 15.0)) < 1e-3
    cond = judge.told(camera, judge.encode(["x", "y"]))
    assert difference(cond["azimuth"][0], torch.deg2rad(orbit_azimuths(3)).float()) < 1e-5
    assert difference(cond["polar"], torch.full((2, 3), math.radians(75))) < 1e-5
    x0 = judge.x0(true_views("a red cone", camera), camera)
    with torch.no_grad():
        assert judge.teacher.x0(x0, torch.tensor([1.0, 2.0]), cond).shape == x0.shape == (2, 3, 4, 8, 8)
    assert judge.pictures(x0).shape == (6, 3, 16, 16)


@pytest.mark.parametrize("kind", ["zero123", "orbit"])
def test_recipes_optimise_a_scene_by_a_picture(kind, folder, clip, cone, tmp_path):
    teacher = folder if kind == "zero123" else clip
    given = (f"domain.teacher={teacher}", f"domain.judge.image={cone}", *QUIET, *SMALL, "recipe.time.low=0.1")
    assert threed("train", "--config", "sds-solids", "--out", tmp_path / "run", *given) == 0
    assert type(teacher_process(config(teacher, cone))).__name__ == ("VP" if kind == "zero123" else "EDM")


def test_what_is_missing_is_named(folder, cone, tmp_path):
    with pytest.raises(UserError, match=r"domain\.judge\.image"):
        open_judge(config(folder, ""))
    with pytest.raises(UserError, match="no such file"):
        open_judge(config(folder, tmp_path / "none.png"))
    other = zero123(tmp_path / "wide", width=24)
    with pytest.raises(UserError, match="takes 20 numbers, its encoder and a turn are 28"):
        open_judge(config(other, cone))
    save_file({"weight": torch.ones(3)}, str(other / "cc_projection" / "diffusion_pytorch_model.safetensors"))
    with pytest.raises(UserError, match="no linear layer"):
        open_judge(config(other, cone))
    (other / "cc_projection" / "diffusion_pytorch_model.safetensors").rename(other / "cc_projection" / "model.bin")
    with pytest.raises(UserError, match="pickled"):
        open_judge(config(other, cone))
    import shutil

    shutil.rmtree(other / "image_encoder")
    with pytest.raises(UserError, match="no image_encoder/"):
        open_judge(config(other, cone))
