"""`fewstep restoration upscale`: files and folders, what is there stays, what is bad is named and nothing half made."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from restoration.restorer_bed import StandIn, bicubic
from torch.testing import assert_close

from fewstep.core.cli.main import guarded, run_verb
from fewstep.core.errors import UserError
from fewstep.core.verb import Verb
from fewstep.restoration.cli.upscaling import upscale, upscale_arguments
from fewstep.restoration.pictures.reading import read_picture

_FOLDERS = [folder / "shared" / "data" for folder in Path(__file__).resolve().parents[3:]]  # a worktree lies deeper
PHOTOS = next((folder for folder in _FOLDERS if folder.exists()), _FOLDERS[0])
VERB = Verb("", upscale_arguments, upscale)


class Asked(list[dict]):
    """How models were asked for, and what each was told of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[str]] = []


@pytest.fixture(autouse=True)
def loaded(monkeypatch) -> Asked:
    """A bicubic stand-in for every model but one called `missing`; returns how models were asked for."""
    asked = Asked()

    class Restorer:
        @classmethod
        def load(cls, model: str, **how) -> StandIn:
            if model == "missing":
                raise UserError("model 'missing': unknown; valid: photos, photos-student")
            asked.append({"model": model, **how})
            bad = how["precision"] == "bf16" and model == "overflows"
            function = (lambda x, s: bicubic(x, s) * float("inf")) if bad else bicubic
            made = StandIn(function, radius=2, scales=(4,) if model == "four" else (2, 3, 4, 8))
            asked.told.append([])
            made.check_words, made.tell = (lambda: None), asked.told[-1].append
            return made

    module = ModuleType("fewstep.restoration.restorer")
    module.Restorer = Restorer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def command(*args: object) -> int:
    return guarded(lambda: run_verb(VERB, [str(arg) for arg in args], "fewstep restoration upscale"))


