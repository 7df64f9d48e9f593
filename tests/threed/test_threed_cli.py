"""The domain from the command line: view models and scenes are trained, exported, measured and made."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import contextmanager

import pytest
import torch
from threed.scene_bed import threed, tiny_folder

from fewstep.core.training.trackers import read_metrics
from fewstep.threed.assets import read_asset
from fewstep.threed.metrics.cost import Cost
from fewstep.threed.teachers.view_model import load_model

QUIET = ("train.eval_every=0", "train.preview_every=0", "train.log_every=1", "train.batch=2")
SCENE = ("domain.scene.kind=gaussians", "domain.scene.count=40", "domain.scene.sections=8", "domain.scene.planes=[8,4]")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("teacher") / "m")


def test_a_view_model_is_trained_exported_and_opened(tmp_path):
    small = ("domain.network.size=16", "domain.network.widths=[16,16]", "domain.network.attention=[false,true]")
    run = tmp_path / "run"
    settings = ("train.steps=25", "domain.prompts=things", "domain.pictures=2", "optim.lr=3e-3", "optim.warmup=0")
    assert threed("train", "--config", "teacher-solids", "--out", run, *small, *settings, *QUIET) == 0
    losses = [row["loss/denoise/denoise"] for row in read_metrics(run) if "loss/denoise/denoise" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert threed("export", run, "--as", "half") == 0
    assert load_model(str(run)).size == 16
    assert threed("eval", run, "-n", 2, "--steps", 2) == 0
    assert json.loads((run / "evaluation.json").read_text())["rows"][0]["psnr"] > 0


@pytest.mark.parametrize("method", ["sds", "csd", "vsd", "ism"])
def test_every_method_optimises_a_scene(method, teacher, tmp_path):
    run = tmp_path / "run"
    settings = (f"domain.teacher={teacher}", "train.steps=2", *SCENE, *QUIET)
    assert threed("train", "--config", f"{method}-solids", "--out", run, *settings) == 0
    assert threed("export", run) == 0
    assert read_asset(run).prompt == "a red cone"
    assert (run / "export" / "splats.ply").is_file()


@pytest.mark.parametrize("kind", ["density", "neus", "volsdf"])
def test_fields_are_optimised_with_their_penalties(kind, teacher, tmp_path):
    run = tmp_path / "run"
    settings = (f"domain.teacher={teacher}", f"domain.scene.kind={kind}", "domain.scene.opacity=0.5")
    assert threed("train", "--config", "sds-solids", "--out", run, "train.steps=2", *SCENE, *settings, *QUIET) == 0
    logged = read_metrics(run)[0]
    assert logged["loss/student/opacity"] > 0
    assert ("loss/student/eikonal" in logged) == (kind != "density")


RATIO_FREE = ("recipe.divergence=reverse_kl", "recipe.adversarial.weight=0")  # a scene has no data to ask it of


@pytest.mark.parametrize(
    ("recipe", "more"), [("dmd2", ()), ("sid", ()), ("diff-instruct", ()), ("uni-instruct", RATIO_FREE)]
)
def test_recipes_of_core_train_scenes_unchanged(recipe, more, teacher, tmp_path):
    run = tmp_path / "run"
    settings = (f"recipe.name={recipe}", *more, "domain.name=threed", f"domain.teacher={teacher}", "train.steps=3")
    assert threed("train", "--out", run, *settings, *SCENE, *QUIET) == 0


def test_an_asset_is_made_of_a_prompt_by_a_method(teacher, tmp_path, capsys):
    out = tmp_path / "cone.ply"
    asked = ("--prompt", "a blue cone", "--method", "sds", "-o", out, f"domain.teacher={teacher}", "train.steps=1")
    assert threed("generate", *asked, *SCENE, *QUIET) == 0
    assert "made in" in capsys.readouterr().out
    assert len(read_asset(out).scene.gaussians()) == 40
    assert threed("eval", out, "--prompt", "a blue cone", "--views", 2, "--size", 16) == 0
    assert "psnr" in capsys.readouterr().out


def test_what_each_asset_took_is_said_and_kept(tmp_path, capsys, monkeypatch):
    passed = itertools.count(1)

    @contextmanager
    def measured(device="cpu"):
        cost = Cost(str(device))
        yield cost
        cost.seconds, cost.peak_bytes = float(next(passed)), 2**21

    monkeypatch.setattr("fewstep.threed.cli.generating.measure_cost", measured)
    assert threed("generate", "--prompt", "a red cone", "--prompt", "a blue box", "-o", tmp_path) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"{tmp_path / 'a-red-cone'}: made in 1.0 s, 2 MiB more at the peak; written in 2.0 s, 2 MiB more at the peak",
        f"{tmp_path / 'a-blue-box'}: made in 3.0 s, 2 MiB more at the peak; written in 4.0 s, 2 MiB more at the peak",
    ]
    about = json.loads((tmp_path / "a-blue-box" / "asset.json").read_text())
    assert about["cost"] == {"device": "cpu", "seconds": 3.0, "peak_bytes": 2**21}
    assert "| made in | 3.0 s, 2 MiB" in (tmp_path / "a-blue-box" / "README.md").read_text()
    assert read_asset(tmp_path / "a-blue-box").prompt == "a blue box"


def test_what_a_scene_took_includes_its_training(teacher, tmp_path, capsys):
    asked = (
        "--prompt",
        "a blue cone",
        "--method",
        "sds",
        "-o",
        tmp_path / "a",
        f"domain.teacher={teacher}",
        "train.steps=1",
    )
    assert threed("generate", *asked, *SCENE, *QUIET) == 0
    cost = json.loads((tmp_path / "a" / "asset.json").read_text())["cost"]
    assert f"made in {cost['seconds']:.1f} s" in capsys.readouterr().out
    assert cost["peak_bytes"] >= 0
    assert cost["seconds"] > 0


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--prompt", " "), "empty prompt"),
        ((), "prompts .*or pictures"),
        (("--prompt", "a red cone", "--image", "x.png"), "one of the two"),
        (("--prompt", "a castle", "--method", "sds"), "does not know 'castle'"),
        (("--image", "nothing.png", "--method", "sds"), "leave it out with --image"),
    ],
)
def test_mistakes_are_told_in_one_line(asked, why, teacher, tmp_path, capsys):
    given = (f"domain.teacher={teacher}",) if "--method" in asked else ()
    assert threed("generate", *asked, "-o", tmp_path / "x.ply", *given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(why, told)
    assert not (tmp_path / "x.ply").exists()


def test_networks_as_scenes_are_refused(teacher, tmp_path, capsys):
    settings = ("recipe.name=consistency", "domain.name=threed", f"domain.teacher={teacher}")
    assert threed("train", "--out", tmp_path / "run", *settings) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_run_draws_is_a_function_of_the_seed(teacher, tmp_path):
    clouds = []
    for number in range(2):
        run = tmp_path / f"run{number}"
        settings = (f"domain.teacher={teacher}", "train.steps=2", *SCENE, *QUIET)
        assert threed("train", "--config", "sds-solids", "--out", run, *settings) == 0
        assert threed("export", run) == 0
        clouds.append(read_asset(run).scene.gaussians().means)
    assert torch.equal(*clouds)
