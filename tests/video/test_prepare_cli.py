"""`fewstep video prepare` and `draw` as commands: what they take, and everything they must refuse in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from core.model_bed import teacher
from PIL import Image
from video.reading_bed import PANCAKE, numbered, rotated, write, write_empty, write_sound

from fewstep.core.cli.main import main
from fewstep.core.data.prepared import Prepared
from fewstep.video.clip_source import to_pixels
from fewstep.video.reading import probe, read_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", numbered(24), "libx264", g="6")


@pytest.fixture
def data(tmp_path, clip):
    """A folder of one captioned video."""
    return captioned(tmp_path / "data", clip)


def captioned(root, *clips, suffix=""):
    root.mkdir(exist_ok=True)
    for number, each in enumerate(clips):
        shutil.copyfile(each, root / f"{number}{suffix or each.suffix}")
        (root / f"{number}.txt").write_text(f"clip {number}")
    return root


def filled(path, content):
    path.write_bytes(content)
    return path


def prepare(data, out, *options):
    given = ["--teacher", "tiny:wan", "--data", data, "--out", out, "--device", "cpu", *options]
    return main(["video", "prepare", *map(str, given)])


def said(capsys, code, expected):
    """The one line on stderr, log lines apart."""
    error = capsys.readouterr().err
    assert code == expected, error
    lines = [line for line in error.splitlines() if line.startswith("fewstep: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert "FEWSTEP_DEBUG" not in error
    return lines[0]


def latents(out):
    return Prepared(out, teacher("wan")).latents([0])[1]


def cut(path, indices, size=(16, 24), left=4):
    frames = read_clip(path, indices, size=size)[:, :, :16, left : left + 16]
    return teacher("wan").vae().encode(to_pixels(frames)[None])


def test_it_prepares_clips_and_says_what_was_refused(tmp_path, clip, capsys):
    short = write(tmp_path / "short.mp4", numbered(3))
    data, out = captioned(tmp_path / "data", clip, short, clip), tmp_path / "out"
    options = ("--interval", 2, "--start", "first", "--max-bad-share", 0.5)
    assert prepare(data, out, *options, "--dry-run") == 0
    assert "3 clips, 3 different captions: " in capsys.readouterr().out
    assert not out.exists()
    assert prepare(data, out, *options, "--list-refused", tmp_path / "refused.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: 3 clips, 3 different captions: ")
    assert lines[1] == "refused: 1 of 3 files"
    assert lines[2].startswith(f"  {data / '1.mp4'}: 3 frames, and 17 are needed")
    assert (tmp_path / "refused.txt").read_text() == f"{lines[2].strip()}\n"
    assert len(Prepared(out, teacher("wan"))) == 2
    assert torch.equal(latents(out), cut(clip, (0, 9, 2)))


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        (["--start", "first"], (0, 9, 1)),
        ([], (8, 9, 1)),  # 15 frames of room
        (["--fps", "12"], (4, 9, 2)),
        (["--interval", "4", "--short", "shorten"], (4, 9, 2)),
        (["--interval", "9", "--short", "loop"], [0, 9, 18, 3, 12, 21, 6, 15, 0]),
        (["--interval", "9", "--short", "repeat_last"], [0, 9, 18, 23, 23, 23, 23, 23, 23]),
        (["--reader", "av"], (8, 9, 1)),
    ],
)
def test_the_policy_of_clips_is_what_the_options_say(data, clip, tmp_path, options, indices):
    assert prepare(data, tmp_path / "out", *options) == 0
    assert torch.equal(latents(tmp_path / "out"), cut(clip, indices))


def test_odd_sizes_and_turned_videos_are_shown_upright_and_covered(tmp_path):
    odd = write(tmp_path / "odd.mkv", numbered(12, 31, 45), "ffv1", "bgr0")
    turned = rotated(tmp_path / "turned.mp4", write(tmp_path / "flat.mp4", numbered(12)), (0, 1, -1, 0))
    assert (probe(turned).height, probe(turned).width) == (48, 32)
    for name, file, size, corner in (("a", odd, (16, 23), (0, 4)), ("b", turned, (24, 16), (4, 0))):
        out = tmp_path / name
        assert prepare(captioned(tmp_path / f"{name}-data", file), out, "--start", "first") == 0
        frames = read_clip(file, (0, 9, 1), size=size)
        frames = frames[:, :, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16]
        assert torch.equal(latents(out), teacher("wan").vae().encode(to_pixels(frames)[None]))


def test_av1_and_gif_are_read_by_default_and_refused_by_decord_with_the_way_out(tmp_path, capsys):
    pictures = [Image.fromarray(frame) for frame in numbered(12)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=40)
    av1 = write(tmp_path / "b.mp4", numbered(12, 64, 64), "libsvtav1", preset="12")
    data = captioned(tmp_path / "data", tmp_path / "a.gif", av1)
    pytest.importorskip("decord")
    error = said(capsys, prepare(data, tmp_path / "out", "--reader", "decord"), 3)
    assert "decord does not read gif: use reader=av" in error
    assert "1 of 2 videos cannot be read" in error
    assert prepare(data, tmp_path / "other") == 0
    assert len(Prepared(tmp_path / "other")) == 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (write_sound, "only sound"),
        (write_empty, "no video in it"),
        (lambda path: write(path, numbered(5)), "5 frames, and 9 are needed"),
        (lambda path: filled(path, b"no video at all"), "not a video"),
        (lambda path: filled(path, b""), "not a video"),
    ],
)
def test_videos_that_cannot_be_used_stop_it_or_are_skipped(tmp_path, clip, capsys, make, reason):
    bad = make(tmp_path / "bad.mp4")
    data, listed = captioned(tmp_path / "data", bad, clip), tmp_path / "refused.txt"
    error = said(capsys, prepare(data, tmp_path / "out", "--list-refused", listed), 3)
    assert "1 of 2 videos cannot be read, more than max_bad_share=0.01; the last one was" in error
    assert reason in error
    assert listed.read_text().startswith(f"{data / '0.mp4'}: ")
    assert not list((tmp_path / "out").glob("latents*"))
    # going on with what was begun, and with more patience
    assert prepare(data, tmp_path / "out", "--max-bad-share", 0.5) == 0
    assert len(Prepared(tmp_path / "out", teacher("wan"))) == 1


def test_a_video_that_does_not_say_its_rate_is_refused_by_name(tmp_path, clip, capsys):
    data = captioned(tmp_path / "data", clip)
    (data / "frames").mkdir()
    for number, frame in enumerate(numbered(12)):
        Image.fromarray(frame).save(data / "frames" / f"{number}.png")
    (data / "frames.txt").write_text("a folder of frames")
    error = said(capsys, prepare(data, tmp_path / "out", "--fps", 12), 3)
    assert f"{data / 'frames'} (fps=12: the video does not say its own rate; give an interval instead)" in error
    assert prepare(data, tmp_path / "other", "--interval", 1) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "17x16x9"], "takes multiples of 8"),
        (["--size", "16x16x10"], "takes 4k+1 frames"),
        (["--size", "big"], "'big' is not a size"),
        (["--fps", "8", "--interval", "2"], "--fps and --interval: give one of the two"),
        (["--fps", "-1"], "'-1' is not a rate"),
        (["--fps", "nan"], "'nan' is not a rate"),
        (["--interval", "0"], "'0' is not a whole number"),
        (["--start", "end"], "invalid choice: 'end'"),
        (["--clips-per-video", "2", "--start", "first"], "--clips-per-video 2: they would be the same"),
        (["--sample-steps", "2"], "has pictures; give prompts"),
        (["--list-refused", "x.txt", "--dry-run"], "a dry run reads one sample only"),
        (["--teacher", "tiny:sd"], "makes images: use `fewstep image prepare`"),
        (["--device", "abacus"], "--device abacus"),
        (["--column", "caption"], "has no caption: write it next to it"),
    ],
)
def test_options_that_do_not_fit_are_refused(data, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in said(capsys, prepare(data, tmp_path / "out", *options), 2)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x.txt").exists()


def test_tables_are_videos_or_prompts_and_never_guessed_wrong(tmp_path, data, capsys):
    table = tmp_path / "data" / "clips.csv"
    for text, message in {
        "clip,caption\n0.mp4,a bar\n": "its column 'clip' seems to name videos: call it file_name, or give --prompts",
        "path,words\n0.mp4,a bar\n": "no column text, caption or prompt, only words",
        "words,more\na bar,b\n": "no column text, caption or prompt, only words, more",
        "path,caption\nabsent.mp4,a bar\n": "absent.mp4, is not there",
        "path,caption\n0.mp4\n": "1 fields instead of the header's 2",
        "path,path\n0.mp4,a\n": "a column twice",
        "": "no prompt in it",
    }.items():
        table.write_text(text)
        assert message in said(capsys, prepare(table, tmp_path / "out"), 2)
        assert not (tmp_path / "out").exists()
    table.write_text("path,caption\n0.mp4,a bar\n")
    assert prepare(table, tmp_path / "clips", "--start", "first") == 0
    assert "1 clips" in capsys.readouterr().out
    assert prepare(table, tmp_path / "texts", "--prompts") == 0
    assert "1 prompts" in capsys.readouterr().out
    assert not Prepared(tmp_path / "texts").has_latents
    assert "--start: " in said(capsys, prepare(table, tmp_path / "x", "--prompts", "--start", "first"), 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a fox\n"),
        ("a.csv", "prompt,weight\na fox,1\n"),
        ("a.jsonl", '"a fox"\n'),
        ("a.json", json.dumps([{"text": "a fox"}])),
    ],
)
def test_files_of_prompts_are_prompts(tmp_path, name, content, capsys):
    (tmp_path / name).write_text(content)
    assert prepare(tmp_path / name, tmp_path / "out") == 0
    assert "1 prompts" in capsys.readouterr().out
    assert Prepared(tmp_path / "out").captions == ["a fox"]


def test_captions_that_are_missing_are_said_first(tmp_path, clip, capsys):
    data = captioned(tmp_path / "data", clip, clip)
    (data / "1.txt").unlink()
    error = said(capsys, prepare(data, tmp_path / "out"), 2)
    assert "1 of 2 videos are left out; the first, " in error
    assert "1.mp4, has no caption: write it next to it, as .txt or .json, or raise max_bad_share" in error
    assert not (tmp_path / "out").exists()
    assert "not there" in said(capsys, prepare(tmp_path / "absent", tmp_path / "out"), 2)


def test_a_folder_made_for_something_else_is_said_to_be(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(data, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    error = said(capsys, prepare(data, out, "--size", "16x16x5"), 2)
    assert "holds data prepared for wan teacher 'tiny:wan' at 16x16x9: give another --out" in error
    assert "other clips (9 frames of 16x16" in said(capsys, prepare(data, out, "--interval", 2), 2)
    settings = ["recipe.name=consistency", "domain.teacher=tiny:wan", "domain.data.source=prepared"]
    run = ["video", "train", "--out", str(tmp_path / "run"), *settings, f"domain.data.path={out}"]
    error = said(capsys, main([*run, "domain.model.width=16", "domain.model.height=16", "domain.model.frames=5"]), 2)
    assert "at 16x16x9, not for the wan teacher 'tiny:wan' at 16x16x5: prepare it again" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_drawn_world_is_prepared(tmp_path, capsys):
    world = tmp_path / "world"
    draw = ["video", "draw", world, "--clips", 3, "--images", 2, "--size", "32x32x9", "--content", "shapes,textures"]
    assert main(list(map(str, draw))) == 0
    found = capsys.readouterr()
    assert "clips: 3/3" in found.err
    assert found.out == f"{world}: 3 clips in {world / 'videos'}, 2 images in {world / 'images'}\n"
    assert len(list((world / "images").glob("*.png"))) == 2
    assert prepare(world / "videos", tmp_path / "out") == 0
    captions = [(world / "videos" / f"0000{n}.txt").read_text().strip() for n in range(3)]
    assert Prepared(tmp_path / "out").captions == list(dict.fromkeys(captions))
    assert "exists already" in said(capsys, main(list(map(str, draw))), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--content", "shapes,cats"], "content has no 'cats'"),
        (["--size", "31x32x8"], "give an even width and height"),
        (["--size", "8"], "height=8 must be a whole number from 16"),
        (["--clips", "-1"], "'-1' is not a whole number"),
        (["--objects", "9"], "objects=9"),
        (["--codec", "divx"], "divx"),
    ],
)
def test_worlds_that_cannot_be_drawn_are_refused(tmp_path, capsys, options, message):
    assert message in said(capsys, main(["video", "draw", str(tmp_path / "world"), "--clips", "1", *options]), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not PANCAKE.is_file(), reason="the shared data are not here")
@pytest.mark.parametrize("name", ["wan", "modelscope"])
def test_the_shared_clip_is_prepared(tmp_path, name):
    data = captioned(tmp_path / "data", PANCAKE)
    # the last one given counts
    assert prepare(data, tmp_path / "out", "--fps", 8, "--clips-per-video", 2, "--teacher", f"tiny:{name}") == 0
    found = Prepared(tmp_path / "out", teacher(name))
    assert len(found) == 2
    latents = found.latents([0, 1])[1]
    assert latents.shape[1:] == teacher(name).shape
    assert float(latents.std()) > 1e-3
