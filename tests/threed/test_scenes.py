"""Scenes: their pictures agree with exact ones, gradients reach every parameter, and folders give them back."""

from __future__ import annotations

import pytest
import torch
from threed.scene_bed import around, difference, grad_norms

from fewstep.core.errors import UserError
from fewstep.core.rng import Rng
from fewstep.threed.assets import read_asset, save_as, write_asset
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import RATES, GaussianScene

FIELDS = ("density", "neus", "volsdf")


def make(kind: str):
    if kind == "gaussians":
        return GaussianScene.ball(60, 0.5, 0, seed=0)
    return FieldScene(kind, side=8, channels=4, sections=24, seed=0)


@pytest.mark.parametrize("kind", ["gaussians", *FIELDS])
def test_gradients_reach_every_parameter(kind):
    scene = make(kind)
    with torch.no_grad():
        for parameter in scene.parameters():  # last layers start at 0, and let nothing through
            parameter.add_(0.01)
    seen = scene.views(around(2, 12), rng=Rng.for_batch(0, 0, 2))
    (seen.rgb.square().sum() + seen.alpha.square().sum()).backward()
    still = {"stored.quaternions"}  # of balls: to turn one changes nothing
    assert {name for name, norm in grad_norms(scene).items() if norm == 0} <= still


@pytest.mark.parametrize("kind", ["gaussians", *FIELDS])
def test_the_background_shows_where_nothing_is(kind):
    scene, camera = make(kind), around(2, 12)
    white, black = scene.views(camera, 1.0), scene.views(camera, torch.zeros(2, 3))
    assert difference(white.rgb - black.rgb, (1 - white.alpha).expand_as(white.rgb)) < 1e-5
    assert difference(white.alpha, black.alpha) < 1e-6


@pytest.mark.parametrize("kind", ["neus", "volsdf"])
def test_an_untrained_field_is_the_ball_it_starts_as(kind):
    scene = FieldScene(kind, side=8, channels=4, radius=0.5, sections=128, sharpness=160.0)
    camera = around(3, 32)
    with torch.no_grad():
        seen = scene.views(camera)
    # the ball's silhouette: tan of its half angle against the pixels' size
    inside = 0.5 / (3.2**2 - 0.5**2) ** 0.5
    expected = torch.pi * (inside * float(camera.intrinsics[0, 0, 0])) ** 2 / 32**2
    assert abs(float(seen.alpha.mean()) / expected - 1) < 0.12
    middle = seen.alpha[:, 0, 15:17, 15:17] > 0.9
    depth = seen.depth[:, 0, 15:17, 15:17] / seen.alpha[:, 0, 15:17, 15:17]
    assert bool(middle.all())
    assert float((depth - 2.7).abs().max()) < 0.05


def test_rates_change_how_parameters_are_kept_and_nothing_else():
    cloud = GaussianScene.ball(30, 0.5, 1, seed=3).gaussians()
    slow = GaussianScene(cloud, rates=dict.fromkeys(RATES, 0.01))
    camera = around(2, 12)
    assert difference(slow.views(camera).rgb, GaussianScene(cloud).views(camera).rgb) < 1e-5


def test_a_step_of_adam_moves_each_kind_by_its_rate():
    scene = GaussianScene.ball(30, 0.5, 0, seed=0)
    before = scene.gaussians()
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.01)
    scene.views(around(3, 12)).rgb.square().sum().backward()
    optimizer.step()
    after = scene.gaussians()
    for name in ("means", "opacity_logits", "harmonics"):
        moved = (getattr(after, name) - getattr(before, name)).detach().abs()
        assert abs(float(moved.max()) / (0.01 * RATES[name]) - 1) < 1e-3


@pytest.mark.parametrize("kind", ["gaussians", *FIELDS])
def test_a_folder_gives_the_scene_back(kind, tmp_path):
    scene = make(kind)
    write_asset(scene, tmp_path / "asset", {"name": "x"}, prompt="a red cone")
    back = read_asset(tmp_path / "asset")
    assert back.prompt == "a red cone"
    camera = around(2, 12)
    with torch.no_grad():
        assert difference(back.scene.views(camera).rgb, scene.views(camera).rgb) < 1e-6
    assert (tmp_path / "asset" / "splats.ply").is_file() == (kind == "gaussians")


def test_gaussians_travel_as_ply_and_splat(tmp_path):
    scene, camera = make("gaussians"), around(2, 12)
    for suffix, tolerance in ((".ply", 1e-5), (".splat", 2e-2)):
        file = tmp_path / f"cloud{suffix}"
        save_as(scene, file)
        with torch.no_grad():
            assert difference(read_asset(file).scene.views(camera).rgb, scene.views(camera).rgb) < tolerance


def test_a_field_has_no_gaussians_and_says_so(tmp_path):
    with pytest.raises(UserError, match="no Gaussians"):
        save_as(make("volsdf"), tmp_path / "x.ply")
    with pytest.raises(UserError, match=r"\.glb"):
        save_as(make("volsdf"), tmp_path / "x.stl")


def test_what_is_no_asset_is_refused(tmp_path):
    with pytest.raises(UserError, match="no asset there"):
        read_asset(tmp_path)
    picture = tmp_path / "x.png"
    picture.write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.png"):
        read_asset(picture)
    write_asset(make("volsdf"), tmp_path / "a", {"name": "x"})
    write_asset(FieldScene("volsdf", side=9, channels=4), tmp_path / "b", {"name": "x"})
    (tmp_path / "b" / "scene.safetensors").replace(tmp_path / "a" / "scene.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        read_asset(tmp_path / "a")


def test_an_empty_scene_has_no_mesh():
    cloud = Gaussians.isotropic(torch.zeros(3, 3), 0.01, opacity=0.01)
    with pytest.raises(UserError, match="nothing to make a mesh of"):
        GaussianScene(cloud).mesh(24)
