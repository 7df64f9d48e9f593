"""`evaluate`: files and folders against references, and models on pictures degraded here."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from math import log10
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.core.errors import TrainingError, UserError
from fewstep.restoration.benchmark import Bicubic, Entry
from fewstep.restoration.cli.evaluating import evaluate, evaluate_arguments
from fewstep.restoration.degradations import imresize
from fewstep.restoration.evaluation import Scores
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.writing import write_picture


def run(*words):
    parser = ArgumentParser()
    evaluate_arguments(parser)
    evaluate(parser.parse_args([str(word) for word in words]))


def photo(seed: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A smooth picture with edges, RGB of 8 bits, dark enough to be made brighter by 10."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.random((1, 3, height // 8, width // 8)))
    smooth = imresize(small, 8)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    return (200 * smooth + 20 * (rng.random((height, width, 1)) > 0.5)).astype(np.uint8)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    for i in range(3):
        save(tmp_path / "hr" / "sub" / f"{i}.png", photo(i))
        save(tmp_path / "ours" / "sub" / f"{i}_x4.png", photo(i) + 10)
    return tmp_path


def test_the_options_load_no_library():
    code = (
        "import sys; from argparse import ArgumentParser; import fewstep.restoration.cli.evaluating as e; "
        "import fewstep.restoration.cli.comparing as c; e.evaluate_arguments(ArgumentParser()); "
        "c.compare_arguments(ArgumentParser()); sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_folders_with_a_constant_offset_have_the_psnr_in_closed_form(folders, capsys):
    run(folders / "ours", folders / "hr", "--json", folders / "numbers.json")
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["picture", "PSNR-Y", "SSIM-Y", "GMSD", "spectrum"]
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["sub/0", "sub/1", "sub/2"]
    assert "mean of 3" in out
    assert out.count("no border cut") == 3
    result = json.loads((folders / "numbers.json").read_text())
    assert result["mean"]["psnr"] == pytest.approx(20 * log10(255 / 10) + 1.321921, abs=1e-6)
    assert result["mean"]["gmsd"] == pytest.approx(0, abs=1e-6)
    assert len(result["pictures"]) == 3
    assert len(result["pictures"][0]["octaves_db"]) == 4
    assert len(result["protocol"]) == 3


def test_the_crop_is_used_and_told(folders, capsys):
    bad = photo(0)
    bad[:4] = 255
    save(folders / "bad.png", bad)
    run(folders / "bad.png", folders / "hr" / "sub" / "0.png", "--crop", 4, "--metrics", "psnr,ssim")
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["bad.png", "inf", "1"]
    assert out.count("4 pixels cut from every border") == 1  # one sentence says both
    assert "mean" not in out


def test_equal_pictures_are_infinite_in_valid_json(folders):
    hr = folders / "hr"
    run(hr, hr, "--metrics", "psnr", "--json", folders / "numbers.json")
    result = json.loads((folders / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert result["mean"] == {"psnr": "inf"}


def test_bad_pictures_are_skipped_with_a_line_and_an_exit_code(folders, capsys):
    (folders / "ours" / "sub" / "0_x4.png").write_bytes(b"not a picture")
    save(folders / "ours" / "sub" / "1_x4.png", photo(1)[:40])
    save(folders / "hr" / "lonely.png", photo(1))
    with pytest.raises(TrainingError, match="2 of 3 pictures skipped") as caught:
        run(folders / "ours", folders / "hr")
    assert "sub/1: restored and reference have 40x40 and 40x48 pixels" in str(caught.value)
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.err.splitlines()] == ["skipped"] * 2
    assert "sub/2" in said.out
    assert "1 without a partner, not in the table" in said.out
    assert "lonely.png: no restored picture" in said.out


def test_modes_are_compared_as_they_are(folders, capsys):
    rgb = photo(0)
    gray = rgb[..., 0]
    wide = (gray.astype(np.uint16) * 257 + 60)[None]  # rounds to the same 8 bits
    deep = Picture(colours=torch.from_numpy(wide.astype(np.float32)) / 65535, mode="L", bits=16)
    write_picture(folders / "deep.png", deep)
    save(folders / "gray.png", gray)
    save(folders / "as-rgb.png", np.stack([gray] * 3, axis=-1))
    save(folders / "clear.png", np.dstack([rgb, np.zeros_like(gray)]))
    for ours, theirs in [("deep.png", "gray.png"), ("gray.png", "as-rgb.png"), ("clear.png", "hr/sub/0.png")]:
        run(folders / ours, folders / theirs, "--metrics", "psnr")
        out = capsys.readouterr().out
        assert out.splitlines()[2].split() == [ours, "inf"]
        assert ("alpha is ignored" in out) == (ours == "clear.png")


def test_a_picture_too_small_for_a_measure_says_so(tmp_path):
    save(tmp_path / "a.png", photo(0, 16, 16))
    with pytest.raises(UserError, match="at least 32 pixels"):
        run(tmp_path / "a.png", tmp_path / "a.png")
    run(tmp_path / "a.png", tmp_path / "a.png", "--metrics", "psnr,ssim,gmsd")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to compare"),
        (["a.png"], "nothing to compare"),
        (["a.png", "b.png", "--model", "bicubic", "--embedded"], "leave a.png out"),
        (["--model", "bicubic"], "either --hr FOLDER or --embedded"),
        (["--model", "bicubic", "--embedded", "--hr", "x"], "either --hr FOLDER or --embedded"),
        (["--embedded"], "belongs to --model"),
        (["--hr", "x"], "belongs to --model"),
        (["--model", "bicubic", "--hr", "none"], "none does not exist"),
        (["--model", "bicubic", "--hr", "none", "--preset", "bicubik-matlab"], "did you mean 'bicubic-matlab'"),
        (["hr", "hr", "--metrics", "psnrr"], "did you mean 'psnr'"),
        (["hr", "hr", "--metrics", ","], "no measure to take"),
        (["hr", "hr", "--metrics", "lpips"], "needs pyiqa"),
        (["hr", "hr", "--json", "hr"], "a folder"),
        (["hr", "hr", "--crop", "-1"], "at least 0"),
    ],
)
def test_mistakes_in_use_are_one_line(folders, monkeypatch, words, message):
    monkeypatch.chdir(folders)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(UserError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)


class Nearest:
    """A restorer without a network."""

    scales = (2, 4)
    name, steps = "nearest", 1

    @classmethod
    def load(cls, model, **settings):
        made = cls()
        made.name, made.settings = model, settings
        return made

    def __call__(self, lq, scale):
        if self.name == "broken" and lq.shape[-1] > 10:
            raise MemoryError
        return lq.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


@pytest.fixture
def restorer(monkeypatch):
    module = ModuleType("fewstep.restoration.restorer")
    module.Restorer = Nearest
    monkeypatch.setitem(sys.modules, module.__name__, module)
    photos = ModuleType("fewstep.restoration.data.photos")
    photos.held_out = lambda: [(f"photo-{i}", torch.from_numpy(photo(i)).permute(2, 0, 1) / 255) for i in range(3)]
    monkeypatch.setitem(sys.modules, "fewstep.restoration.data", ModuleType("fewstep.restoration.data"))
    monkeypatch.setitem(sys.modules, photos.__name__, photos)


def test_models_are_rows_of_one_table(restorer, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    words = ("--model", "bicubic", "--model", "nearest", "--embedded", "-s", 2)
    run(*words, "--metrics", "psnr,gmsd", "--json", numbers)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "steps", "PSNR-Y", "GMSD", "seconds"]
    assert [line.split()[:2] for line in lines[2:4]] == [["bicubic", "0"], ["nearest", "1"]]
    assert lines[5].startswith("x2 of 3 pictures degraded by 'bicubic-matlab'")
    result = json.loads(numbers.read_text())
    assert result["models"]["bicubic"]["mean"]["psnr"] > result["models"]["nearest"]["mean"]["psnr"]
    assert [row["picture"] for row in result["models"]["nearest"]["pictures"]] == ["photo-0", "photo-1", "photo-2"]
    run(*words, "--metrics", "psnr,gmsd", "--json", numbers)
    again = json.loads(numbers.read_text())
    assert again["models"]["bicubic"]["mean"] == result["models"]["bicubic"]["mean"]


def test_one_model_has_a_table_of_pictures(restorer, folders, capsys):
    run("--model", "nearest", "--hr", folders / "hr", "-n", 2, "--preset", "osediff")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["sub/0.png", "sub/1.png"]
    assert lines[4].startswith("mean of 2")


def test_the_bicubic_row_is_the_files_measured_by_hand(folders, tmp_path, capsys):
    """HR of 48 x 40, a multiple of 4, saved as 8 bits after x1/4 and x4 by MATLAB's bicubic."""
    numbers = tmp_path / "numbers.json"
    run("--model", "bicubic", "--hr", folders / "hr", "--json", numbers)
    by_model = json.loads(numbers.read_text())["models"]["bicubic"]["mean"]
    for file in (folders / "hr" / "sub").iterdir():
        x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255
        small = (imresize(x, 1 / 4).clamp(0, 1) * 255).round() / 255
        large = (imresize(small, 4)[0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        save(tmp_path / "large" / "sub" / file.name, large)
    run(tmp_path / "large", folders / "hr", "--json", numbers)
    assert json.loads(numbers.read_text())["mean"] == pytest.approx(by_model, abs=1e-6)


def test_a_picture_that_one_model_cannot_restore_counts_for_none(restorer, tmp_path, capsys):
    save(tmp_path / "hr" / "large.png", photo(0, 48, 48))
    save(tmp_path / "hr" / "small.png", photo(1, 40, 40))
    with pytest.raises(TrainingError, match=r"large\.png: broken: out of memory"):
        run("--model", "bicubic", "--model", "broken", "--hr", tmp_path / "hr", "--json", tmp_path / "numbers.json")
    models = json.loads((tmp_path / "numbers.json").read_text())["models"]
    assert [[row["picture"] for row in model["pictures"]] for model in models.values()] == [["small.png"]] * 2


def test_a_model_of_another_scale_is_refused(restorer):
    with pytest.raises(UserError, match="--scale 3: model 'nearest' was made for x2, x4"):
        run("--model", "nearest", "--embedded", "-s", 3)


def test_the_first_picture_warms_up_and_is_timed_only_where_it_is_alone():
    entry = Entry(Bicubic(), Scores({}))
    entry.seconds = [9.0]
    assert entry.median_seconds == 9
    entry.seconds += [1.0, 3.0]
    assert entry.median_seconds == 2
