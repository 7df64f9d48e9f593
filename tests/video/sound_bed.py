"""Videos that have sound, and how the sound of two of them is compared."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

RATE = 16000


def talking(path: Path, codec: str = "aac", start: Fraction = Fraction(0), tracks: int = 1, seconds: int = 2) -> Path:
    """Write 10 pictures a second from ``start`` on, and a tone of rising pitch from 0 on."""
    time = np.arange(seconds * RATE) / RATE
    tone = (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) * 32767).astype(np.int16)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as out:
        pictures = out.add_stream("libx264", rate=10, options={"bf": "0"})
        pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 1000)
        sounds = [out.add_stream(codec, rate=RATE, layout="mono") for _ in range(tracks)]
        for i in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * (start + Fraction(i, 10))), Fraction(1, 1000)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        for sound in sounds:
            for at in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, at : at + 1024], format="s16", layout="mono")
                frame.rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
                out.mux(sound.encode(frame))
            out.mux(sound.encode(None))
    return path


def packets(path: Path, track: int = 0) -> list[tuple[float, bytes]]:
    """Seconds after the first picture, and bytes, of every packet of a track of sound."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        start = float(video.start_time * video.time_base)
        stream = file.streams.audio[track]
        found = [packet for packet in file.demux(stream) if packet.size]
        return [(float(packet.pts * packet.time_base) - start, bytes(packet)) for packet in found]


def assert_same_sound(source: Path, written: Path, track: int = 0) -> None:
    before, after = packets(source, track), packets(written, track)
    assert [hash(data) for _, data in after] == [hash(data) for _, data in before]
    # a file of Matroska counts milliseconds
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=2e-3)
