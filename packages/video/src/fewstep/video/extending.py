"""`fewstep video extend`: clips of any length by a student that is told first frames, window by window."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.crops import cover, crop_at
from fewstep.core.data.problem import Decoder
from fewstep.core.data.reading import SUFFIXES, UNREADABLE, read_image
from fewstep.core.errors import UserError, check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.models.video import VideoFamily
from fewstep.core.rng import Rng
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.video.domain import find_teacher
from fewstep.video.first_frames import window_sampler
from fewstep.video.previews import to_bytes
from fewstep.video.reading import probe, read_clip
from fewstep.video.settings import VideoConfig
from fewstep.video.windows import Windows, sample_windows, windows_of
from fewstep.video.writing import write_clip

MOST = 10_000  # frames of a clip, which is in memory as a whole


def extend_clip(args: Namespace) -> None:
    """Write a clip of ``args.frames`` frames that begins with a picture, the end of a video, or text alone."""
    check(args.frames <= MOST, f"--frames {args.frames}: at most {MOST} are held in memory; extend what was made again")
    opened = open_run(args.run, World())
    config = opened.config.domain
    if not isinstance(config, VideoConfig) or config.given_frames == 0:
        raise UserError(f"{args.run}: its network is told no first frames (domain.given_frames): train one that is")
    problem, device, teacher = opened.problem, opened.world.device, find_teacher(config, weights=False)
    windows = windows_told(teacher, config.given_frames)
    decoder = Decoder(find_teacher(config), config.model, device)
    first = None if args.first is None else first_pixels(args.first, teacher.size, windows)
    assert problem.from_text is not None
    cond = {name: value.to(device) for name, value in problem.from_text([args.prompt]).items()}
    rng = Rng(args.seed, 0, (0,), "extend", device, 1)
    sampler = window_sampler(
        opened.student(),
        opened.plan(args.steps),
        problem.actors.shape,
        cond,
        rng,
        encode=lambda pixels: decoder.encode(pixels.to(device)),
        decode=decoder.decode,
    )
    with opened.world.autocast(opened.config.train.precision):
        clip = sample_windows(sampler, windows, args.frames, first)
    out = args.out or args.run / "extended.mp4"
    write_clip(out, to_bytes(clip)[0], config.fps)
    sys.stdout.write(f"{out}\n")


def windows_told(teacher: Teacher, given: int) -> Windows:
    """Return the windows, in frames, of a network that is told ``given`` latent frames."""
    family, vae = teacher.family, teacher.folder.config("vae") if teacher.folder.has("vae") else None
    assert isinstance(family, VideoFamily)
    return windows_of(teacher.size.frames, given, family.time_compression(vae))


def first_pixels(path: Path, size: Size, windows: Windows) -> Float[Tensor, "1 3 g h w"]:
    """Return a picture, or as many last frames of a video as a window is given, in [-1, 1] and cut to ``size``.

    Raises UserError for a file that is neither, and for a video with fewer frames.
    """
    if path.suffix.lower() in SUFFIXES - {".gif"}:
        try:
            frames = read_image(path, 3)[None]
        except UNREADABLE as error:
            raise UserError(f"{path}: cannot be read as a picture ({error}): give another file") from error
    else:
        check(path.is_file(), f"{path}: no such file: give a picture or a video to begin with")
        found = probe(path)
        check(
            found.has_video and found.frames >= windows.overlap,
            f"{path}: {found.frames} frames, and a window begins with {windows.overlap}: give a longer video, or a "
            "picture",
        )
        frames = read_clip(path, (found.frames - windows.overlap, windows.overlap, 1)).float() / 255
    inside = (size.height, size.width)
    cut = torch.stack([crop_at(cover(frame, *inside), inside, (0.5, 0.5)) for frame in frames])
    return cut.clamp(0, 1).mul(2).sub(1).transpose(0, 1)[None]