def drawn(path: Path, mode: str = "RGB", height: int = 6, width: int = 9, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(values).save(path, **how)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refused(capsys, *args: object) -> str:
    assert command(*args) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_a_file_becomes_a_file(tmp_path, capsys, monkeypatch):
    photo = drawn(tmp_path / "a.png")
    assert command(photo, "-o", tmp_path / "new" / "b.tif", "-s", 3) == 0
    said = capsys.readouterr()
    assert "9x6 became 27x18, 1 tile, in" in said.err
    assert said.out == "1 of 1 pictures written\n"
    assert read_picture(tmp_path / "new" / "b.tif").size == (18, 27)
    assert files_in(tmp_path / "new") == ["b.tif"]
    monkeypatch.chdir(tmp_path)
    assert command("a.png") == 0
    assert command("a.png", "-o", "there", "--suffix", "_up", "--ext", "webp") == 0
    assert files_in(tmp_path) == ["a-x4.png", "a.png", "new/b.tif", "there/a_up.webp"]


def test_folders_keep_their_hierarchy_and_go_on_where_they_stopped(tmp_path, capsys, loaded):
    photos, out, report = tmp_path / "photos", tmp_path / "photos" / "out", tmp_path / "r" / "report.json"
    drawn(photos / "a.png")
    drawn(photos / "deep" / "er" / "a.jpg", "L")
    drawn(photos / "deep" / "b.bmp")
    drawn(photos / ".hidden" / "c.png")
    (photos / "notes.txt").write_text("no picture")
    extra = drawn(tmp_path / "x.gif", "L")
    args = (photos, extra, "-o", out, "-s", 2, "--json", report)
    assert command(*args) == 0
    made = ["a.png", "deep/b.png", "deep/er/a.jpg", "x.png"]
    assert files_in(out) == made
    (out / "deep/b.png").unlink()
    before = (out / "a.png").stat().st_mtime_ns
    capsys.readouterr()
    assert command(*args) == 0
    assert "1 of 4 pictures written, 3 there already" in capsys.readouterr().out
    assert files_in(out) == made, "results inside of the input folder are no inputs"
    assert (out / "a.png").stat().st_mtime_ns == before
    told = json.loads(report.read_text())
    assert sorted(file["status"] for file in told["files"]) == ["done", "skipped", "skipped", "skipped"]
    done = next(file for file in told["files"] if file["status"] == "done")
    assert done.items() >= {"size": [9, 6], "result_size": [18, 12], "mode": "RGB", "bits": 8, "tiles": 1}.items()
    assert told["settings"]["scale"] == 2
    asked = len(loaded)
    assert command(*args) == 0
    assert len(loaded) == asked, "no model is loaded when nothing is to be done"
    assert command(*args, "--overwrite") == 0
    assert (out / "a.png").stat().st_mtime_ns > before


def test_a_bad_file_stops_no_other_and_shows_in_the_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.core.data.clips.find_clip_files", lambda: None)
    photos, out = tmp_path / "photos", tmp_path / "out"
    whole = drawn(photos / "good.png")
    (photos / "empty.png").touch()
    (photos / "cut.png").write_bytes(whole.read_bytes()[:-30])
    (photos / "text.jpg").write_text("no picture")
    (photos / "clip.mkv").write_bytes(b"a video")
    report = tmp_path / "report.json"
    assert command(photos, "-o", out, "--json", report) == 3
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("fewstep: 4 of 5 pictures failed: ")
    assert sum(line.startswith("failed: ") for line in said) == 4
    assert any("fewstep-video" in line for line in said)
    assert files_in(out) == ["good.png"]
    told = {Path(file["input"]).name: file for file in json.loads(report.read_text())["files"]}
    assert {name for name, file in told.items() if file["status"] == "failed"} == told.keys() - {"good.png"}
    assert "is empty" in told["empty.png"]["reason"]


def test_what_is_wrong_with_an_input_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.core.data.clips.find_clip_files", lambda: None)
    out = tmp_path / "out"
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(drawn(tmp_path / "a.png").read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    (tmp_path / "nothing" / "inside").mkdir(parents=True)
    bomb = bytearray((tmp_path / "a.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 12_000, 12_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    cases = {
        "empty.png": "is empty",
        "cut.png": "cannot be read",
        "text.png": "not an image",
        "bomb.png": "claims 12000x12000 pixels",
        "clip.mp4": "is a video",
        "nothing": "holds no images",
        "gone.png": "no such file",
    }
    for name, reason in cases.items():
        said = refused(capsys, tmp_path / name, "-o", out)
        assert reason in said
        assert name in said
    assert not out.exists() or files_in(out) == []


def test_wrong_names_are_no_obstacle_content_decides(tmp_path):
    drawn(tmp_path / "in" / "a.jpg", "RGBA", format="PNG")
    drawn(tmp_path / "in" / "b.png", format="JPEG")
    photo = drawn(tmp_path / "c.data", format="PNG")
    assert command(tmp_path / "in", photo, "-o", tmp_path / "out") == 0
    assert files_in(tmp_path / "out") == ["a.png", "b.png", "c.png"]
    with Image.open(tmp_path / "out" / "b.png") as opened:
        assert opened.format == "PNG"


def test_mistakes_in_options_are_said_before_work_begins(tmp_path, capsys, loaded):
    photo, out = drawn(tmp_path / "in" / "a.png"), tmp_path / "out"
    alpha = drawn(tmp_path / "alpha.png", "RGBA")
    locked = tmp_path / "file"
    locked.write_text("")
    cases = [
        ((photo, "-s", "0"), "invalid choice: 0"),
        ((photo, "-s", "5"), "invalid choice: 5"),
        ((photo, "--tile", "-3"), "not a whole number"),
        ((drawn(tmp_path / "in" / "a.png", height=40), "--tile", "8", "--overlap", "6"), "tile 8: too small"),
        ((photo, "--ext", "gif"), "invalid choice"),
        ((photo, "-o", tmp_path / "a.gif"), "valid: .png"),
        ((photo, "-o", tmp_path / "a.png", "--ext", "jpg"), "names another format"),
        ((photo, "-o", photo), "that is an input"),
        ((photo, "-o", photo, "--overwrite"), "that is an input"),
        ((photo, "-o", photo.parent), "that is an input"),
        ((photo.parent, "-o", photo.parent, "--suffix", "x"), "that is the input"),
        ((photo.parent, "-o", locked), "a file; give a folder"),
        ((photo, "-o", locked / "b.png"), "cannot be made"),
        ((alpha, "-o", tmp_path / "a.jpg"), "JPEG does not hold RGBA of 8 bits, write .png"),
        ((photo, "--suffix", "../x"), "part of a file's name"),
        ((photo, "--model", "missing"), "model 'missing': unknown"),
        ((photo, "--model", "four", "-s", "2"), "model 'four' was made for 4"),
        ((photo, "--device", "nowhere"), "--device nowhere"),
        ((photo, "--json", tmp_path / "in"), "cannot be written"),
    ]
    for args, reason in cases:
        given = args if "-o" in args else (*args, "-o", out)
        if "--json" not in args:
            assert reason in refused(capsys, *given), args
        else:
            assert command(*given) == 2
            assert reason in capsys.readouterr().err
            assert files_in(out) == ["a.png"]
            (out / "a.png").unlink()
    assert files_in(tmp_path) == ["alpha.png", "file", "in/a.png"]


def test_two_pictures_never_become_one_file(tmp_path, capsys):
    drawn(tmp_path / "in" / "a.png")
    drawn(tmp_path / "in" / "a.jpg")
    said = refused(capsys, tmp_path / "in", "-o", tmp_path / "out", "--ext", "png")
    assert "a.jpg" in said
    assert "a.png would both become" in said
    assert not (tmp_path / "out").exists()
    assert command(tmp_path / "in", "-o", tmp_path / "out") == 0
    assert files_in(tmp_path / "out") == ["a.jpg", "a.png"]
    drawn(tmp_path / "other" / "a.png")
    capsys.readouterr()
    refused(capsys, tmp_path / "in", tmp_path / "other", "-o", tmp_path / "both")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, capsys):
    photo = drawn(tmp_path / "a.png")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "may not be written to" in refused(capsys, photo, "-o", tmp_path / "locked")


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path, capsys):
    photo = drawn(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "b.png" / "x.png").mkdir()
    photo.rename(tmp_path / "x.png")
    said = refused(capsys, tmp_path / "x.png", "-o", tmp_path / "b.png", "--overwrite")
    assert "cannot be written" in said
    assert files_in(tmp_path) == ["x.png"]


def test_options_reach_the_model_and_what_overflows_is_done_in_single_precision(tmp_path, loaded):
    photo = drawn(tmp_path / "a.png")
    options = ("--seed", 7, "--steps", 2, "--noise", 0.5, "--sampler", "ancestral", "--precision", "bf16")
    assert command(photo, "-o", tmp_path / "b.png", "--model", "overflows", "-s", 2, *options) == 0
    how = {
        "model": "overflows",
        "seed": 7,
        "steps": 2,
        "noise": 0.5,
        "sampler": "ancestral",
        "device": torch.device("cpu"),
    }
    assert loaded == [{**how, "precision": "bf16"}, {**how, "precision": "fp32"}]
    x = read_picture(photo).colours
    assert_close(read_picture(tmp_path / "b.png").colours, bicubic(x[None], 2)[0].clamp(0, 1), atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_the_smallest_pictures_are_enlarged(tmp_path, size):
    photo = drawn(tmp_path / "a.png", "RGBA", *size)
    assert command(photo, "-o", tmp_path / "b.png", "-s", 8, "--tile", 16) == 0
    assert read_picture(tmp_path / "b.png").size == (8 * size[0], 8 * size[1])


@pytest.mark.parametrize(
    ("name", "mode", "bits"),
    [
        ("photo_00017_gray.png", "L", 8),
        ("photo_children-alpha.png", "RGBA", 8),
        ("photo_tree_alpha_16bit.png", "RGBA", 16),
    ],
)
def test_real_photos_keep_mode_depth_and_transparency(tmp_path, name, mode, bits):
    if not (PHOTOS / name).exists():
        pytest.skip(f"no {PHOTOS / name}")
    assert command(PHOTOS / name, "-o", tmp_path, "-s", 2, "--tile", 200) == 0
    before, after = read_picture(PHOTOS / name), read_picture(tmp_path / name)
    assert (after.mode, after.bits, after.icc) == (mode, bits, before.icc)
    assert after.size == tuple(2 * side for side in before.size)
    pairs = [(before.colours, after.colours)]
    if before.alpha is not None:
        pairs.append((before.alpha, after.alpha))
    for small, large in pairs:
        assert_close(torch.nn.functional.avg_pool2d(large, 2).mean(), small.mean(), atol=2e-3, rtol=0)
    assert bits == 8 or len(after.colours.unique()) > 256


def test_the_options_load_no_library():
    code = (
        "import sys; from argparse import ArgumentParser as P\n"
        "from fewstep.restoration.cli import upscaling, degrading\n"
        "upscaling.upscale_arguments(P()); degrading.degrade_arguments(P());"
        "print(sorted({'torch', 'numpy', 'PIL', 'kornia'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_picture_s_caption_is_told_to_whatever_does_its_tiles(tmp_path, loaded):
    for name, caption in (("a", "a cat"), ("b", ""), ("c", "a cone\n")):
        drawn(tmp_path / f"in/{name}.png").with_suffix(".txt").write_text(caption, encoding="utf-8")
    report = tmp_path / "report.json"
    args = (tmp_path / "in", "-o", tmp_path / "out", "--model", "overflows", "--precision", "bf16", "--json", report)
    assert command(*args, "--captions", "--prompt", "a photo") == 0
    assert [each["precision"] for each in loaded] == ["bf16", "fp32"]
    assert loaded.told == [["a cat", "a photo", "a cone"]] * 2
    settings = json.loads(report.read_text())["settings"]
    assert (settings["prompt"], settings["captions"]) == ("a photo", True)
    assert command(*args, "--overwrite") == 0
    assert loaded.told[2:] == [[], []]
