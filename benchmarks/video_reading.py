"""Frames per second of the video readers, each against the bare loop of its own library on the same frames.

    python benchmarks/video_reading.py [--video clip.mkv] [--frames 16] [--rounds 8] [--clock cpu]

Without ``--video`` one is made: 480p, H.264 with B-frames, a key frame every 48. Three ways to read: all of it,
``--frames`` neighbours from its middle, and as many a fixed interval apart. PyAV's bare loop decodes from the start, or
from the key frame that a person who knows the file would seek to, and turns what is wanted into RGB; decord's opens
the file and asks for a batch. All decode in one thread. The time is that of the fastest round, and bare and read take
turns; the index of the file is known after the first. ``--clock cpu`` counts the processor time of this process and of
its decoder instead, for a machine that does other things as well.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from fewstep.video.reading import Limits, probe, read_clip
from fewstep.video.reading.process import shared_decoder

TARGET = 1.15  # of the bare loop's time


def make(path: Path, frames: int = 300, height: int = 480, width: int = 854) -> None:
    """Write a moving texture."""
    texture = np.random.default_rng(0).integers(0, 255, (height // 8 + 64, width // 8 + 64, 3)).astype(np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"g": "48", "bf": "2", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            view = np.ascontiguousarray(texture[number : number + height, number : number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))


def bare_decord(path: Path, wanted: list[int]) -> np.ndarray:
    """Return frames "f h w 3" by decord alone."""
    import decord

    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    frames: np.ndarray = video.get_batch(wanted).asnumpy()
    return frames


def bare(path: Path, wanted: list[int], stamps: list[int]) -> np.ndarray:
    """Return frames "f h w 3" by the loop anyone would write, seeking once."""
    keep = {stamps[index]: place for place, index in enumerate(wanted)}
    out = None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if wanted[0]:
            container.seek(stamps[wanted[0]], stream=stream)
        for frame in container.decode(stream):
            if frame.pts in keep:
                picture = frame.to_ndarray(format="rgb24")
                out = np.empty((len(wanted), *picture.shape), np.uint8) if out is None else out
                out[keep.pop(frame.pts)] = picture
                if not keep:
                    break
    assert out is not None, "no frame was asked for"
    return out


def decoder_seconds() -> float:
    """Return the processor time of this process's decoder."""
    pid = shared_decoder(Limits()).pid
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def fastest(tasks: list[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Return each task's time in its fastest round; a round runs all in turn, as often as the clock can tell apart."""
    took: list[list[float]] = [[] for _ in tasks]
    for task in tasks:
        task()
    for _ in range(rounds):
        for task, times in zip(tasks, took, strict=True):
            since, calls = clock(), 0
            while calls == 0 or clock() - since < 0.3:
                task()
                calls += 1
            times.append((clock() - since) / calls)
    return [min(times) for times in took]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--interval", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--readers", nargs="+", default=["av", "decord"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    wall = args.clock == "wall"
    clock = time.perf_counter if wall else lambda: time.process_time() + decoder_seconds()
    with tempfile.TemporaryDirectory() as folder:
        path = args.video or Path(folder) / "made.mp4"
        if args.video is None:
            make(path)
        info = probe(path)
        with av.open(str(path)) as container:
            stamps = sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        middle = (info.frames - args.frames * args.interval) // 2
        cases = {
            "all": list(range(info.frames)),
            "neighbours": list(range(middle, middle + args.frames)),
            f"every {args.interval}th": list(range(middle, middle + args.frames * args.interval, args.interval)),
        }
        print(f"{info.width}x{info.height} {info.codec}, {info.frames} frames; {args.clock} time; target {TARGET}")
        print(f"{'frames':>12} {'reader':>11} {'ms':>8} {'frames/s':>9} {'of bare':>8}")
        for name, wanted in cases.items():
            for reader in args.readers:
                alone = {"av": lambda w=wanted: bare(path, w, stamps), "decord": lambda w=wanted: bare_decord(path, w)}
                ours = lambda w=wanted, r=reader: read_clip(path, w, reader=r)  # noqa: E731 - one of a pair
                base, spent = fastest([alone[reader], ours], args.rounds, clock)
                print(f"{name:>12} {'bare ' + reader:>11} {1000 * base:8.1f} {len(wanted) / base:9.0f} {1:8.2f}")
                slow = "  above the target" if spent > TARGET * base else ""
                line = f"{name:>12} {reader:>11} {1000 * spent:8.1f} {len(wanted) / spent:9.0f} {spent / base:8.2f}"
                print(line + slow)


if __name__ == "__main__":
    main()
