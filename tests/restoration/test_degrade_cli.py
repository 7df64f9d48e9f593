"""`fewstep restoration degrade`: results fixed by seed and name, in the mode they came in, as pairs that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fewstep.core.cli.main import guarded, run_verb
from fewstep.core.verb import Verb
from fewstep.restoration.cli.degrading import PRESETS, degrade, degrade_arguments, degraded
from fewstep.restoration.degradations import PRESETS as KNOWN
from fewstep.restoration.degradations import imresize, to_8_bit
from fewstep.restoration.pictures.picture import COLOURS, Picture
from fewstep.restoration.pictures.reading import read_picture

VERB = Verb("", degrade_arguments, degrade)


def command(*args: object) -> int:
    return guarded(lambda: run_verb(VERB, [str(arg) for arg in args], "fewstep restoration degrade"))


def drawn(path: Path, height: int = 22, width: int = 35, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_preset_has_its_name_here():
    assert tuple(KNOWN) == PRESETS


def test_pairs_fit_and_the_classical_one_is_matlabs(tmp_path, capsys):
    drawn(tmp_path / "in" / "a.png")
    drawn(tmp_path / "in" / "deep" / "b.bmp", seed=1)
    out = tmp_path / "out"
    assert command(tmp_path / "in", "-o", out, "--pairs", "--preset", "bicubic-matlab") == 0
    assert "2 of 2 pictures written" in capsys.readouterr().out
    assert files_in(out) == ["HR/a.png", "HR/deep/b.png", "LR/a.png", "LR/deep/b.png"]
    for name in ("a", "deep/b"):
        hr, lr = (read_picture(out / kind / f"{name}.png").colours for kind in ("HR", "LR"))
        assert hr.shape == (3, 20, 32)
        assert_close(lr, to_8_bit(imresize(hr[None], 0.25))[0], atol=1e-6, rtol=0)
    assert torch.equal(hr, read_picture(tmp_path / "in" / "deep" / "b.bmp").colours[:, :20, :32])


def test_results_are_fixed_by_seed_and_name_whatever_else_is_there(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        drawn(tmp_path / "many" / name)
    drawn(tmp_path / "few" / "b.png")
    for folder in ("many", "few"):
        assert command(tmp_path / folder, "-o", tmp_path / f"{folder}-out") == 0
    assert command(tmp_path / "few" / "b.png", "-o", tmp_path / "one.png") == 0
    assert command(tmp_path / "few", "-o", tmp_path / "seed", "--seed", 1) == 0
    one = (tmp_path / "one.png").read_bytes()
    assert one == (tmp_path / "many-out/b.png").read_bytes() == (tmp_path / "few-out/b.png").read_bytes()
    assert one != (tmp_path / "many-out/a.png").read_bytes()
    assert one != (tmp_path / "seed/b.png").read_bytes()
    assert read_picture(tmp_path / "one.png").size == (5, 8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("preset", ["realesrgan", "osediff"])
def test_gray_and_alpha_stay(mode, preset):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(COLOURS[mode] + 1, 32, 24, generator=generator)
    alpha = torch.full((1, 32, 24), 0.4) if mode.endswith("A") else None
    picture = Picture(colours=x[:-1], alpha=alpha, mode=mode, bits=8 if mode == "CMYK" else 16)
    good, bad = degraded(picture, preset, 2, 0, "a")
    assert (bad.mode, bad.bits) == ("RGB" if mode == "CMYK" else mode, 8)
    assert good.bits == picture.bits
    assert bad.size == ((32, 24) if preset == "osediff" else (16, 12))
    if bad.alpha is not None:
        assert_close(bad.alpha, torch.full_like(bad.alpha, 0.4))


def test_what_is_there_stays_and_bad_files_are_named(tmp_path, capsys):
    drawn(tmp_path / "in" / "a.png")
    drawn(tmp_path / "in" / "small.png", 3, 40)
    (tmp_path / "in" / "text.png").write_text("no picture")
    out = tmp_path / "out"
    assert command(tmp_path / "in", "-o", out) == 3
    said = capsys.readouterr().err
    assert "a side of 3 pixels is below the scale 4" in said
    assert "2 of 3 pictures failed" in said
    assert files_in(out) == ["a.png"]
    before = (out / "a.png").stat().st_mtime_ns
    assert command(tmp_path / "in", "-o", out) == 3
    assert (out / "a.png").stat().st_mtime_ns == before
    capsys.readouterr()
    for wrong in (("--preset", "esrgan"), ("-s", "0"), ("-o", tmp_path / "in"), ("-o", tmp_path / "in" / "a.png")):
        assert command(tmp_path / "in" / "a.png", *wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert command(tmp_path / "in", "--pairs") == 2
    assert files_in(tmp_path) == ["in/a.png", "in/small.png", "in/text.png", "out/a.png"]
