"""Videos through `upscale`: read and written by the package that offers it, or refused in a line without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from restoration.model_bed import restoration, small_model, written_model

from fewstep.core.data import clips as clip_plug
from fewstep.core.data.clips import find_clip_files

clips = find_clip_files()
needs_video = pytest.mark.skipif(clips is None, reason="no package that reads videos is installed")


def video(path: Path, frames: int = 5, height: int = 24, width: int = 32) -> torch.Tensor:
    """Write a bright square that moves to the right, and return its frames."""
    made = torch.full((frames, 3, height, width), 40, dtype=torch.uint8)
    for i in range(frames):
        made[i, :, 6:14, 2 + 4 * i : 10 + 4 * i] = 200
    assert clips is not None
    clips.write(path, [made[:2], made[2:]], (height, width), 10.0)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that changes nothing."""
    made = small_model((2, 4), student=True)
    for p in made.denoiser.backbone.parameters():
        torch.nn.init.zeros_(p)
    return written_model(tmp_path_factory.mktemp("model") / "m", made)


@needs_video
def test_pieces_of_a_video_are_written_and_read_back(tmp_path: Path) -> None:
    assert clips is not None
    made = video(tmp_path / "a.mp4")
    assert clips.probe(tmp_path / "a.mp4") == (5, 24, 32, 10.0)
    read = clips.read(tmp_path / "a.mp4", 1, 3)
    assert read.shape == (3, 3, 24, 32)
    assert (read.int() - made[1:4].int()).abs().float().mean() < 6


@needs_video
def test_a_video_is_magnified_frame_by_frame(tmp_path: Path, model: Path, capsys) -> None:
    assert clips is not None
    made = video(tmp_path / "a.mp4")
    out = tmp_path / "b.mp4"
    assert restoration("upscale", tmp_path / "a.mp4", "-o", out, "-s", 2, "--model", model, "--noise", 0) == 0
    assert "5 frames of 32x24 became 64x48, without sound (there is none in it)" in capsys.readouterr().err
    assert clips.probe(out) == (5, 48, 64, 10.0)
    read = clips.read(out, 0, 5)
    large = made.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (read.int() - large.int()).abs().float().mean() < 8
    assert restoration("upscale", tmp_path, "-o", tmp_path / "all", "-s", 2, "--model", model) == 0
    assert sorted(file.name for file in (tmp_path / "all").iterdir()) == ["a.mp4", "b.mp4"]


@needs_video
def test_a_video_keeps_its_sound(tmp_path: Path, model: Path, capsys) -> None:
    from video.sound_bed import assert_same_sound, talking

    sound, out = talking(tmp_path / "a.mkv", seconds=1), tmp_path / "b.mp4"
    told = tmp_path / "report.json"
    assert restoration("upscale", sound, "-o", out, "-s", 2, "--model", model, "--json", told) == 0
    assert "10 frames of 48x32 became 96x64, with its sound" in capsys.readouterr().err
    assert json.loads(told.read_text())["files"][0]["sound"] is True
    assert_same_sound(sound, out)


@needs_video
def test_a_damaged_video_is_named_and_leaves_nothing(tmp_path: Path, model: Path, capsys) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    assert restoration("upscale", tmp_path / "bad.mp4", "-o", tmp_path / "c.mp4", "--model", model) == 2
    error = capsys.readouterr().err
    assert "bad.mp4" in error
    assert not (tmp_path / "c.mp4").exists()
    assert restoration("upscale", tmp_path / "a.mp4", "-o", tmp_path / "c.png", "--model", model) == 2
    assert "a video becomes .mp4" in capsys.readouterr().err


def test_without_a_reader_the_package_is_named(tmp_path: Path, model: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(clip_plug, "find_clip_files", lambda: None)
    (tmp_path / "a.mp4").write_bytes(b"a video")
    assert restoration("upscale", tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", "--model", model) == 2
    assert "fewstep-video" in capsys.readouterr().err
    assert restoration("degrade", tmp_path / "a.mp4", "-o", tmp_path / "b.png") == 2
    assert "is a video" in capsys.readouterr().err
