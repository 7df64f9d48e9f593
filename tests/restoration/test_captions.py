"""What pictures are said to show: read from beside them, encoded as the pipeline does, told in training and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from restoration import data_bed as bed
from restoration.model_bed import restoration

from fewstep.core.errors import UserError
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng
from fewstep.restoration.data.examples import Files, check_captions
from fewstep.restoration.data.folder import folder_entries
from fewstep.restoration.data.source import RestorationSource
from fewstep.restoration.models import captions as module
from fewstep.restoration.models.captions import CaptionEncoder
from fewstep.restoration.models.spaces import PixelSpace
from fewstep.restoration.models.stable import PROMPT, open_stable
from fewstep.restoration.shown import PictureSource, ShownPictures

TINY = "tiny:sd"
WORDS = ("a red cone", "two cups on a table", "a cat")


@pytest.fixture(scope="module")
def encoder() -> CaptionEncoder:
    return CaptionEncoder(open_stable(TINY, prompt="a sharp photo"))


def folder(root: Path, captions: tuple[str, ...] = WORDS, count: int = 4) -> Path:
    """Return a folder of pictures, the first of which have captions."""
    bed.make_folder(root, count)
    for file, caption in zip(sorted(root.rglob("*.png")), captions, strict=False):
        file.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return root


def examples(root: Path) -> Files:
    return Files(folder_entries(root), str(root), captions=True)


def test_captions_are_encoded_as_the_pipeline_does_and_none_is_the_prompt(encoder: CaptionEncoder) -> None:
    found = encoder(["a cat", "", "a red cone", "a cat"])[PROMPT]
    expected = Teacher.find(TINY).encode(["a cat", "a sharp photo", "a red cone", "a cat"]).cond[PROMPT]
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_what_was_said_last_is_kept_and_no_more(encoder: CaptionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CaptionEncoder(open_stable(TINY))
    asked: list[str] = []
    inner = made.encoder
    monkeypatch.setattr(made, "encoder", lambda new: (asked.extend(new), inner(new))[1])
    monkeypatch.setattr(module, "KEPT", 2)
    made(["a", "b"])
    made(["a"])
    made(["c"])  # b has waited longest
    made(["a", "c"])
    assert asked == ["a", "b", "c"]
    more = made(["b", "d", "e"])[PROMPT]  # more at once than are kept
    assert torch.allclose(more, encoder(["b", "d", "e"])[PROMPT], atol=1e-6)
    assert asked == ["a", "b", "c", "b", "d", "e"]


def test_a_caption_stays_with_its_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = examples(folder(tmp_path))
    with caplog.at_level("WARNING", "fewstep.data"):
        check_captions(found.entries, "here")
    assert "here: 1 of 4 pictures have no caption" in caplog.text
    assert [found.example(i).caption for i in range(4)] == [*WORDS, ""]
    config = bed.config(crop=24, sharpen=True, rotate=True)
    source = RestorationSource(found, config, (4,))
    plain = RestorationSource(Files(folder_entries(tmp_path), "x"), config, (4,))
    for step in range(3):
        rng = Rng(0, step, tuple(range(8)))
        pairs, without = source.pairs(rng), plain.pairs(rng)
        assert torch.equal(pairs.hr, without.hr)
        assert without.captions == ("",) * 8
        assert set(pairs.captions) == {*WORDS, ""}  # an epoch has every picture twice
    held = source.held_pairs(5)
    assert held.captions == (*WORDS, "", WORDS[0])
    assert held.to("cpu").captions == held.captions


def test_a_damaged_picture_is_replaced_with_its_caption(tmp_path: Path) -> None:
    root = folder(tmp_path)
    first, second = sorted(root.rglob("*.png"))[:2]
    first.write_bytes(first.read_bytes()[:60])
    found = Files(folder_entries(root), str(root), max_bad_share=0.5, captions=True)
    held = RestorationSource(found, bed.config(crop=24), (4,)).held_pairs(2)
    assert held.captions == (WORDS[1], WORDS[1])
    assert second.is_file()


def test_a_share_of_samples_is_told_its_caption_the_others_the_prompt(tmp_path: Path, encoder: CaptionEncoder) -> None:
    source = RestorationSource(examples(folder(tmp_path)), bed.config(crop=24), (4,))
    rows, own = 400, 0
    rng = Rng(3, 1, tuple(range(rows)))
    captions = source.pairs(rng).captions
    told = PictureSource(source, PixelSpace(4), encoder, 0.25).batch(rng, "cpu").cond[PROMPT]
    mine, prompt = encoder(captions)[PROMPT], encoder([""])[PROMPT][0]
    for row, caption in enumerate(captions):
        if caption and torch.equal(told[row], mine[row]):
            own += 1
        else:
            assert torch.equal(told[row], prompt)
    assert abs(own / (0.75 * rows) - 0.25) < 0.08  # of those that have one; 3.2 standard deviations
    shown = ShownPictures(source, PixelSpace(4), told=encoder).conditions(4)
    assert torch.equal(shown[PROMPT], encoder([*WORDS, ""])[PROMPT])


def test_captions_reach_the_network_in_training_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = folder(tmp_path / "data"), tmp_path / "run"
    settings = (
        "train.steps=2", "train.batch=2", "train.eval_every=0", "train.preview_every=0", "train.checkpoint_every=0",
        "train.precision=fp32", "optim.warmup=0", "domain.data.crop=32", "train.sample_steps=[2]", "optim.lr=1e-2",
        f"domain.data.path={root}", "domain.prompt=a photo",
    )  # fmt: skip
    for name, share in (("run", 1), ("mute", 0)):
        out = tmp_path / name
        args = ("--config", "teacher-stable", "--out", out, *settings, f"domain.data.captions={share}")
        assert restoration("train", *args) == 0
        assert restoration("export", out) == 0
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "mute")]
    assert logs[0] != logs[1]
    picture = root / "small.png"
    Image.fromarray(np.asarray(Image.open(sorted(root.rglob("*.png"))[0]))[:12, :12]).save(picture)
    picture.with_suffix(".txt").write_text("a red cone", encoding="utf-8")
    made = {}
    ways = {"told": ("--prompt", "a red cone"), "beside": ("--captions",), "none": (), "own": ("--prompt", "a photo")}
    for name, way in ways.items():
        made[name] = tmp_path / f"{name}.png"
        assert restoration("upscale", picture, "-o", made[name], "--model", run, "--steps", 2, *way) == 0
    pixels = {name: np.asarray(Image.open(file)) for name, file in made.items()}
    assert np.array_equal(pixels["told"], pixels["beside"])
    assert np.array_equal(pixels["none"], pixels["own"])
    assert not np.array_equal(pixels["told"], pixels["none"])
    picture.unlink()
    picture.with_suffix(".txt").unlink()
    psnr = {}
    for name, way in ways.items():
        told = tmp_path / f"{name}.json"
        models = ("--model", run, "--model", "bicubic", "--hr", root, "--steps", 2, "--json", told)
        assert restoration("evaluate", *models, *way) == 0
        psnr[name] = json.loads(told.read_text())["models"][str(run)]["pictures"]
    values = {name: [row["psnr"] for row in rows] for name, rows in psnr.items()}
    assert values["none"] == values["own"] != values["told"]
    assert values["beside"] != values["told"]
    assert [a == b for a, b in zip(values["beside"], values["none"], strict=True)] == [False] * 3 + [True]
    told = capsys.readouterr().out
    assert f"told each picture's caption, or their own prompt: {run}" in told
    assert f"told 'a red cone': {run}" in told


def test_words_for_those_who_do_not_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = folder(tmp_path / "data"), tmp_path / "run"
    data = ("domain.data.source=folder", f"domain.data.path={root}", "domain.data.captions=0.5")
    assert restoration("train", "--config", "tad-sr-photos", "--out", out, *data) == 2
    assert "domain.data.captions: photos reads no words" in capsys.readouterr().err
    assert restoration("train", "--config", "tad-sr-photos", "--out", out, "domain.data.captions=1") == 2
    assert "the photos have none" in capsys.readouterr().err
    picture, result = sorted(root.rglob("*.png"))[0], tmp_path / "x.png"
    for way in (("--captions",), ("--prompt", "a cat")):
        assert restoration("upscale", picture, "-o", result, *way) == 2
        assert "reads no words" in capsys.readouterr().err
        assert not result.exists()
        models = ("--model", "bicubic", "--model", "photos-student", "--hr", root)
        assert restoration("evaluate", *models, *way) == 2
        assert "none of these models reads words" in capsys.readouterr().err
    assert restoration("evaluate", "--model", "photos", "--embedded", "--captions") == 2
    assert "the embedded photos have none" in capsys.readouterr().err
    assert restoration("evaluate", picture, picture, "--prompt", "a cat") == 2
    assert "belongs to --model" in capsys.readouterr().err
    for file in root.rglob("*.txt"):
        file.unlink()
    with pytest.raises(UserError, match="no picture has a caption"):
        check_captions(examples(root).entries, "here")
