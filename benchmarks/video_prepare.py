"""Preparing clips against their autoencoder alone: what reading, cutting, checking and writing add.

    python benchmarks/video_prepare.py [--clips 6] [--size 96x96x9] [--width 16] [--rounds 2] [--clock cpu]

Videos are drawn (H.264, 360 pixels high), and prepared for a random Wan pipeline whose autoencoder has the real one's
stages at a sixth of its width: the real one takes over thirty times as long for a clip, and all else takes the same.
The floor is that autoencoder on clips which lie in memory, one after the other. Prepared are latents alone, captions
having been encoded before. Videos are decoded by a process of their own while the one before is encoded, so with a
second core for it the ratio is that of the clock on the wall. ``--clock cpu`` is for machines that do other things as
well: it counts the processor time of this process, and of the decoder in a line of its own, as if nothing overlapped.
Times are those of the fastest of the rounds, which alternate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewstep.core.data.prepare import prepare
from fewstep.core.models.family import Size
from fewstep.core.models.files import PipelineFolder, quiet
from fewstep.core.models.loading import Teacher, tiny_folder
from fewstep.video.clip_source import open_clips
from fewstep.video.preparing import ClipSamples
from fewstep.video.reading.clips import LIMITS
from fewstep.video.reading.process import shared_decoder
from fewstep.video.reading.sampling import ClipConfig
from fewstep.video.world import DrawnWorld, WorldConfig, write_world

TARGET = 1.1  # of the floor


def make_teacher(folder: Path, size: Size, width: int) -> Teacher:
    """Return a tiny Wan pipeline with an autoencoder of the real one's stages."""
    from diffusers import AutoencoderKLWan

    shutil.copytree(tiny_folder("wan"), folder)
    shutil.rmtree(folder / "vae")
    vae = AutoencoderKLWan(base_dim=width, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with quiet():
        vae.save_pretrained(folder / "vae")
    return Teacher(PipelineFolder.open(folder), size)


def decoder_seconds() -> float:
    """Return the processor time of this process's decoder."""
    pid = shared_decoder(LIMITS).pid
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def taken(do: Callable[[], object], clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds something takes by a clock, and the decoder's processor time."""
    since, decoded = clock(), decoder_seconds()
    do()
    return clock() - since, decoder_seconds() - decoded


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--size", default="96x96x9")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    size = Size(*map(int, args.size.split("x")))
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place), Path(place) / "out"
        world = DrawnWorld(WorldConfig(frames=2 * size.frames, height=360, width=640))
        write_world(root / "world", world, clips=args.clips, images=0, fps=24)
        teacher = make_teacher(root / "teacher", size, args.width)
        config = ClipConfig(frames=size.frames, size=(size.height, size.width))

        def samples() -> ClipSamples:
            return ClipSamples(open_clips(root / "world" / "videos", config))

        held = [samples().pixels(index) for index in range(args.clips)]

        def bare() -> None:
            codec = teacher.vae()
            for clip in held:
                codec.encode(clip[None])

        def whole() -> None:
            prepare(teacher, samples(), out, batch=1, samples_per_shard=4)

        whole()  # captions are encoded now
        floors, spent = [], []
        for _ in range(args.rounds):
            for shard in out.glob("latents-*"):
                shard.unlink()
            floors.append(taken(bare, clock)[0])
            spent.append(taken(whole, clock))
        floor, (prepared, decoding) = min(floors), min(spent)
        about = f"{args.clips} clips of {args.size} out of 640x360, {args.threads} threads, {args.clock} time"
        print(f"{about}; target {TARGET}")
        print(f"{'':>24} {'ms a clip':>10} {'clips/s':>8} {'of the floor':>13}")
        lines = {"autoencoder alone": floor, "prepared": prepared, "its decoder (cpu)": decoding}
        if args.clock == "cpu":
            lines["prepared on one core"] = prepared + decoding
        for name, seconds in lines.items():
            each = max(seconds, 1e-9) / args.clips
            print(f"{name:>24} {1000 * each:10.1f} {1 / each:8.2f} {seconds / floor:13.3f}")
        print("above the target" if prepared > TARGET * floor else "within the target")


if __name__ == "__main__":
    main()
