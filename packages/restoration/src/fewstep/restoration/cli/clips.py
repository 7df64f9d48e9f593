"""Videos magnified frame by frame, read and written by a package that does that, in pieces that fit into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from fewstep.core.data.clips import find_clip_files
from fewstep.core.errors import UserError, check
from fewstep.restoration.cli.files import WRITTEN_VIDEOS, Job
from fewstep.restoration.pictures.picture import Picture, Raster

PIECE = 2**26  # pixels read at a time


def upscale_clip(job: Job, restore: Callable[[Picture], Raster]) -> str:
    """Write a job's video magnified, with its sound where the file written can hold it, and say so in a line.

    Every frame gets the same noise, so that what stands still stays still. Raises UserError for what cannot be read or
    written; nothing half-written is left.
    """
    clips, path, target = find_clip_files(), job.source.path, job.targets["result"]
    if clips is None:
        raise UserError(f"{path}: no installed package reads videos; install fewstep-video")
    check(target.suffix.lower() in WRITTEN_VIDEOS, f"--out {target}: a video becomes {', '.join(WRITTEN_VIDEOS)}")
    found = clips.probe(path)
    at_once = max(1, PIECE // (found.height * found.width))
    first = restore(_picture(clips.read(path, 0, 1)[0]))

    def pieces() -> Iterator[UInt8[Tensor, "f 3 h w"]]:
        with tqdm(
            total=found.frames, desc=path.name, unit="frame", leave=False, disable=not sys.stderr.isatty()
        ) as bar:
            for start in range(0, found.frames, at_once):
                for i, frame in enumerate(clips.read(path, start, min(at_once, found.frames - start))):
                    done = first if start + i == 0 else restore(_picture(frame))
                    yield torch.from_numpy(done.values).permute(2, 0, 1)[None]
                    bar.update()

    rows, columns = first.size
    silent = clips.write(target, pieces(), (rows, columns), found.fps, sound=path)
    job.facts |= {
        "size": [found.width, found.height],
        "result_size": [columns, rows],
        "frames": found.frames,
        "fps": found.fps,
        "sound": not silent,
    }
    sound = f"without sound ({silent})" if silent else "with its sound"
    return f"{target}: {found.frames} frames of {found.width}x{found.height} became {columns}x{rows}, {sound},"


def _picture(frame: UInt8[Tensor, "3 h w"]) -> Picture:
    return Picture(colours=(frame.float() / 255).contiguous(), mode="RGB")
