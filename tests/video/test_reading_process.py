"""Whatever a file does to the decoder, the caller gets frames or one line; and every refusal is the right one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video.reading_bed import (
    PANCAKE,
    copy,
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

from fewstep.core.errors import UserError
from fewstep.video.reading import ClipInfo, ClipSource, Limits, Unreadable, probe, read_clip
from fewstep.video.reading.process import Decoder, shared_decoder

needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="needs decord")


@pytest.fixture
def decoder():
    made = Decoder()
    yield made
    made.close()


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "a.mp4", numbered(20), "libx264", g="5")


def frames_of(path: Path) -> torch.Tensor:
    return torch.from_numpy(sequential(path)).permute(0, 3, 1, 2)


def test_a_clip_comes_as_frames_channels_height_width(clip):
    expected = frames_of(clip)
    assert probe(clip) == ClipInfo(48, 32, 20, 24.0, 20 / 24, 0, True, "h264")
    assert torch.equal(read_clip(clip, [19, 2, 2]), expected[[19, 2, 2]])
    assert torch.equal(read_clip(str(clip), (1, 5, 3)), expected[1:14:3])
    frames = read_clip(clip, (0, 2, 1))
    assert frames.dtype == torch.uint8
    frames.zero_()  # the caller's own
    assert torch.equal(read_clip(clip, (0, 2, 1)), expected[:2])
    assert read_clip(clip, [0], size=(7, 9)).shape == (1, 3, 7, 9)


@needs_decord
@pytest.mark.parametrize("stamps", [None, [int(x) for x in np.cumsum(np.arange(20) % 7 * 9 + 5)]])
def test_decord_gives_the_same_frames(stamps, tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20, 32, 64), "libx264", stamps=stamps, g="8", bf="2")
    wanted = [19, 3, 3, 11]
    assert torch.equal(read_clip(path, wanted, reader="decord"), frames_of(path)[wanted])
    assert read_clip(path, [1], size=(16, 20), reader="decord").shape == (1, 3, 16, 20)
    data = ClipSource(path, 0, path.stat().st_size, "a.mp4")
    assert torch.equal(read_clip(data, wanted, reader="decord"), frames_of(path)[wanted])


@needs_decord
def test_decord_turns_what_lies(tmp_path):
    path = rotated(tmp_path / "b.mp4", write(tmp_path / "a.mp4", numbered(5, 96, 64)), (0, 1, -1, 0))
    assert torch.equal(read_clip(path, [4, 0], reader="decord"), read_clip(path, [4, 0], reader="av"))


@needs_decord
def test_what_decord_cannot_read_names_the_reader_that_can(tmp_path):
    path = write(tmp_path / "a.gif", numbered(5), "gif", "rgb8")
    with pytest.raises(Unreadable, match="reader=av"):
        read_clip(path, [0], reader="decord")
    assert len(read_clip(path, [0])) == 1


def test_a_stopped_decoder_is_ended_and_started_again(clip):
    decoder = Decoder()
    decoder.probe(ClipSource(clip))
    first = decoder.pid
    os.kill(first, signal.SIGSTOP)
    decoder.limits = Limits(wait=0.2)
    with pytest.raises(Unreadable, match=r"more than 0\.2 s"):
        decoder.probe(ClipSource(clip))
    decoder.limits = Limits()
    assert decoder.probe(ClipSource(clip)).frames == 20
    assert decoder.pid != first
    decoder.close()


def test_a_killed_decoder_is_started_again(decoder, clip):
    decoder.probe(ClipSource(clip))
    first = decoder.pid
    os.kill(first, signal.SIGKILL)
    assert decoder.read(ClipSource(clip), [3], None, "av").shape == (1, 32, 48, 3)
    assert decoder.pid != first


def test_a_file_that_ends_every_decoder_is_refused(decoder, clip, monkeypatch):
    started = Decoder._started
    monkeypatch.setattr(Decoder, "_started", lambda self: (started(self), os.kill(self.pid, signal.SIGSEGV))[0])
    with pytest.raises(Unreadable, match=r"ends its decoder \(SIGSEGV\)"):
        decoder.probe(ClipSource(clip))


def test_a_decoder_that_spins_is_ended_by_the_kernel(clip):
    path = write(clip.with_name("work.mkv"), np.zeros((8, 1024, 1024, 3), np.uint8))
    decoder = Decoder(Limits(seconds=0.005))
    with pytest.raises(Unreadable, match="processor time"):
        decoder.read(ClipSource(path), range(8), (2048, 2048), "av")
    decoder.limits = Limits()
    assert decoder.probe(ClipSource(clip)).frames == 20
    decoder.close()


def test_frames_beyond_the_memory_are_refused(tmp_path):
    path = write(tmp_path / "large.mkv", np.zeros((1, 1024, 1024, 3), np.uint8))
    decoder = Decoder(Limits(memory=64))
    with pytest.raises(Unreadable, match="more than the 64 MiB"):
        decoder.read(ClipSource(path), [0] * 30, None, "av")
    assert decoder.read(ClipSource(path), [0], None, "av").shape == (1, 1024, 1024, 3)
    decoder.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs an address space limit")
def test_a_decoder_that_takes_more_memory_than_it_may_is_refused(tmp_path):
    path = write(tmp_path / "huge.mkv", np.zeros((1, 4096, 4096, 3), np.uint8))  # 24 MiB, several times
    decoder = Decoder(Limits(memory=16))
    with pytest.raises(Unreadable):
        decoder.read(ClipSource(path), [0], (64, 64), "av")
    decoder.close()


def test_a_forked_process_starts_a_decoder_of_its_own(clip):
    shared = shared_decoder(Limits())
    shared.probe(ClipSource(clip))
    before = shared.pid
    child = os.fork()
    if child == 0:
        own = shared_decoder(Limits())
        good = own.probe(ClipSource(clip)).frames == 20 and own.pid != before and own is not shared
        own.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shared.probe(ClipSource(clip)).frames == 20
    assert shared.pid == before


def test_no_decoder_outlives_its_owner(clip):
    code = (
        "import sys; from fewstep.video.reading import probe, Limits; from fewstep.video.reading.process import "
        "shared_decoder; probe(sys.argv[1]); print(shared_decoder(Limits()).pid, flush=True); import os; os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(clip)], env=environment, capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    for _ in range(600):
        if not alive(pid):
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("it is still there")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_of_images_is_a_clip(tmp_path):
    from PIL import Image

    pictures = numbered(12)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    info = probe(folder)
    assert (info.width, info.height, info.frames, info.fps) == (48, 32, 12, 0.0)
    wanted = [10, 2, 2]
    assert torch.equal(read_clip(folder, wanted), torch.from_numpy(pictures[wanted]).permute(0, 3, 1, 2))
    assert read_clip(folder, [0], size=(8, 8)).shape == (1, 3, 8, 8)
    with pytest.raises(Unreadable, match="it has 12"):
        read_clip(folder, [12])
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match=r"3\.png"):
        read_clip(folder, [3])
    (tmp_path / "none").mkdir()
    with pytest.raises(Unreadable, match="no images"):
        probe(tmp_path / "none")


def test_what_is_asked_wrongly_is_said(clip, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "missing.mp4", tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(Unreadable):
            probe(path)
    for given in ({"indices": []}, {"indices": (0, 0, 1)}, {"indices": (0, 1)}, {"indices": [0], "size": (0, 4)}):
        with pytest.raises(UserError):
            read_clip(clip, **given)
    with pytest.raises(UserError, match="reader"):
        read_clip(clip, [0], reader="best")


@pytest.mark.skipif(not PANCAKE.exists(), reason="needs the shared clip")
def test_a_real_clip_is_read():
    info = probe(PANCAKE)
    with av.open(str(PANCAKE)) as container:
        total = [packet.size > 0 for packet in container.demux(video=0)]
    assert (info.width, info.height, info.frames) == (426, 240, sum(total))
    wanted = [0, 101, 5, 60]
    expected = {}
    with av.open(str(PANCAKE)) as container:
        for number, frame in zip(range(102), container.decode(video=0), strict=False):
            expected[number] = frame.to_ndarray(format="rgb24") if number in wanted else None
    frames = read_clip(PANCAKE, wanted)
    for got, number in zip(frames, wanted, strict=True):
        assert np.array_equal(got.permute(1, 2, 0).numpy(), expected[number])


def mixed(folder: Path, count: int) -> tuple[list[Path], set[Path], dict[Path, Path]]:
    """Files, those that must be refused, and for the others a whole file with the same frames."""
    whole = {
        "mp4": write(folder / "whole.mp4", numbered(16), "libx264", g="4"),
        "mkv": write(folder / "whole.mkv", numbered(16), "ffv1", "yuv444p", g="4", slicecrc="1", level="3"),
        "webm": write(
            folder / "whole.webm", numbered(8), "libvpx-vp9", g="4", deadline="realtime", **{"cpu-used": "8"}
        ),
        "gif": write(folder / "whole.gif", numbered(8), "gif", "rgb8"),
    }
    sound, empty = write_sound(folder / "sound.mp4"), write_empty(folder / "empty.mp4")
    rng = np.random.default_rng(0)
    files, bad, like = [], set(), {}
    for number in range(count):
        kind = number % 10
        suffix = list(whole)[number // 10 % 4]
        path = folder / f"{number:04}.{suffix}"
        if kind < 4:
            like[copy(path, whole[suffix])] = whole[suffix]
        elif kind == 4:  # its table is at the end
            bad.add(truncated(path.with_suffix(".mp4"), whole["mp4"], rng.uniform(0, 0.95)))
        elif kind in (5, 6):  # a checksum covers every byte of it
            place = inside_a_packet(whole["mkv"], int(rng.integers(16)))
            bad.add(flipped(path.with_suffix(".mkv"), whole["mkv"], place))
        elif kind == 7:
            bad.add(copy(path, sound if number % 20 < 10 else empty))
        elif kind == 8:
            path.write_bytes(rng.bytes(int(rng.integers(0, 5000))))
            bad.add(path)
        else:
            path.write_text("a text, not a video\n" * int(rng.integers(0, 50)))
            bad.add(path)
    files = sorted(bad | like.keys())
    return files, bad, like


def refusals(folder: Path, count: int, decoder: Decoder) -> None:
    files, bad, like = mixed(folder, count)
    assert len(files) == count
    expected = {path: sequential(path) for path in set(like.values())}
    refused = {}
    for path in files:
        try:
            info = decoder.probe(ClipSource(path))
            frames = decoder.read(ClipSource(path), range(info.frames), None, "av")
        except Unreadable as error:
            refused[path] = str(error)
        else:
            assert path in like, path
            assert np.array_equal(frames, expected[like[path]])
    assert refused.keys() == bad
    assert [text for path, text in refused.items() if str(path) not in text or "\n" in text] == []


def test_of_mixed_files_exactly_the_damaged_are_refused(decoder, tmp_path):
    refusals(tmp_path, 60, decoder)
    assert decoder.pid is not None


@pytest.mark.slow
def test_of_a_thousand_mixed_files_exactly_the_damaged_are_refused(decoder, tmp_path):
    refusals(tmp_path, 1000, decoder)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "avi"])
def test_a_flipped_bit_gives_a_refusal_or_the_frames_of_the_strict_decoder(suffix, decoder, tmp_path):
    codec = {"mp4": "libx264", "webm": "libvpx-vp9", "gif": "gif", "avi": "mpeg4"}[suffix]
    whole = write(tmp_path / f"whole.{suffix}", numbered(12), codec, "rgb8" if codec == "gif" else "yuv420p")
    size = whole.stat().st_size
    for place in np.linspace(0, size - 1, 12).astype(int):
        path = flipped(tmp_path / f"{place}.{suffix}", whole, place)
        try:
            frames = decoder.read(ClipSource(path), range(decoder.probe(ClipSource(path)).frames), None, "av")
        except Unreadable:
            continue
        assert np.array_equal(frames, strict(path))


def strict(path: Path) -> np.ndarray:
    with av.open(str(path), options={"err_detect": "explode"}) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "crccheck+explode"}
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_memory_that_is_used_again_holds_only_the_last_clip(decoder, clip, tmp_path):
    large = write(tmp_path / "large.mkv", numbered(9, 64, 96), "ffv1", "yuv444p")
    for path, wanted in [(clip, [1]), (large, [8, 0]), (clip, [5, 6]), (large, [3])]:
        before = decoder.read(ClipSource(clip), [0], None, "av")
        kept = before.copy()
        with pytest.raises(Unreadable):
            decoder.read(ClipSource(path), [0, *range(99)], None, "av")
        assert np.array_equal(decoder.read(ClipSource(path), wanted, None, "av"), sequential(path)[wanted])
        assert np.array_equal(before, kept)
