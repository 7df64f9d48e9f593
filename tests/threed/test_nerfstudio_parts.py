"""What the nerfstudio plug-in does without nerfstudio: its world, its steps, and what it says to mistakes."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch
from threed.nerf_bed import untrained

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.networks.roles import RolesConfig
from fewstep.core.recipes.dmd2 import DMD2Config
from fewstep.core.recipes.sds import SDS, SDSConfig
from fewstep.core.recipes.vsd import VSDConfig
from fewstep.core.rng import Rng
from fewstep.threed.cameras import NERFSTUDIO, orbit, to_convention
from fewstep.threed.gaussians.harmonics import evaluate
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.gaussians.projection import covariances
from fewstep.threed.gaussians.render import render
from fewstep.threed.nerfstudio import opening
from fewstep.threed.nerfstudio.__main__ import main
from fewstep.threed.nerfstudio.training import SceneTraining
from fewstep.threed.nerfstudio.world import TO_Z_UP, to_y_up, to_z_up, turned
from fewstep.threed.problems.scene import build_scene
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.settings import SceneConfig, ThreedConfig

SAMPLES = 2


@pytest.fixture(scope="module")
def domain(tmp_path_factory) -> ThreedConfig:
    folder = untrained(tmp_path_factory.mktemp("teacher") / "model")
    return ThreedConfig(teacher=str(folder), prompt="a red cone", scene=SceneConfig(count=30, background="random"))


def cloud(n: int = 6, degree: int = 3) -> Gaussians:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return Gaussians(
        0.3 * normal(n, 3), normal(n, 3) - 2, normal(n, 4), normal(n), 0.2 * normal(n, (degree + 1) ** 2, 3)
    )


def some_rotation() -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    skew = torch.randn(3, 3, generator=draw, dtype=torch.float64)
    return torch.linalg.matrix_exp(skew - skew.mT)


def test_nerfstudios_world_is_the_one_of_its_cameras():
    camera = orbit(*(torch.tensor([v]).double() for v in (30.0, 20.0, 3.0, 40.0)), 8, 8)
    pose = to_convention(camera, NERFSTUDIO)
    torch.testing.assert_close(pose[:, :3, 3], to_z_up(camera.position))
    torch.testing.assert_close(to_y_up(to_z_up(camera.position)), camera.position)
    assert to_z_up(torch.tensor([0.0, 1.0, 0.0])).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("rotation", [TO_Z_UP, some_rotation()], ids=["z up", "any"])
def test_a_turned_cloud_is_turned_in_every_part(rotation):
    before = cloud()
    after = turned(before, rotation)
    torch.testing.assert_close(after.means, before.means @ rotation.mT)
    torch.testing.assert_close(
        covariances(after.quaternions, after.scales),
        rotation @ covariances(before.quaternions, before.scales) @ rotation.mT,
    )
    directions = cloud().means
    torch.testing.assert_close(
        evaluate(3, directions @ rotation.mT, after.harmonics), evaluate(3, directions, before.harmonics)
    )


def test_a_cloud_turned_with_its_cameras_looks_the_same():
    before, rotation = cloud(), TO_Z_UP
    camera = orbit(
        *(torch.tensor(v).double() for v in ([30.0, 200.0], [20.0, -10.0], [3.0, 3.0], [40.0, 40.0])), 12, 12
    )
    move = torch.eye(4, dtype=torch.float64)
    move[:3, :3] = rotation.mT
    seen, again = (
        render(each, pose, camera.intrinsics, 12, 12)[0]
        for each, pose in (
            (before, camera.world_to_camera),
            (turned(before, rotation), camera.world_to_camera @ move),
        )
    )
    assert seen.std() > 0.05
    torch.testing.assert_close(again, seen)


def test_rays_see_what_cameras_see():
    scene = FieldScene(side=8, channels=4, sections=12)
    camera = orbit(*(torch.tensor([v]) for v in (30.0, 20.0, 3.0, 40.0)), 6, 6)
    origins, directions = (each.reshape(-1, 3) for each in camera.rays())
    with torch.no_grad():
        found, views = scene.along(origins, directions), scene.views(camera)
    torch.testing.assert_close(found.rgb.reshape(6, 6, 3).movedim(-1, 0), views.rgb[0])
    torch.testing.assert_close(found.normal.reshape(6, 6, 3).movedim(-1, 0), views.normal[0])


def test_a_step_is_the_step_of_cores_loop(domain):
    recipe, step = SDSConfig(), 3
    problem = build_scene(domain, SDS.role_specs(recipe), 5, "cpu")
    rng = Rng(5, step, tuple(range(SAMPLES)), "student", "cpu", SAMPLES)
    batch = problem.data.batch(rng, "cpu")
    truth = SDS(recipe, problem.actors).loss("student", batch, rng, step).total().mean()

    training = SceneTraining(domain, recipe, 5, "cpu")
    losses = training.losses(training.cameras(step, SAMPLES), step)
    assert list(losses) == ["student/sds"]
    torch.testing.assert_close(losses["student/sds"], truth)

    truth.backward()
    losses["student/sds"].backward()
    student = problem.actors.module("student")
    for mine, theirs in zip(training.scene.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_what_the_scene_has_against_itself_is_weighted_as_in_cores_loop(domain):
    scene = SceneConfig(kind="neus", planes=(8, 4), sections=8, opacity=0.5, eikonal=0.25)
    config, recipe = replace(domain, scene=scene), SDSConfig()
    training = SceneTraining(config, recipe, 5, "cpu")
    losses = training.losses(training.cameras(0, SAMPLES), 0)
    assert sorted(losses) == ["student/eikonal", "student/opacity", "student/sds"]

    problem = build_scene(config, SDS.role_specs(recipe), 5, "cpu")
    rng = Rng(5, 0, tuple(range(SAMPLES)), "student", "cpu", SAMPLES)
    problem.actors.generate(problem.data.batch(rng, "cpu"), rng)
    for name, value in problem.actors.penalties(rng.fork("penalties")).items():
        torch.testing.assert_close(losses[f"student/{name}"], value)
    assert (
        SceneTraining(replace(config, scene=replace(scene, opacity=0.0, eikonal=0.0)), recipe, 5, "cpu").penalties(rng)
        == {}
    )


def test_the_cameras_given_are_the_cameras_seen_from(domain):
    training = SceneTraining(domain, SDSConfig(), 0, "cpu")
    one, other = training.cameras(0, SAMPLES), training.cameras(1, SAMPLES)
    assert not torch.equal(training.losses(one, 0)["student/sds"], training.losses(other, 0)["student/sds"])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_one_backward_pass_gives_each_phase_its_own_gradients(domain, mode):
    config = replace(domain, roles=RolesConfig(mode=mode, rank=2))
    training = SceneTraining(config, VSDConfig(guidance_scale=3.0), 0, "cpu")
    fake = training.recipe.actors.module("fake_score").train()
    losses = training.losses(training.cameras(0, SAMPLES), 0)
    assert sorted(losses) == ["fake_score/denoise", "student/vsd"]
    scene, critic = list(training.scene.parameters()), training.critic
    apart = [
        torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
        for name, parameters in (("student/vsd", scene), ("fake_score/denoise", critic))
    ]
    torch.stack(list(losses.values())).sum().backward()
    for parameters, grads in zip((scene, critic), apart, strict=True):
        assert any(grad is not None and grad.any() for grad in grads)
        for parameter, grad in zip(parameters, grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad)
    trained = {id(each) for each in (*scene, *critic)}
    assert not fake.training  # the scene's phase comes last, and there it only judges
    teacher = training.recipe.actors.module("teacher")
    assert all(each.grad is None for each in teacher.parameters() if id(each) not in trained)


def test_a_critic_that_sits_out_has_no_loss(domain):
    training = SceneTraining(domain, VSDConfig(fake_updates=2, update_mode="alternate"), 0, "cpu")
    camera = training.cameras(0, SAMPLES)
    assert list(training.losses(camera, 0)) == ["fake_score/denoise"]
    assert list(training.losses(camera, 1)) == ["student/vsd"]


def test_a_step_of_no_phase_moves_nothing(domain):
    training = SceneTraining(domain, VSDConfig(fake_updates=2, update_mode="alternate", fake_warmup=9), 0, "cpu")
    losses = training.losses(training.cameras(1, SAMPLES), 1)
    sum(losses.values()).backward()
    assert losses["none"].item() == 0
    assert all(parameter.grad is None for parameter in (*training.scene.parameters(), *training.critic))


def test_a_loss_that_is_not_finite_stops_the_run(domain):
    training = SceneTraining(domain, SDSConfig(), 0, "cpu")
    with torch.no_grad():
        training.scene.stored["harmonics"].fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 0: the loss 'student/sds' is not finite"):
        training.losses(training.cameras(0, SAMPLES), 0)


def test_recipes_that_need_a_network_as_the_student_are_refused(domain):
    with pytest.raises(UserError, match=r"a DMD2Config is none of those .* \(sds, vsd\)"):
        SceneTraining(domain, DMD2Config(), 0, "cpu")


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "config.yml").write_text("method: other\n", encoding="utf-8")
    assert not opening.is_run(tmp_path)
    assert not opening.is_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no run of nerfstudio: give the config\.yml"):
        opening.open_run(tmp_path)


def test_without_nerfstudio_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yml").write_text(f"{opening.HEAD}\n", encoding="utf-8")
    assert opening.is_run(tmp_path / "config.yml")
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fewstep-threed\[nerfstudio\]'") as refusal:
        opening.open_run(tmp_path)
    assert "\n" not in str(refusal.value)
    assert main([str(tmp_path), str(tmp_path / "scene.glb")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'fewstep-threed[nerfstudio]'" in said
    monkeypatch.setattr(opening, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"nerfstudio_models: no checkpoint yet"):
        opening.open_run(tmp_path)


def test_without_nerfstudio_its_methods_say_what_to_do(monkeypatch):
    methods = entry_points(group="nerfstudio.method_configs").select(name="fewstep-sds")
    monkeypatch.setitem(sys.modules, "nerfstudio", None)
    monkeypatch.delitem(sys.modules, "fewstep.threed.nerfstudio.methods", raising=False)
    (method,) = methods
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fewstep-threed\[nerfstudio\]'") as refusal:
        method.load()
    assert "\n" not in str(refusal.value)
    assert refusal.value.__suppress_context__  # nothing but that line and where it is from


def test_the_command_says_mistakes_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "scene.glb")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no run of nerfstudio" in said
