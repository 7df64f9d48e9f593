"""Mistakes with pipelines, prompts and their settings: one line, an exit code, nothing left over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from core.model_bed import teacher
from core.test_bad_input import Refused
from core.training_bed import config_of, problem_of
from diffusers import UNet2DConditionModel

from fewstep.core.cli.main import DONE, TRAINING_ERROR, main
from fewstep.core.errors import TrainingError
from fewstep.core.training.feed import Feed
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

DIGITS = ("--config", "dmd2-sd15-tiny", "--out", "run")


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Refused(capsys, tmp_path)


@pytest.fixture
def broken(tmp_path):
    """A copy of the tiny pipeline to break."""

    def copied(name: str = "sd") -> Path:
        folder = tmp_path / f"broken-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(teacher(name).folder.path, folder)
        return folder

    return copied


def edit(file: Path, **changes) -> None:
    """Change entries of a JSON file; None takes one out."""
    found = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def train(refused, *settings: str, config: str = "dmd2-sd15-tiny", code: int = 2) -> str:
    return refused("image", "train", "--config", config, "--out", "run", *settings, code=code)


def test_folders_that_are_no_pipelines(refused, broken):
    folder = broken()
    (folder / "model_index.json").unlink()
    line = train(refused, f"domain.teacher={folder}")
    assert str(folder) in line
    assert "model_index.json" in line
    (folder / "model_index.json").write_text("{")
    assert "cannot be read as JSON" in train(refused, f"domain.teacher={folder}")
    assert "no such folder" in train(refused, "domain.teacher=absent/pipeline")
    assert "no model family 'sdd': did you mean 'sd'?" in train(refused, "domain.teacher=tiny:sdd")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_were_cut_off(refused, broken, part):
    folder = broken()
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    assert f"{folder / part}: cannot be read as a" in train(refused, f"domain.teacher={folder}")


def test_missing_and_pickled_components(refused, broken):
    for part in ("unet", "text_encoder", "vae", "scheduler"):
        folder = broken()
        shutil.rmtree(folder / part)
        line = train(refused, f"domain.teacher={folder}")
        assert part in line
        assert "missing" in line
        assert "download the folder again" in line
    folder = broken()
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    line = train(refused, f"domain.teacher={folder}")
    assert "weights are pickled (diffusion_pytorch_model.bin), which is never loaded: convert" in line
    weights.with_suffix(".bin").rename(weights)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{folder / 'unet'}: cannot be read as a UNet2DConditionModel" in train(refused, f"domain.teacher={folder}")


def test_code_of_the_folders_own_is_never_run(refused, broken):
    cases = {
        "custom pipeline code": lambda at: edit(at / "model_index.json", _class_name=["mine", "MyPipeline"]),
        "wants the class evil.Net": lambda at: edit(at / "model_index.json", unet=["evil", "Net"]),
        "brings code of its own (unet/net.py)": lambda at: (at / "unet/net.py").write_text("raise SystemExit"),
        "'auto_map' asks for code": lambda at: edit(at / "text_encoder/config.json", auto_map={"AutoModel": "net.Net"}),
        "unknown class 'NoSuchEncoder'": lambda at: edit(
            at / "model_index.json", text_encoder=["transformers", "NoSuchEncoder"]
        ),
        "its unet is a NoSuchModel": lambda at: edit(at / "model_index.json", unet=["diffusers", "NoSuchModel"]),
        "no adapter for a NoSuchPipeline": lambda at: edit(at / "model_index.json", _class_name="NoSuchPipeline"),
    }
    for named, spoil in cases.items():
        folder = broken()
        spoil(folder)
        line = train(refused, f"domain.teacher={folder}")
        assert named in line
        assert str(folder) in line


def test_schedulers_and_recipes_that_contradict_each_other(refused, broken):
    line = train(refused, "recipe.boundary=lcm", config="consistency-sd3-tiny")
    assert "recipe.boundary" in line
    assert "RectifiedFlow has none" in line
    assert "edm or jump" in line
    folder = broken("sdxl")  # predicts eps
    edit(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    settings = {"dmd2": (), "consistency": (), "ladd": (), "tdm": ("recipe.student_start=1",)}
    for recipe, changed in settings.items():
        line = train(refused, f"domain.teacher={folder}", *changed, config=f"{recipe}-sdxl-tiny")
        assert "'eps' says nothing of x0 at t=999" in line
        assert "start below t_max" in line
    folder = broken()
    edit(folder / "scheduler/scheduler_config.json", _class_name="MyScheduler", beta_start=None, beta_schedule=None)
    line = train(refused, f"domain.teacher={folder}")
    assert "cannot read a MyScheduler" in line
    folder = broken()
    edit(folder / "scheduler/scheduler_config.json", prediction_type="noise")
    assert "prediction_type 'noise' is unknown; valid: epsilon" in train(refused, f"domain.teacher={folder}")


def test_guidance_of_a_guidance_distilled_teacher(refused):
    for config, setting in (("dmd2-flux-tiny", "guidance_scale"), ("consistency-flux-tiny", "guidance_max")):
        line = train(refused, f"recipe.{setting}=4", config=config)
        assert "guidance-distilled" in line
        assert "recipe.guidance_scale=1" in line
        assert "domain.model.guidance" in line


def test_settings_a_pipeline_cannot_take(refused):
    line = train(refused, "domain.roles.mode=lora", "domain.roles.targets=[to_x]")
    assert "LoRA targets to_x" in line
    line = train(refused, "domain.model.height=17", "domain.model.width=16")
    assert "17x16 pixels: this sd model takes multiples of 4, such as 16x16" in line
    assert "belong together" in train(refused, "domain.model.height=16")
    line = train(refused, "domain.roles.mode=lora", "domain.model.offload=[teacher]")
    assert "base of LoRA roles" in line
    assert "leave 'teacher' out" in line
    assert "makes videos: use the domain video" in train(refused, "domain.teacher=tiny:wan")


def test_prompts_and_folders_that_cannot_be_read(refused, tmp_path):
    prompts = tmp_path / "prompts.txt"
    given = ("domain.data.source=prompts", f"domain.data.path={prompts}")
    line = train(refused, *given)
    assert str(prompts) in line
    prompts.write_text("\n \n")
    assert str(prompts) in train(refused, *given)
    prompts.write_bytes(b"caf\xe9\n")
    line = train(refused, *given)
    assert str(prompts) in line
    assert "UTF-8" in line
    (tmp_path / "noclip").mkdir()
    assert "noclip" in train(refused, f"domain.clip={tmp_path / 'noclip'}")
    assert "absent" in train(refused, "domain.clip=absent")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run with weights of its own."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["image", "train", "--config", "dmd2-sd15-tiny", "--out", str(folder), "train.steps=1"]) == DONE
    return folder


def test_exports_that_cannot_be(refused, run, tmp_path):
    line = refused("image", "export", str(run), "--as", "lora", "--out", "out")
    assert "roles.mode=full" in line
    assert "--as pipeline" in line
    assert "lora" in refused("image", "export", str(run), "--as", "lroa", "--out", "out")
    assert "cannot sample in 3" in refused("image", "export", str(run), "--steps", "3", "--out", "out")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert main(["image", "export", str(run), "--out", "out"]) == DONE
    refused.capsys.readouterr()
    assert main(["image", "export", str(run), "--out", "out", "--push", "someone/student"]) == 2
    said = refused.capsys.readouterr().err.splitlines()
    assert said[-1].startswith("fewstep: --push someone/student: ")
    assert "the artefact is in out" in said[-1]


def test_prompts_asked_for_that_cannot_be_read(refused, run):
    assert "absent.txt" in refused("image", "sample", str(run), "--prompts", "absent.txt", "--out", "out.png")


def test_too_little_memory_says_what_shows_more(monkeypatch):
    config = config_of("sd", "tdm", "train.steps=1")
    problem, method = problem_of("sd", config)
    trainer = Trainer(config, problem, method, World())

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "forward", full)
    with (
        Feed(problem.data, config, World()) as feed,
        pytest.raises(TrainingError, match="`fewstep plan` shows") as told,
    ):
        trainer.step(feed.get(0), feed)
    assert "phase 'fake_score': out of memory with one sample at a time" in str(told.value)


def test_too_little_memory_ends_a_run_with_one_line(refused, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "forward", full)
    line = refused("image", "train", *DIGITS, code=TRAINING_ERROR, leaves=("run",))
    assert line.endswith("`fewstep plan` shows what would fit")
