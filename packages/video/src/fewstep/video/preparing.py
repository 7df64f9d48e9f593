"""Clips of captioned videos as samples to prepare, and what data a path means to a model of videos."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import digest_of
from fewstep.core.data.prompts import read_prompts
from fewstep.core.errors import check
from fewstep.core.image.preparing import Count, default_name, find_teacher, run_preparation
from fewstep.core.models.loading import Teacher
from fewstep.core.tensors import find_device
from fewstep.video.clip_source import open_clips, to_pixels
from fewstep.video.precomputed import is_precomputed, open_precomputed, prepare_precomputed
from fewstep.video.reading.dataset import Clips
from fewstep.video.reading.layouts import means_videos
from fewstep.video.reading.sampling import ClipConfig
from fewstep.video.shipped import teacher_path

# options that say how clips are cut, which prompts have no use for
CUTTING = ("fps", "interval", "start", "short", "crop", "flip", "clips_per_video", "reader")
UNUSED = (*CUTTING, "sample_steps", "list_refused")


class ClipSamples:
    """``per_video`` clips of each video, drawn by (seed, number of the clip, video): see :class:`..samples.Samples`."""

    kind = "clips"

    def __init__(self, clips: Clips, seed: int = 0, per_video: int = 1) -> None:
        check(per_video >= 1, f"clips per video must be at least 1, got {per_video}")
        check(per_video == 1 or clips.config.random, f"{per_video} clips per video would be the same: start at random")
        self.clips, self.seed, self.per_file = clips, seed, per_video
        self.bad = clips.bad
        drawn = f", seed {seed}" if clips.config.random else ""
        self.cut = f"{clips.config}, {per_video} per video{drawn}"
        reader = "av" if clips.reader == "auto" else clips.reader
        self.identity = digest_of([clips.identity, self.cut, reader])

    def __len__(self) -> int:
        """Return the number of clips, those of damaged videos included."""
        return len(self.clips) * self.per_file

    def caption(self, index: int) -> str:
        """Return the caption of a clip's video."""
        return self.clips.caption(index // self.per_file)

    def pixels(self, index: int) -> Float[Tensor, "3 f h w"]:
        """Return a clip in [-1, 1]; Damaged for one that cannot be read, TrainingError for too many of those."""
        video, number = divmod(index, self.per_file)
        return to_pixels(self.clips.attempt(video, self.seed, number))


def prepare_videos(args: Namespace) -> None:
    """Run ``fewstep video prepare``."""
    args.teacher = teacher_path(args.teacher)
    if is_precomputed(args.data) and not args.prompts:
        import_latents(args)
    else:
        run_preparation(args, lambda teacher: find_data(args, teacher))


def import_latents(args: Namespace) -> None:
    """Make prepared data of latents that were computed elsewhere."""
    given = next((option for option in UNUSED if getattr(args, option) not in (None, False)), "")
    check(
        not given, f"--{given.replace('_', '-')}: {args.data} holds latents, which are taken as they are; leave it out"
    )
    teacher = find_teacher(args)
    out = args.out or Path("prepared") / default_name(args.data, args.teacher)
    count = Count(sys.stderr)
    try:
        cost = prepare_precomputed(
            teacher,
            open_precomputed(args.data, args.column),
            out,
            samples_per_shard=args.samples_per_shard,
            dtype=args.dtype,
            device=find_device(args.device),
            progress=count,
            dry_run=args.dry_run,
        )
    finally:
        count.close()
    sys.stdout.write(f"{out}: {cost}\n")


def find_data(args: Namespace, teacher: Teacher) -> ClipSamples | list[str]:
    """Return the clips or the prompts that the arguments mean; UserError for what does not fit together."""
    name = f"{args.teacher} is a {teacher.folder.pipeline}, which makes images"
    check(teacher.family.media == "video", f"--teacher: {name}: use `fewstep image prepare`")
    if args.prompts or not means_videos(args.data):
        given = next((option for option in CUTTING if getattr(args, option) not in (None, False)), None)
        option = "" if given is None else given.replace("_", "-")
        check(given is None, f"--{option}: {args.data} is taken as prompts, which are not cut; leave it out")
        return read_prompts(args.data, args.column)
    config, per_video = clip_config(args, teacher), args.clips_per_video or 1
    check(
        per_video == 1 or config.random,
        f"--clips-per-video {per_video}: they would be the same; give --start random, --crop random or --flip",
    )
    options = {"column": args.column, "reader": args.reader or "auto", "max_bad_share": args.max_bad_share}
    return ClipSamples(open_clips(args.data, config, **options), args.seed, per_video)


def clip_config(args: Namespace, teacher: Teacher) -> ClipConfig:
    """Return how clips are cut; what is not given is left at its default, at random where that makes clips differ."""
    size = teacher.size
    check(not (args.fps and args.interval), "--fps and --interval: give one of the two")
    several = (args.clips_per_video or 1) > 1 and args.crop != "random" and not args.flip
    options: dict[str, Any] = {"start": args.start or ("random" if several else "centre"), "flip": args.flip}
    options |= {name: getattr(args, name) for name in ("fps", "interval", "short", "crop") if getattr(args, name)}
    return ClipConfig(frames=size.frames, size=(size.height, size.width), **options)


def draw_world(args: Namespace) -> None:
    """Run ``fewstep video draw``."""
    from fewstep.video.world import HIGH, LOW, DrawnWorld, WorldConfig, write_world

    qualities = {"low": LOW, "high": HIGH}
    height, width, frames = (*args.size, 8)[:3]
    config = WorldConfig(
        frames=frames,
        height=height,
        width=width,
        content=tuple(args.content.split(",")),
        objects=args.objects,
        edges=args.edges,
    )
    count = Count(sys.stderr)
    out: Path = args.out
    try:
        write_world(
            out,
            DrawnWorld(config, args.seed),
            clips=args.clips,
            images=args.images,
            fps=args.fps,
            codec=args.codec,
            video_quality=qualities[args.video_quality],
            image_quality=qualities[args.image_quality],
            progress=count,
        )
    finally:
        count.close()
    sys.stdout.write(f"{out}: {args.clips} clips in {out / 'videos'}, {args.images} images in {out / 'images'}\n")
