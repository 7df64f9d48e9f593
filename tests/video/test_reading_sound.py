"""Sound put beside other pictures: the same packets, at the same time after the first picture, or a reason."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from video.sound_bed import assert_same_sound, packets, talking

from fewstep.video.reading import ClipSource, Unreadable, probe
from fewstep.video.reading.info import Limits
from fewstep.video.reading.process import Decoder
from fewstep.video.writing import write_clip, write_pieces


def pictures(path: Path) -> list[tuple[float, int]]:
    """Seconds after the first that is shown, and a hash, of every picture in the order they are decoded."""
    with av.open(str(path)) as file:
        found = [packet for packet in file.demux(video=0) if packet.size]
        first = min(packet.pts for packet in found)
        return [(round(float((packet.pts - first) * packet.time_base), 3), hash(bytes(packet))) for packet in found]


def drawn(frames: int = 20) -> torch.Tensor:
    made = torch.zeros(frames, 3, 64, 96, dtype=torch.uint8)
    for i in range(frames):
        made[i, :, 10 : 20 + i] = 10 * i
    return made


def joined(path: Path, sound: Path) -> str:
    return write_pieces(path, [drawn()[:7], drawn()[7:]], (64, 96), 10, sound=sound)


@pytest.mark.parametrize(("source", "target"), [(".mp4", ".mp4"), (".mp4", ".mkv"), (".mkv", ".mp4"), (".mov", ".mov")])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(3, 10)])
def test_sound_keeps_its_bytes_and_its_time_against_the_pictures(tmp_path, source, target, start):
    sound = talking(tmp_path / f"a{source}", start=start)
    assert joined(tmp_path / f"b{target}", sound) == ""
    assert len(packets(sound)) > 30
    assert_same_sound(sound, tmp_path / f"b{target}")
    assert sorted(tmp_path.iterdir()) == sorted([sound, tmp_path / f"b{target}"])
    silent = tmp_path / f"silent{target}"
    write_clip(silent, drawn(), 10)
    assert pictures(tmp_path / f"b{target}") == pictures(silent)
    found = probe(tmp_path / f"b{target}")
    assert (found.frames, found.width, found.height, found.fps) == (20, 96, 64, 10.0)


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_few_pictures_are_as_good_as_many(suffix, frames, tmp_path):
    sound = talking(tmp_path / "a.mkv")
    assert write_pieces(tmp_path / f"b{suffix}", [drawn(frames)], (64, 96), 10, sound=sound) == ""
    write_clip(tmp_path / f"silent{suffix}", drawn(frames), 10)
    assert pictures(tmp_path / f"b{suffix}") == pictures(tmp_path / f"silent{suffix}")
    assert_same_sound(sound, tmp_path / f"b{suffix}")


def test_every_track_is_kept(tmp_path):
    sound = talking(tmp_path / "a.mkv", tracks=2)
    joined(tmp_path / "b.mkv", sound)
    for track in (0, 1):
        assert_same_sound(sound, tmp_path / "b.mkv", track)


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "wavpack"), (".mov", "opus")])
def test_a_format_that_does_not_hold_the_sound_is_named_and_the_pictures_are_written(suffix, codec, tmp_path):
    sound = talking(tmp_path / "a.mkv", codec=codec)
    assert joined(tmp_path / f"b{suffix}", sound) == f"{suffix} does not hold {codec}, .mkv may"
    assert probe(tmp_path / f"b{suffix}").frames == 20
    assert joined(tmp_path / "b.mkv", sound) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "b.mkv", f"b{suffix}"]


def test_a_video_without_sound_says_so(tmp_path):
    write_clip(tmp_path / "a.mp4", drawn(), 10)
    assert joined(tmp_path / "b.mp4", tmp_path / "a.mp4") == "there is none in it"
    assert write_pieces(tmp_path / "c.mp4", [drawn()], (64, 96), 10) == "none was asked for"


def test_damage_and_limits_cost_the_sound_and_not_the_pictures(tmp_path):
    sound = talking(tmp_path / "a.mp4")
    data, last = sound.read_bytes(), packets(sound)[-2][1]
    (tmp_path / "cut.mp4").write_bytes(data[: data.rindex(last) + len(last) // 2])
    assert joined(tmp_path / "b.mkv", tmp_path / "cut.mp4") == "it is damaged"
    assert probe(tmp_path / "b.mkv").frames == 20
    with pytest.raises(Unreadable, match="processor time"):
        Decoder(Limits(seconds=1e-3)).join_sound(sound, ClipSource(sound), tmp_path / "c.mkv")
    (tmp_path / "none.mkv").write_bytes(b"not a video")
    assert "not a video" in joined(tmp_path / "b.mkv", tmp_path / "none.mkv")
    assert probe(tmp_path / "b.mkv").frames == 20
