"""From a picture to a long clip on the command line: a teacher told first frames, its student, windows that slide."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fewstep.core.cli.main import domain_main
from fewstep.core.planning.plan import plan
from fewstep.core.recipes import find_recipe
from fewstep.core.rng import Rng
from fewstep.core.training.config import load_config
from fewstep.video.domain import DOMAIN
from fewstep.video.reading import probe, read_clip
from fewstep.video.writing import write_clip

PROMPT = "a boat"
SHORT = ["train.steps=2", "train.batch=2", "train.preview_every=2", "train.preview_samples=2", "train.teacher_steps=2"]
SHORT += ["train.checkpoint_every=0", "optim.warmup=0", "train.ema.kind=none"]
STUDENT = ["--config", "motion-consistency-modelscope-tiny", "recipe.appearance.weight=0", "domain.images.path="]
STUDENT += ["train.sample_steps=[2]"]
TOLD = ["domain.given_frames=2", "domain.given_none=0.25"]


def run(*argv) -> int:
    return domain_main("video", [str(each) for each in argv])


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    (root / "prompts.txt").write_text(f"{PROMPT}\na fox\n", encoding="utf-8")
    data = ["--teacher", "tiny:modelscope", "--data", root / "prompts.txt", "--out", root / "latents"]
    assert run("prepare", *data, "--sample-steps", "1") == 0
    return f"domain.data.path={root / 'latents'}"


@pytest.fixture(scope="module")
def teacher(latents, tmp_path_factory):
    """A teacher trained a little, as a pipeline folder."""
    out = tmp_path_factory.mktemp("teacher")
    config = ["--config", "teacher-world", "domain.teacher=tiny:modelscope", "domain.model.frames=0"]
    assert run("train", "--out", out / "run", *config, latents, *SHORT, *TOLD, "train.sample_steps=[2]") == 0
    assert run("export", out / "run", "--as", "pipeline", "--out", out / "pipeline") == 0
    return out


@pytest.fixture(scope="module")
def student(latents, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("student") / "run"
    own = f"domain.teacher={teacher / 'pipeline'}"
    assert run("train", "--out", out, *STUDENT, latents, own, *SHORT[:-1], *TOLD) == 0
    return out


def test_students_are_looked_at_with_the_first_frames_of_their_prompts_own_clips(latents):
    config = load_config(STUDENT[1], [*STUDENT[2:], latents, *TOLD], domain=DOMAIN)
    problem = DOMAIN.build(config.domain, find_recipe(config.recipe_name).role_specs(config.recipe), 0, "cpu")
    shown, batch = problem.conditions(2, 0), problem.data.batch(Rng.for_batch(0, 0, 8), "cpu")
    assert shown["given_mask"].sum(1).tolist() == [2, 2]
    for given, mask, text in zip(shown["given"], shown["given_mask"], shown["prompt_embeds"], strict=True):
        of_prompt = (batch.cond["prompt_embeds"] == text).flatten(1).all(1)
        clip = batch.x0[of_prompt][0]
        assert torch.equal(given, clip * mask[None, :, None, None])
    assert problem.from_text([PROMPT])["given"].shape[2] == 0


@pytest.mark.slow
def test_a_picture_and_a_video_go_on_and_what_is_given_is_kept(student, tmp_path):
    frames = probe(student / "previews" / "step-0000002.mp4").frames
    Image.new("RGB", (90, 60), (250, 30, 30)).save(tmp_path / "red.png")
    made, size = tmp_path / "made.mp4", 2 * frames + 3
    assert (
        run("extend", student, "--prompt", PROMPT, "--first", tmp_path / "red.png", "--frames", size, "--out", made)
        == 0
    )
    assert probe(made).frames == size
    red = read_clip(made, [0]).float().mean((0, 2, 3))
    assert red[0] > red[1:].max() + 100
    assert (
        run("extend", student, "--prompt", PROMPT, "--first", made, "--frames", "5", "--out", tmp_path / "on.gif") == 0
    )
    begun, ended = read_clip(tmp_path / "on.gif", [0, 1]).float(), read_clip(made, [size - 2, size - 1]).float()
    assert (begun - ended).abs().mean() < 16  # both files are lossy
    assert run("extend", student, "--prompt", PROMPT, "--frames", "4", "--steps", "1") == 0
    assert probe(student / "extended.mp4").frames == 4
    assert run("sample", student, "--prompt", PROMPT) == 0


def error_of(capsys, *argv) -> str:
    capsys.readouterr()
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_what_no_stock_pipeline_runs_is_not_exported(student, teacher, capsys):
    for form in ([], ["--as", "lora"], ["--as", "pipeline"]):
        assert "video extend" in error_of(capsys, "export", student, *form)
    assert "--as pipeline" in error_of(capsys, "export", teacher / "run")


@pytest.mark.slow
def test_mistakes_are_one_line(student, latents, tmp_path, capsys):
    write_clip(tmp_path / "short.mp4", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), 8)
    (tmp_path / "text.png").write_text("no picture")
    ask = ["extend", student, "--prompt", PROMPT, "--frames", "4", "--first"]
    assert "a window begins with 2" in error_of(capsys, *ask, tmp_path / "short.mp4")
    assert "cannot be read as a picture" in error_of(capsys, *ask, tmp_path / "text.png")
    assert "no such file" in error_of(capsys, *ask, tmp_path / "nowhere.mp4")
    assert "at most" in error_of(capsys, *ask[:-3], "--frames", "1000000")
    train = ["train", "--out", tmp_path / "run", *STUDENT]
    assert "leaves nothing of" in error_of(capsys, *train, latents, "domain.given_frames=64")
    assert "given_none is a share" in error_of(capsys, *train, latents, "domain.given_none=0.5")
    prompts = ["domain.data.source=prompts", "domain.data.prompts=[a]", "domain.data.path="]
    assert "this data has none" in error_of(capsys, *train, *prompts, "domain.given_frames=1")


@pytest.mark.slow
def test_runs_are_planned_and_those_without_given_frames_are_not_extended(latents, tmp_path, capsys):
    config = load_config(STUDENT[1], [*STUDENT[2:], latents, *TOLD], domain=DOMAIN)
    assert plan(config).peak > 0
    assert run("train", "--out", tmp_path / "run", *STUDENT, latents, *SHORT[:-1]) == 0
    assert "told no first frames" in error_of(capsys, "extend", tmp_path / "run", "--prompt", PROMPT, "--frames", "4")
