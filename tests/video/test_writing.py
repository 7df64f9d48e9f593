"""Clips as files: read back by others, whole or not at all, and what cannot be written refused in one line."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import groupby

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewstep.core.data.captioned import CaptionedFolder
from fewstep.core.errors import UserError
from fewstep.video.world import LOW, DrawnWorld, WorldConfig, write_world
from fewstep.video.writing import CODECS, draw_strip, write_clip
from fewstep.video.writing.clips import CONTAINERS
from fewstep.video.writing.strips import spread


def decoded(path):
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2), rate


def numbered(frames=6, height=32, width=48):
    """Frames of one gray level each, which a codec keeps apart."""
    level = torch.arange(frames, dtype=torch.uint8) * 40 + 20
    return level.view(-1, 1, 1, 1).expand(frames, 3, height, width)


@pytest.mark.parametrize("codec", CODECS)
def test_frames_order_and_rate_are_read_back(codec, tmp_path):
    clip = numbered()
    write_clip(tmp_path / "new" / "a.mp4", clip, 12.5, codec=codec)
    frames, rate = decoded(tmp_path / "new" / "a.mp4")
    assert frames.shape == clip.shape
    assert rate == Fraction(25, 2)
    assert (frames.int() - clip.int()).abs().max() <= 4
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("codec", CODECS)
def test_colours_come_back(codec, tmp_path):
    palette = torch.tensor([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20], [128, 128, 128]])
    clip = palette.byte()[:, :, None, None].expand(5, 3, 32, 32)
    write_clip(tmp_path / "a.mp4", clip, 8, codec=codec)
    assert (decoded(tmp_path / "a.mp4")[0].int() - clip.int()).abs().max() <= 8


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_odd_sizes_repeat_the_last_row_and_column(suffix, tmp_path):
    clip = torch.zeros(3, 3, 31, 33, dtype=torch.uint8)
    clip[:, :, :, 30:], clip[:, :, 28:] = 200, 200
    write_clip(tmp_path / f"a{suffix}", clip, 30000 / 1001)
    frames, rate = decoded(tmp_path / f"a{suffix}")
    assert frames.shape == (3, 3, 32, 34)
    assert rate == Fraction(30000, 1001)
    assert (frames[:, :, :31, :33].int() - clip.int()).abs().float().mean() < 2
    assert (frames[:, :, 31].int() - 200).abs().max() < 8
    assert (frames[..., 33].int() - 200).abs().max() < 8


def test_gifs_keep_odd_sizes_frames_and_time(tmp_path):
    write_clip(tmp_path / "a.gif", numbered(6, 5, 7), 30)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 6
        assert picture.size == (7, 5)
        total = 0
        for frame in range(6):
            picture.seek(frame)
            assert set(picture.convert("RGB").getdata()) == {(frame * 40 + 20,) * 3}
            total += picture.info["duration"]
    assert total == 200


@pytest.mark.parametrize(
    ("name", "clip", "fps", "codec", "message"),
    [
        ("a.mp4", numbered().float(), 8, "h264", "8-bit colour frames"),
        ("a.mp4", numbered()[:, :1], 8, "h264", "8-bit colour frames"),
        ("a.mp4", numbered()[:0], 8, "h264", "nothing to write"),
        ("a.mp4", numbered(), 0, "h264", "fps=0"),
        ("a.mp4", numbered(), float("nan"), "h264", "fps=nan"),
        ("a.mp4", numbered(), 8, "h265", "did you mean 'h264'"),
        ("a.avi", numbered(), 8, "h264", "no video file is called '.avi'"),
        ("a.gif", numbered(), 60, "h264", "at most 50 frames a second"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(name, clip, fps, codec, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        write_clip(tmp_path / name, clip, fps, codec=codec)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.png"])
def test_a_disk_that_refuses_keeps_what_was_there(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"before")

    def write(path):
        if name == "a.png":
            draw_strip(path, [("clip", numbered())])
        else:
            write_clip(path, numbered(), 8)

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); choose another place"):
        write(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"before"
    with pytest.raises(UserError, match="cannot be written"):
        write_clip(tmp_path / name / "below" / "a.mp4", numbered(), 8)


def test_a_strip_shows_the_first_and_the_last_frame_of_each_clip(tmp_path):
    draw_strip(tmp_path / "a.png", [("one", numbered(6)), ("another", numbered(3))], frames=4)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = torch.tensor(list(picture.getdata())).reshape(picture.height, picture.width, 3)
    # lines just below the tops of the tiles, above the labels
    rows = [[level for level, _ in groupby(pixels[y, :, 0].tolist())] for y in (26, 26 + 64 + 4)]
    assert [v for v in rows[0] if v != 255] == [20, 20 + 2 * 40, 20 + 3 * 40, 20 + 5 * 40]
    assert [v for v in rows[1] if v != 255] == [20, 60, 100]
    assert spread(9, 1) == [0]
    assert spread(2, 8) == [0, 1]
    with pytest.raises(UserError, match="of another size"):
        draw_strip(tmp_path / "b.png", [("one", numbered()), ("two", numbered(height=16))])
    with pytest.raises(UserError, match=r"name it \.png"):
        draw_strip(tmp_path / "b.jpg", [("one", numbered())])


def test_a_world_as_files_reads_back(tmp_path):
    world, out = DrawnWorld(WorldConfig(frames=4), seed=5), tmp_path / "set"
    write_world(out, world, clips=3, images=2)
    clips, (images, captions) = world.clips(range(3), LOW), world.images(range(2))
    for index in range(3):
        frames, rate = decoded(out / "videos" / f"{index:05d}.mp4")
        assert rate == 8
        assert (frames.float() / 255 - clips.frames[index]).abs().mean() < 0.01
        assert (out / "videos" / f"{index:05d}.txt").read_text() == clips.captions[index] + "\n"
    folder = CaptionedFolder(out / "images")
    assert [folder.caption(index) for index in range(2)] == captions
    assert (folder.picture(1) - images[1]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(load_file(out / "motion.safetensors")["position"], clips.motion.position)
    card = json.loads((out / "world.json").read_text())
    assert (card["seed"], card["frames"], card["video_quality"]["blur"]) == (5, 4, LOW.blur)
    with pytest.raises(UserError, match="exists already"):
        write_world(out, world, clips=1, images=0)
    with pytest.raises(UserError, match="even width and height"):
        write_world(tmp_path / "odd", DrawnWorld(WorldConfig(width=33)), clips=1, images=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_world(tmp_path / "file" / "set", world, clips=1, images=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]
