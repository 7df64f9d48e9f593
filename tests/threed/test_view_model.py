"""View models: what they read of prompts and cameras, and folders of them."""

from __future__ import annotations

import json

import pytest
import torch
from threed.scene_bed import around, difference, tiny_folder, tiny_model

from fewstep.core.errors import UserError
from fewstep.threed.judges import ViewJudge
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.shapes.prompts import VOCABULARY
from fewstep.threed.teachers.backbone import CAMERA, TOKENS, WORDS_FILE
from fewstep.threed.teachers.view_model import ABOUT, export_model, load_model

T = torch.tensor([400.0, 400.0])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ask(model, texts, camera):
    x = torch.randn(len(texts), *(3, model.size, model.size), generator=torch.Generator().manual_seed(0))
    return model.denoiser.x0(x, T[: len(texts)], {**model.encode(texts), **model.seen_from(camera)})


def test_prompt_and_camera_are_both_read(model):
    camera = around(2, 16)
    same = ask(model, ["a red cone", "a red cone"], camera)
    other = ask(model, ["a blue box", "a red cone"], camera)
    assert difference(same[0], other[0]) > 1e-4
    assert difference(same[1], other[1]) < 1e-6
    turned = ask(model, ["a red cone", "a red cone"], around(2, 16, elevation=30.0))
    assert difference(same, turned) > 1e-4


def test_the_unconditional_prediction_keeps_its_camera(model):
    cond = {**model.encode(["a red cone"]), **model.seen_from(around(1, 16))}
    null = model.denoiser.null(cond)
    assert int(null[TOKENS].abs().sum()) == 0
    assert torch.equal(null[CAMERA], cond[CAMERA])


def test_every_prompt_it_is_trained_on_can_be_read_and_told_apart(model):
    tokens = model.encode(named_prompts("on"))[TOKENS]
    assert tokens.shape[1] == model.backbone.words.length
    assert int(tokens.max()) <= len(VOCABULARY)
    assert len({tuple(row.tolist()) for row in tokens}) == len(tokens)


@pytest.mark.parametrize(
    ("text", "why"), [("", "empty"), ("a shiny cone", "does not know 'shiny'"), (" ".join(["red"] * 9), "9 words")]
)
def test_prompts_it_cannot_read_are_refused(model, text, why):
    with pytest.raises(UserError, match=why):
        model.encode([text])


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_gives_the_same_model_back(model, tmp_path, half):
    from fewstep.core.recipe import StepPlan

    export_model(tiny_model().denoiser, StepPlan((999.0,)), tmp_path / "m", {"name": "m"}, model, half=half)
    back = load_model(str(tmp_path / "m"))
    assert (back.size, back.cameras) == (model.size, model.cameras)
    camera, texts = around(2, 16), ["a red cone", "a blue box"]
    assert difference(ask(back, texts, camera), ask(model, texts, camera)) < (2e-2 if half else 1e-6)


def test_damaged_folders_are_refused_by_name(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / WORDS_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=WORDS_FILE):
        load_model(str(folder))
    folder = tiny_folder(tmp_path / "n")
    (folder / ABOUT).write_text(json.dumps({"size": 16}), encoding="utf-8")
    with pytest.raises(UserError, match=ABOUT):
        load_model(str(folder))
    folder = tiny_folder(tmp_path / "o")
    (folder / "words.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"words\.safetensors"):
        load_model(str(folder))
    with pytest.raises(UserError, match="no teacher"):
        load_model(str(tmp_path / "nothing"))


def test_a_judge_sees_what_the_scene_shows(model):
    judge = ViewJudge(model)
    scene = GaussianScene.ball(20, 0.5, 0, seed=0)
    camera = around(2, 16)
    seen = scene.views(camera)
    sample = judge.sample(seen, camera, judge.encode(["a red cone", "a red cone"]))
    assert difference(judge.pictures(sample.x0), seen.rgb.clamp(0, 1)) < 1e-6
    sample.x0.square().sum().backward()
    assert all(float(parameter.grad.abs().sum()) >= 0 for parameter in scene.parameters())
    assert float(scene.stored["harmonics"].grad.abs().sum()) > 0
