"""The video domain: prompts in, a few-step student of a text-to-video pipeline out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.core.cli.main import domain_main
from fewstep.core.domain import Domain, find_domain
from fewstep.core.training.config import config_names, load_config
from fewstep.video.domain import DOMAIN

TINY = [name for name in config_names(DOMAIN) if name.endswith("-tiny")]


def run(*argv: str) -> int:
    return domain_main("video", argv)


def test_it_is_a_domain():
    assert isinstance(find_domain("video"), Domain)


@pytest.mark.parametrize("name", config_names(DOMAIN))
def test_shipped_configs_are_read(name):
    config = load_config(name, domain=DOMAIN)
    assert name.startswith("teacher-") == (config.recipe_name == "diffusion")
    assert name.startswith(("teacher-", f"{config.recipe_name}-"))
    twin = name.removesuffix("-tiny")
    if twin != name:
        assert load_config(twin, domain=DOMAIN).domain.roles.mode == config.domain.roles.mode


def prepared(name: str, folder: Path) -> list[str]:
    """What a config that needs latents is given, samples of its teacher, and one that needs pictures."""
    if not name.startswith(("consistency", "motion-consistency")):
        return []
    prompts, out = folder / "prompts.txt", folder / "prepared"
    prompts.write_text("a paper boat\na red fox\n", encoding="utf-8")
    teacher = load_config(name, domain=DOMAIN).domain.teacher
    assert run("prepare", "--teacher", teacher, "--data", str(prompts), "--sample-steps", "2", "--out", str(out)) == 0
    for index in range(2 * name.startswith("motion")):
        Image.new("RGB", (40, 30), (90 * index, 50, 200)).save(folder / f"{index}.png")
    return [f"domain.data.path={out}", *([f"domain.images.path={folder}"] if name.startswith("motion") else [])]


@pytest.mark.parametrize("name", [TINY[0], *[pytest.param(name, marks=pytest.mark.slow) for name in TINY[1:]]])
def test_a_tiny_twin_trains_samples_and_exports(name, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "--config", name, "--out", str(out), *prepared(name, tmp_path)) == 0
    assert run("sample", str(out), "--prompt", "a paper boat", "--teacher-steps", "2") == 0
    assert all((out / f"samples.{kind}").is_file() for kind in ("png", "mp4", "gif"))
    assert run("export", str(out)) == 0
    card = (out / "export" / "README.md").read_text(encoding="utf-8")
    assert "num_frames" in card
    assert capsys.readouterr().out.endswith("export\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["recipe.name=dmd2"], "domain."),
        (["recipe.name=dmd2", "domain.teacher=tiny:sd", "domain.data.prompts=[a]"], "use the domain image"),
        (["recipe.name=dmd2", "domain.teacher=tiny:wan"], "domain.data.path is missing"),
        (
            ["recipe.name=dmd2", "domain.teacher=tiny:wan", "domain.data.prompts=[a]", "domain.model.frames=6"],
            "takes 4k+1 frames",
        ),
    ],
)
def test_mistakes_are_one_line(settings, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "--out", str(out), *settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(out).exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A few drawn clips, their latents for the shipped teacher, and pictures."""
    folder = tmp_path_factory.mktemp("world")
    assert run("draw", str(folder / "drawn"), "--clips", "6", "--images", "4", "--objects", "1") == 0
    data = ["--data", str(folder / "drawn" / "videos"), "--size", "32x32x8", "--out", str(folder / "latents")]
    assert run("prepare", "--teacher", "world", *data) == 0
    return folder


SHORT = ["train.steps=2", "train.batch=2", "train.preview_every=2", "train.preview_samples=2", "train.teacher_steps=2"]
SHORT += ["train.checkpoint_every=0", "optim.warmup=0", "train.ema.kind=none", "train.sample_steps=[2]"]


@pytest.mark.parametrize("source", ["clips", pytest.param("prepared", marks=pytest.mark.slow)])
def test_the_shipped_teacher_trains_students_on_clips_beside_pictures(world, source, tmp_path, caplog):
    out, drawn = tmp_path / "run", world / "drawn"
    path = world / "latents" if source == "prepared" else drawn / "videos"
    data = [f"domain.data.source={source}", f"domain.data.path={path}", f"domain.images.path={drawn / 'images'}"]
    against = [f"domain.evaluation.clips={drawn}", f"domain.evaluation.images={drawn / 'images'}"]
    config = ["--config", "motion-consistency-world", "--out", str(out)]
    assert run("train", *config, *SHORT, *data, *against) == 0
    assert (out / "previews" / "step-0000002.mp4").is_file()
    assert run("eval", str(out), "-n", "4", "--steps", "2", "--teacher-steps", "3") == 0
    rows = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2
    assert all(rows[0][name] >= 0 for name in ("frechet_video", "frechet_frame", "motion_ratio", "found"))
    assert "verdict" in rows[0]


@pytest.mark.slow
def test_two_experts_train_in_turn_on_the_shipped_teacher(world, tmp_path):
    out = tmp_path / "run"
    config = ["--config", "dcm-world", "--out", str(out), f"domain.data.path={world / 'latents'}"]
    assert run("train", *config, *SHORT, "recipe.semantic_steps=1") == 0
    assert run("export", str(out), "--as", "pipeline") == 0


@pytest.mark.slow
def test_a_student_of_stored_trajectories_trains_on_the_shipped_teacher(tmp_path):
    prompts, keys, out = tmp_path / "prompts.txt", tmp_path / "keys", tmp_path / "run"
    prompts.write_text(
        "a red disc moves left fast, on white\na blue ring moves up slowly, on black\n", encoding="utf-8"
    )
    sampling = ["--sample-steps", "4", "--keys", "4", "--guidance-scale", "3", "--size", "32x32x8"]
    assert run("prepare", "--teacher", "world", "--data", str(prompts), *sampling, "--out", str(keys)) == 0
    short = [each for each in SHORT if "sample_steps" not in each]
    config = ["--config", "accvideo-world", "--out", str(out), f"domain.data.path={keys}"]
    assert run("train", *config, *short) == 0
    assert run("export", str(out)) == 0
