"""Frame i is the i-th of decoding from the start, whatever the codec, the rate and the order asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video.reading_bed import (
    flipped,
    inside_a_packet,
    numbered,
    rotated,
    sequential,
    truncated,
    write,
    write_empty,
    write_sound,
)

from fewstep.video.reading import pyav
from fewstep.video.reading.info import ClipSource, Unreadable

COUNT = 40
IRREGULAR = [int(x) for x in np.cumsum(np.random.default_rng(0).integers(10, 90, COUNT))]
WANTED = [31, 0, 5, 31, 30, 17, 39, 16, 39, 1]
KINDS = {
    "b-frames.mp4": {"codec": "libx264", "g": "8", "bf": "2"},
    "variable.mkv": {"codec": "libx264", "g": "8", "bf": "2", "stamps": IRREGULAR},
    "variable.mp4": {"codec": "libx264", "g": "8", "bf": "2", "stamps": IRREGULAR},
    "open-gop.mp4": {"codec": "libx264", "g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    "refresh.mkv": {"codec": "libx264", "g": "8", "x264-params": "intra-refresh=1"},
    "stream.ts": {"codec": "libx264", "g": "8", "bf": "2"},
    "part-2.avi": {"codec": "mpeg4", "g": "8", "bf": "2"},
    "part-2.mp4": {"codec": "mpeg4", "g": "8"},
    "lossless.mkv": {"codec": "ffv1", "pix_fmt": "yuv444p"},
    "first.webm": {"codec": "libvpx", "g": "8"},
    "next.webm": {"codec": "libvpx-vp9", "g": "8", "deadline": "realtime", "cpu-used": "8"},
    "palette.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


def read(path: Path, indices, size=None) -> np.ndarray:
    return pyav.read(ClipSource(path), indices, size, lambda shape: np.zeros(shape, np.uint8))


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_the_bare_decoder(name, tmp_path):
    path = write(tmp_path / name, numbered(COUNT), **KINDS[name])
    all_of_them = sequential(path)
    assert pyav.probe(ClipSource(path)).frames == len(all_of_them)
    assert len(np.unique(all_of_them, axis=0)) == len(all_of_them)
    wanted = [index for index in WANTED if index < len(all_of_them)]
    assert np.array_equal(read(path, wanted), all_of_them[wanted])
    for last in (len(all_of_them) - 1, 20):  # each after a seek of its own
        assert np.array_equal(read(path, [last]), all_of_them[[last]])


def test_packets_that_are_never_shown_are_not_counted(tmp_path):
    source = write(tmp_path / "a.webm", numbered(COUNT), **KINDS["first.webm"])
    start = inside_a_packet(source, 13, at=0)
    path = flipped(tmp_path / "b.webm", source, start)  # the bit that says that the frame is shown
    all_of_them = sequential(path)
    assert len(all_of_them) == COUNT - 1
    assert pyav.probe(ClipSource(path)).frames == COUNT - 1
    assert np.array_equal(read(path, [38, 30, 12, 13]), all_of_them[[38, 30, 12, 13]])


def test_av1_is_read(tmp_path):
    path = write(tmp_path / "new.mp4", numbered(3, 64, 64), "libsvtav1", preset="13")
    assert np.array_equal(read(path, [2, 0]), sequential(path)[[2, 0]])


@pytest.mark.parametrize("sides", [(17, 33), (1, 5), (31, 7)])
def test_odd_sizes_are_read(sides, tmp_path):
    path = write(tmp_path / "odd.mkv", numbered(3, *sides), "ffv1", "yuv420p" if min(sides) > 1 else "yuv444p")
    assert np.array_equal(read(path, [0, 1, 2]), sequential(path))


def test_seeking_spares_the_frames_before(tmp_path, monkeypatch):
    path = write(tmp_path / "long.mp4", numbered(COUNT), **KINDS["b-frames.mp4"])
    decoded = []
    decode = pyav.Video.decode
    monkeypatch.setattr(pyav.Video, "decode", lambda self: (decoded.append(frame) or frame for frame in decode(self)))
    read(path, [COUNT - 1])
    assert len(decoded) <= 16


@pytest.mark.parametrize(("matrix", "quarter_turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_is_applied(matrix, quarter_turns, tmp_path):
    source = write(tmp_path / "lying.mp4", numbered(15))
    path = rotated(tmp_path / "standing.mp4", source, matrix)
    expected = np.rot90(sequential(source), quarter_turns, axes=(1, 2))
    info = pyav.probe(ClipSource(path))
    assert (info.height, info.width, info.rotation) == (*expected.shape[1:3], quarter_turns * 90 % 360)
    assert np.array_equal(read(path, [14, 2]), expected[[14, 2]])
    assert read(path, [0], (info.height // 2, info.width // 2)).shape == (1, info.height // 2, info.width // 2, 3)


def test_resizing_averages(tmp_path):
    checks = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((1, 1)))[None, :, :, None] * np.full(3, 255)
    path = write(tmp_path / "checks.mkv", checks.astype(np.uint8), "ffv1", "yuv444p")
    assert abs(read(path, [0], (4, 4)).astype(float) - 127.5).max() < 8  # picking pixels would give 0 or 255


def test_what_the_file_says_is_found(tmp_path):
    info = pyav.probe(ClipSource(write(tmp_path / "a.mp4", numbered(20, 34, 50), rate=10)))
    assert (info.width, info.height, info.frames, info.fps, info.seconds) == (50, 34, 20, 10.0, 2.0)
    assert (info.rotation, info.has_video, info.codec) == (0, True, "mpeg4")


def test_a_part_of_a_file_is_read_as_a_file(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20))
    padded = tmp_path / "padded"
    padded.write_bytes(b"x" * 777 + path.read_bytes() + b"y" * 999)
    source = ClipSource(padded, 777, path.stat().st_size, "a.mp4")
    assert np.array_equal(
        pyav.read(source, [19, 3], None, lambda shape: np.zeros(shape, np.uint8)), sequential(path)[[19, 3]]
    )


def refused(path: Path, indices=(0,)) -> str:
    with pytest.raises(Unreadable) as caught:
        read(path, list(indices))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("indices", [[20], [0, 25], [-1], [5, 20]])
def test_frames_that_are_not_there_are_refused(indices, tmp_path):
    assert "asked for" in refused(write(tmp_path / "a.mp4", numbered(20)), indices)


@pytest.mark.parametrize("count", [3, 20])
def test_too_few_frames_are_counted_for_the_user(count, tmp_path):
    assert refused(write(tmp_path / "a.mp4", numbered(count)), [30]).endswith(f"has {count}")


def test_what_is_no_video_is_refused(tmp_path):
    assert "only sound" in refused(write_sound(tmp_path / "sound.mp4"))
    for name, data in {"text.mp4": b"hello\n" * 99, "none.mp4": b"", "noise.mkv": bytes(range(256)) * 40}.items():
        (tmp_path / name).write_bytes(data)
        assert "not a video" in refused(tmp_path / name)
    refused(write_empty(tmp_path / "empty.mp4"))
    refused(truncated(tmp_path / "cut.mp4", write(tmp_path / "a.mp4", numbered(20)), 0.6))


def test_a_playlist_opens_nothing(tmp_path):
    inner = write(tmp_path / "inner.ts", numbered(20))
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{inner.name}'\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{inner.name}\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.m3u8"):
        assert "not a video" in refused(tmp_path / name)


@pytest.mark.parametrize("reader", ["probe", "read"])
def test_a_truncated_file_with_its_table_in_front_is_refused(reader, tmp_path):
    whole = write_fast_start(tmp_path / "a.mp4")
    cut = truncated(tmp_path / "cut.mp4", whole, 0.7)
    assert len(read(whole, [39])) == 1
    with pytest.raises(Unreadable, match=r"truncated|cut short|damaged"):
        pyav.probe(ClipSource(cut)) if reader == "probe" else read(cut, [39])


def write_fast_start(path: Path) -> Path:
    import av

    frames = numbered(COUNT)
    with av.open(str(path), "w", container_options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
