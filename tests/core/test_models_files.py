"""Pipelines on disk: what is asked of a hub, and shapes that need no weights."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import huggingface_hub
import pytest
import torch
from core.model_bed import teacher

from fewstep.core.errors import UserError
from fewstep.core.models.export import export_pipeline
from fewstep.core.models.files import PipelineFolder
from fewstep.core.models.loading import Teacher
from fewstep.core.recipe import StepPlan

HUB = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "tokenizer/merges.txt",
    "pipeline.py",
]


@pytest.fixture
def asked(monkeypatch):
    """A hub that holds the tiny pipeline under any name; the files it was asked for, out of :data:`HUB`."""
    seen: list[list[str]] = []

    def snapshot_download(name, revision, allow_patterns, ignore_patterns):
        def given(file: str) -> bool:
            wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
            return wanted and not any(fnmatch(file, pattern) for pattern in ignore_patterns)

        seen.append([file for file in HUB if given(file)])
        return str(teacher("sd").folder.path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return seen


def test_a_hub_gives_safetensors_of_one_variant_and_no_code(asked):
    found = Teacher.find("owner/model")
    assert found.folder.name == "owner/model"
    plain = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"]
    assert asked[-1] == plain
    PipelineFolder.find("owner/model", variant="fp16")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[-1]


def test_configurations_alone_download_no_weights(asked):
    Teacher.find("owner/model", weights=False)
    assert asked[-1] == ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]


@pytest.mark.parametrize("name", ["./absent", "absent", "a/b/c", "/absent"])
def test_a_path_that_is_not_there_is_no_question_to_the_hub(name, asked):
    with pytest.raises(UserError, match="no such folder"):
        Teacher.find(name)
    assert asked == []


def test_shapes_need_no_weights(tmp_path):
    folder = shutil.copytree(teacher("sd").folder.path, tmp_path / "shapes")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    found = PipelineFolder.open(folder)
    shapes = {name: p.shape for name, p in found.skeleton("unet").named_parameters()}
    assert shapes == {name: p.shape for name, p in teacher("sd").folder.load("unet").named_parameters()}
    assert {p.device for p in found.skeleton("text_encoder").parameters()} == {torch.device("meta")}
    with pytest.raises(UserError, match="no safetensors"):
        found.load("unet")


def test_prompts_that_are_cut_are_counted_once(caplog):
    short, long = "a fox", "a fox " * 20
    with caplog.at_level("WARNING"):
        found = teacher("sdxl").encode([short, long, short])
    assert caplog.messages == ["1 of 3 prompts are longer than CLIP's 24 tokens and are cut"]
    assert torch.equal(found.cond["prompt_embeds"][0], found.cond["prompt_embeds"][2])


def test_a_component_of_another_library_is_code_and_not_run(tmp_path):
    folder = shutil.copytree(teacher("sd").folder.path, tmp_path / "odd")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["os", "system"]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"os\.system"):
        PipelineFolder.open(folder)


def test_a_safety_checker_is_no_part_of_a_teacher_nor_of_a_student(tmp_path):
    folder = shutil.copytree(teacher("sd").folder.path, tmp_path / "checked")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    found = Teacher.find(str(folder))
    assert found.folder.parts == teacher("sd").folder.parts
    plan = StepPlan((999.0,), "deterministic")
    export_pipeline(found.denoiser(None), plan, tmp_path / "out", {"name": "student"}, found)
    written = json.loads((tmp_path / "out" / "model_index.json").read_text(encoding="utf-8"))
    assert written["safety_checker"] == [None, None]
    assert PipelineFolder.open(tmp_path / "out").parts.keys() == found.folder.parts.keys()
