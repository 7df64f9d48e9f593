"""Clips written by PyAV for the tests of reading: numbered frames, every way to damage them, and the bare decoder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SHARED = "shared/data/clip_flipping_a_pancake.mkv"
PANCAKE = next((path for above in Path(__file__).parents if (path := above / SHARED).exists()), Path(SHARED))
"""A real clip, for those who have it."""


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames "f h w 3" that all differ: a bar that moves over a gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    made = np.empty((count, height, width, 3), np.uint8)
    for number in range(count):
        made[number, ..., 0] = 255 * (columns // 4 == number % max(1, width // 4))
        made[number, ..., 1] = (rows * 5 + number * 11) % 256
        made[number, ..., 2] = number * 5 % 256
    return made


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    rate: int = 24,
    **options: str,
) -> Path:
    """Write frames; ``stamps`` are their times in 1/1000 s, for a variable rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        if stamps is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Write a file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_empty(path: Path) -> Path:
    """Write a video file without a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    return path


def sequential(path: Path) -> np.ndarray:
    """All frames "f h w 3" as PyAV decodes them from the start, as they are stored."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def rotated(path: Path, source: Path, matrix: Sequence[int]) -> Path:
    """Copy an mp4 with the matrix (a, b, c, d) in its track header: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version and flags, times, id, reserved, layer, volume
    a, b, c, d = matrix
    for place, value in enumerate((a, b, 0, c, d, 0)):
        data[start + 4 * place : start + 4 * place + 4] = (value * 2**16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def truncated(path: Path, source: Path, share: float) -> Path:
    """Copy the first part of a file."""
    data = source.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def flipped(path: Path, source: Path, place: int) -> Path:
    """Copy a file with one bit of one byte changed."""
    data = bytearray(source.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    return path


def inside_a_packet(path: Path, number: int, at: float = 0.5) -> int:
    """The place in the file of a packet's data, by default of their middle."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    return path.read_bytes().index(packets[number]) + int(at * len(packets[number]))


def copy(path: Path, source: Path) -> Path:
    """Copy a file."""
    shutil.copyfile(source, path)
    return path
