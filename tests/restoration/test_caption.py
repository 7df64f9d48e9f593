"""`fewstep restoration caption`: what the model itself says, beside each picture; what is there stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from restoration.caption_bed import Says, album, blip, captions, git, refused, speaker, values
from restoration.model_bed import restoration


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture(scope="module")
def says(model) -> Says:
    return speaker(model)


def test_each_picture_gets_what_the_model_says_of_it(tmp_path, model, says, capsys):
    paths = album(tmp_path)
    assert restoration("caption", tmp_path, "--model", model) == 0
    expected = [says(values(i, width=30 + i)) for i in range(5)]
    assert len(set(expected)) == 5
    assert all(text.startswith("word") for text in expected)
    for path, text in zip(paths, expected, strict=True):
        assert path.with_suffix(".txt").read_bytes() == text.encode() + b"\n"
    said = capsys.readouterr()
    assert said.out == "5 of 5 pictures captioned\n"
    shown = [f"{path.with_suffix('.txt')}: {text}" for path, text in zip(paths, expected, strict=True)]
    assert sorted(said.err.splitlines()) == sorted(shown)


def test_git_captions_too(tmp_path, capsys):
    folder = git(tmp_path / "git")
    paths = album(tmp_path / "album", 3)
    assert restoration("caption", *paths, "--model", folder) == 0
    own = speaker(folder)
    expected = [own(values(i, width=30 + i)) for i in range(3)]
    assert [path.with_suffix(".txt").read_text() for path in paths] == [f"{text}\n" for text in expected]
    assert len(set(expected)) == 3


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batches_change_no_caption(tmp_path, model, says, batch):
    paths = album(tmp_path)
    assert restoration("caption", tmp_path, "--model", model, "--batch", batch) == 0
    found = [path.with_suffix(".txt").read_text().rstrip("\n") for path in paths]
    assert found == [says(values(i, width=30 + i)) for i in range(5)]


def test_a_caption_has_at_most_so_many_tokens(tmp_path, model, says):
    (path,) = album(tmp_path, 1)
    assert restoration("caption", path, "--model", model, "--max-tokens", 4) == 0
    assert path.with_suffix(".txt").read_text().split() == says(values(0, width=30)).split()[:4]


def test_bfloat16_captions(tmp_path, model):
    (path,) = album(tmp_path, 1)
    assert restoration("caption", path, "--model", model, "--precision", "bf16") == 0
    assert path.with_suffix(".txt").read_text().startswith("word")


def test_captions_that_are_there_stay(tmp_path, model, capsys):
    paths = album(tmp_path)
    assert restoration("caption", tmp_path, "--model", model) == 0
    first = captions(tmp_path)
    paths[0].with_suffix(".txt").write_text("my own words\n")
    paths[1].with_suffix(".txt").unlink()
    paths[2].with_suffix(".txt").write_text("\n")
    capsys.readouterr()
    assert restoration("caption", tmp_path, "--model", model) == 0
    assert capsys.readouterr().out == "2 of 5 pictures captioned, 3 there already (--overwrite makes them again)\n"
    assert captions(tmp_path) == first | {"0.txt": "my own words\n"}
    assert restoration("caption", tmp_path, "--model", model, "--overwrite") == 0
    assert captions(tmp_path) == first


def test_nothing_is_loaded_where_all_is_there(tmp_path, capsys):
    (path,) = album(tmp_path, 1)
    path.with_suffix(".txt").write_text("my own words\n")
    assert restoration("caption", path, "--model", tmp_path / "missing") == 0
    assert capsys.readouterr().out.startswith("0 of 1 pictures captioned, 1 there already")


def test_a_picture_given_twice_is_one(tmp_path, model, capsys):
    (path,) = album(tmp_path, 1)
    assert restoration("caption", tmp_path, path, "--model", model) == 0
    assert capsys.readouterr().out == "1 of 1 pictures captioned\n"


def seen(kind: str, path: Path) -> np.ndarray:
    """Write a picture of a kind, and return what a model is to see of it."""
    x = values(7)
    if kind == "gray":
        Image.fromarray(x[..., 0]).save(path)
        return np.repeat(x[..., :1], 3, axis=2)
    if kind == "16-bit":
        steps = x[..., 0].astype(np.uint16) * 256 + x[..., 1]
        Image.fromarray(steps).save(path)
        return np.repeat((steps / 65535 * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if kind == "alpha":
        alpha = values(8)[..., :1]
        Image.fromarray(np.concatenate([x, alpha], axis=2)).save(path)
        share = alpha / 255
        return (x * share + 255 * (1 - share)).round().astype(np.uint8)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(x).save(path, exif=exif)
        return np.rot90(x, -1).copy()
    thin = values(9, height=3, width=5)
    Image.fromarray(thin).save(path)
    return thin


@pytest.mark.parametrize("kind", ["gray", "16-bit", "alpha", "turned", "three rows"])
def test_pictures_are_seen_as_they_are_shown(tmp_path, model, says, kind):
    expected = seen(kind, tmp_path / "a.png")
    assert restoration("caption", tmp_path / "a.png", "--model", model) == 0
    assert (tmp_path / "a.txt").read_text() == says(expected) + "\n"
    assert says(expected) != says(values(7))


def test_a_broken_picture_stops_no_other(tmp_path, model, capsys):
    paths = album(tmp_path)
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    assert restoration("caption", tmp_path, "--model", model, "--batch", 3) == 3
    said = capsys.readouterr()
    assert said.out == "4 of 5 pictures captioned\n"
    lines = said.err.splitlines()
    assert sum(line.startswith(f"failed: {paths[2]} cannot be read") for line in lines) == 1
    assert lines[-1].startswith("fewstep: 1 of 5 pictures failed: ")
    assert [path.with_suffix(".txt").exists() for path in paths] == [True, True, False, True, True]


def test_nothing_but_broken_pictures_is_a_mistake(tmp_path, model, capsys):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert restoration("caption", tmp_path, "--model", model) == 2
    assert "2 of 2 pictures failed" in capsys.readouterr().err
    assert "is not an image" in refused(capsys, tmp_path / "a.png", "--model", model)
    assert not captions(tmp_path)


def test_strips_are_refused(tmp_path, model, capsys):
    Image.new("L", (1, 101)).save(tmp_path / "strip.png")
    assert "more than 100 times as long as wide" in refused(capsys, tmp_path / "strip.png", "--model", model)


def test_no_caption_is_an_error_and_no_empty_file(tmp_path, capsys):
    folder = blip(tmp_path / "blip", silent=True)
    (path,) = album(tmp_path / "album", 1)
    assert "the model says nothing of it" in refused(capsys, path, "--model", folder)
    assert not captions(tmp_path / "album")


def test_a_caption_that_cannot_be_written_leaves_nothing_behind(tmp_path, model, capsys, monkeypatch):
    paths = album(tmp_path)
    replace = os.replace

    def full(source, target):
        if Path(target).name == "2.txt":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert restoration("caption", tmp_path, "--model", model) == 3
    said = capsys.readouterr().err
    assert f"failed: {paths[2]}: its caption cannot be written (No space left on device)" in said
    assert sorted(captions(tmp_path)) == ["0.txt", "4.txt", "deep/er/1.txt", "deep/er/3.txt"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_pictures_that_are_not_there_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    assert "no such file or folder" in refused(capsys, tmp_path / "missing", "--model", "blip")
    assert "holds no images" in refused(capsys, tmp_path / "empty", "--model", "blip")
    assert "is where a caption would go" in refused(capsys, tmp_path / "notes.txt", "--model", "blip")
    assert (tmp_path / "notes.txt").read_text() == "no picture"


def test_pictures_that_would_share_a_caption_are_refused(tmp_path, capsys):
    for name in ("a.png", "a.tif"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert "would share" in refused(capsys, tmp_path, "--model", "blip")


def test_folders_that_may_not_be_written_to_are_refused(tmp_path, capsys, monkeypatch):
    album(tmp_path)
    locked = (tmp_path / "deep" / "er").resolve()
    allowed = os.access
    # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and allowed(path, mode))
    assert f"{locked}: may not be written to" in refused(capsys, tmp_path, "--model", "blip")
    assert not captions(tmp_path)


@pytest.mark.slow
def test_libraries_are_quiet_and_loaded_when_they_are_used(tmp_path, model):
    paths = album(tmp_path, 2)
    code = (
        "import sys, fewstep.restoration.captioning, fewstep.restoration.verbs\n"
        "assert not {'transformers', 'diffusers'} & set(sys.modules)\n"
        "from fewstep.core.cli.main import domain_main\n"
        "code = domain_main('restoration', sys.argv[1:])\n"
        "assert 'torchvision' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, "caption", str(tmp_path), "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(path.with_suffix(".txt")) for path in paths]
