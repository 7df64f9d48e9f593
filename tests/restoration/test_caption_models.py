"""Models that `fewstep restoration caption` refuses, each in a line, and those it downloads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from restoration.caption_bed import album, blip, captions, refused
from restoration.model_bed import restoration

import fewstep.restoration.captioning as captioning


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return blip(tmp_path_factory.mktemp("models") / "blip")


def changed(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = load_file(folder / "model.safetensors")
    name = next(name for name in held if name.startswith("text_decoder") and name.endswith("weight"))
    del held[name]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def resized(folder: Path) -> None:
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"height": 24, "width": 32}
    changed(folder, "processor_config.json", **processor)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors there"),
    "pickled": (pickled, "pickled (pytorch_model.bin), which is never loaded"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "cannot be read as a Blip"),
    "incomplete": (without_weights, "1 weights are missing"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    "of another type": (
        lambda folder: changed(folder, "config.json", model_type="llava"),
        "type 'llava', captions are made by BlipForConditionalGeneration and GitForCausalLM",
    ),
    "of no type": (lambda folder: changed(folder, "config.json", model_type=["blip"]), "type '['blip']'"),
    "for answers": (
        lambda folder: changed(folder, "config.json", architectures=["BlipForQuestionAnswering"]),
        "architectures ['BlipForQuestionAnswering']",
    ),
    "of videos": (lambda folder: changed(folder, "config.json", num_image_with_embedding=6), "a model of videos"),
    "of words": (
        lambda folder: changed(folder, "config.json", vision_config={"hidden_size": "wide"}),
        "cannot be read as a BlipForConditionalGeneration",
    ),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "cannot be read as a "),
    "no vocabulary": (
        lambda folder: [path.unlink() for path in folder.iterdir() if path.name.startswith(("vocab", "tokenizer"))],
        "none of tokenizer.json, vocab.txt",
    ),
    "of other sizes": (resized, "its processor makes (3, 24, 32) of pictures and the model takes (3, 32, 32)"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_models_that_cannot_caption_are_refused(tmp_path, model, capsys, fault):
    shutil.copytree(model, tmp_path / "blip")
    harm, message = BROKEN[fault]
    harm(tmp_path / "blip")
    album(tmp_path / "album", 2)
    said = refused(capsys, tmp_path / "album", "--model", tmp_path / "blip")
    assert message in said
    assert str(tmp_path / "blip") in said
    assert not captions(tmp_path / "album")


def test_names_of_no_model_and_too_many_tokens_are_refused(tmp_path, model, capsys):
    (path,) = album(tmp_path, 1)
    assert "no such folder, and not a hub id" in refused(capsys, path, "--model", "blip")
    assert "not a folder" in refused(capsys, path, "--model", path)
    assert "--max-tokens 64" in refused(capsys, path, "--model", model, "--max-tokens", 64)
    assert "--model" in refused(capsys, path)
    assert "--device" in refused(capsys, path, "--model", model, "--device", "nowhere")


def test_weights_are_downloaded_of_known_models_only(tmp_path, model, capsys, monkeypatch):
    folder = shutil.copytree(model, tmp_path / "blip")
    (path,) = album(tmp_path, 1)
    asked: list[bool] = []

    def download(name: str, *, weights: bool = True, what: str) -> Path:
        assert (name, what) == ("some/blip", "model")
        asked.append(weights)
        return folder

    monkeypatch.setattr(captioning, "download", download)
    assert restoration("caption", path, "--model", "some/blip") == 0
    assert asked == [False, True]
    capsys.readouterr()
    (folder / "model.safetensors").unlink()
    assert "the hub has no safetensors of it" in refused(capsys, path, "--model", "some/blip", "--overwrite")
    changed(folder, "config.json", model_type="llava")
    asked.clear()
    refused(capsys, path, "--model", "some/blip", "--overwrite")
    assert asked == [False]
