"""Baked textures from the command line: what the picture shows on the surface is what the scene has there."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import trimesh
from threed.scene_bed import threed, tiny_folder

from fewstep.core.errors import UserError
from fewstep.threed.assets import read_asset, save_as, write_asset
from fewstep.threed.fields.texture import look_up
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.planes.shipped import find_planes
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import GaussianScene

SCENE = ("domain.scene.kind=neus", "domain.scene.sections=8", "domain.scene.planes=[8,4]")
QUIET = ("train.eval_every=0", "train.preview_every=0", "train.batch=2", "train.steps=1")


@pytest.fixture(autouse=True)
def without_xatlas(monkeypatch):
    """Lay out triangles alone, whether or not xatlas is there, which takes its time for large meshes."""
    monkeypatch.setattr("fewstep.threed.fields.texture.find_spec", lambda name: None)


def on_the_surface(path, count=1500):
    """Points of a file's mesh, and what its texture shows there."""
    read = trimesh.load(path, force="mesh", process=False)
    image = getattr(read.visual.material, "baseColorTexture", None) or read.visual.material.image
    texture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    rng = np.random.default_rng(0)
    faces = torch.from_numpy(np.array(read.faces)[rng.integers(len(read.faces), size=count)])
    weight = torch.from_numpy(rng.dirichlet([0.5] * 3, count)).float()[..., None]
    at, uv = (torch.from_numpy(np.array(each)).float() for each in (read.vertices, read.visual.uv))
    return (weight * at[faces]).sum(1), look_up(texture, (weight * uv[faces]).sum(1))


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_generated_asset_has_the_fields_colours_in_its_texture(suffix, tmp_path):
    file = tmp_path / f"x{suffix}"
    asked = ("--prompt", "a red cone", "-o", file, "--resolution", 24, "--texture", 512)
    assert threed("generate", *asked) == 0
    assert len(list(tmp_path.iterdir())) == (1 if suffix == ".glb" else 3)
    points, found = on_the_surface(file)
    (scene,) = find_planes().scenes(["a red cone"])
    with torch.no_grad():
        true = scene.colour_field()(points)
    assert float((found - true).abs().max()) < 0.03
    assert float(true.std(0).max()) > 0.03, "a field of one colour would tell nothing"


def test_a_run_is_exported_with_a_texture(tmp_path):
    run = tmp_path / "run"
    teacher = tiny_folder(tmp_path / "m")
    asked = (f"domain.teacher={teacher}", *SCENE, *QUIET)
    assert threed("train", "--config", "sds-solids", "--out", run, *asked) == 0
    assert threed("export", run, "--texture", 1024) == 0
    points, found = on_the_surface(run / "export" / "mesh.glb")
    with torch.no_grad():
        true = read_asset(run).scene.colour_field()(points)
    assert float((found - true).abs().max()) < 0.03
    assert "a texture" in (run / "export" / "README.md").read_text()
    assert threed("export", run) == 0
    assert "a mesh with colours" in (run / "export" / "README.md").read_text()


def test_gaussians_get_the_colours_that_views_agree_on(tmp_path):
    at = 0.4 * torch.nn.functional.normalize(torch.randn(600, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    right = (at[:, :1] > 0).float()
    rgb = torch.cat([0.9 * right, torch.full_like(right, 0.2), 0.9 * (1 - right)], 1)
    scene = GaussianScene(Gaussians.isotropic(at, 0.05, 0.99, rgb))
    write_asset(scene, tmp_path / "a", {}, resolution=32, texture=512)
    points, found = on_the_surface(tmp_path / "a" / "mesh.glb")
    clear = points[:, 0].abs() > 0.12
    true = torch.where(points[:, :1] > 0, torch.tensor([0.9, 0.2, 0.0]), torch.tensor([0.0, 0.2, 0.9]))
    assert float((found - true)[clear].abs().mean()) < 0.05
    assert float((found - true)[clear].abs().amax(1).median()) < 0.05
    assert (tmp_path / "a" / "splats.ply").is_file()


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    for given, why in (
        (("-o", tmp_path / "x.ply", "--texture", 512), "Gaussians have no texture"),
        (("-o", tmp_path / "x.glb", "--texture", 7), "0 or a whole number from 16 to 8192"),
        (("-o", tmp_path / "x.stl", "--method", "sds"), r"assets are written as"),
    ):
        assert threed("generate", "--prompt", "a red cone", *given) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert re.search(why, told), told
    assert list(tmp_path.iterdir()) == []


def test_a_texture_too_small_is_an_error_and_leaves_no_folder(tmp_path):
    scene = FieldScene("neus", side=8, channels=4)
    with pytest.raises(UserError, match="too small for"):
        write_asset(scene, tmp_path / "a", {}, resolution=32, texture=64)
    with pytest.raises(UserError, match="too small for"):
        save_as(scene, tmp_path / "a.glb", 32, 64)
    assert list(tmp_path.iterdir()) == []


def test_networks_have_no_texture_of_their_own(tmp_path, capsys):
    run = tmp_path / "run"
    small = ("domain.network.size=16", "domain.network.widths=[16,16]", "domain.network.attention=[false,true]")
    settings = ("domain.prompts=things", "domain.pictures=1")
    assert threed("train", "--config", "teacher-solids", "--out", run, *small, *settings, *QUIET) == 0
    assert threed("export", run, "--texture", 512) == 2
    assert "no scene" in capsys.readouterr().err
