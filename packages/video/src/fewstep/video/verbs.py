"""The verbs the video domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.image.verbs import positive_of, prepare_arguments, size_of
from fewstep.core.verb import Verb

DATA = "a folder of captioned videos, a table of them, webdataset archives, latents.jsonl, or prompts"


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1000:
        raise ArgumentTypeError(f"'{text}' is not a rate above 0 and up to 1000 a second")
    return rate


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def _prepare_arguments(parser: ArgumentParser) -> None:
    prepare_arguments(parser, DATA, "HxWxF", 1)
    cut = parser.add_argument_group("how clips are cut out of videos")
    cut.add_argument("--fps", type=_rate, metavar="X", help="frames a second, as near as the video has them")
    cut.add_argument("--interval", type=positive_of, metavar="N", help="every N-th frame instead (1)")
    cut.add_argument(
        "--start", choices=("random", "first", "centre"), help="where in the video (centre; random for several clips)"
    )
    cut.add_argument(
        "--short",
        choices=("skip", "shorten", "loop", "repeat_last"),
        help="a video with too few frames: skip it, shorten the interval, loop it, repeat its last frame (skip)",
    )
    cut.add_argument("--crop", choices=("centre", "random"), help="where in the picture (centre)")
    cut.add_argument("--flip", action="store_true", help="mirror half of the clips")
    cut.add_argument("--clips-per-video", type=positive_of, metavar="N", help="(1)")
    cut.add_argument("--reader", choices=("auto", "av", "decord"), help="(auto: av, which refuses what decord hides)")
    cut.add_argument("--prompts", action="store_true", help="take a table of videos for its captions alone")


def _prepare(args: Namespace) -> None:
    from fewstep.video.preparing import prepare_videos

    prepare_videos(args)


def _draw_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder: videos, images, captions, true motion")
    parser.add_argument("--clips", type=_count, default=64, metavar="N", help="(64)")
    parser.add_argument("--images", type=_count, default=64, metavar="N", help="crisp ones, of other scenes (64)")
    parser.add_argument("--size", type=size_of, default=(32, 32, 8), metavar="HxWxF", help="(32x32x8)")
    parser.add_argument(
        "--content", default="shapes", metavar="A,B", help="some of shapes, digits and textures (shapes)"
    )
    parser.add_argument("--objects", type=positive_of, default=2, metavar="N", help="at most in a clip (2)")
    parser.add_argument("--edges", choices=("bounce", "wrap"), default="bounce", help="(bounce)")
    parser.add_argument("--fps", type=_rate, default=8.0, metavar="X", help="(8)")
    parser.add_argument("--codec", default="h264", metavar="NAME", help="of the videos (h264)")
    for name, given in (("video", "low"), ("image", "high")):
        parser.add_argument(
            f"--{name}-quality", choices=("low", "high"), default=given, help=f"low is blurred and pale ({given})"
        )
    parser.add_argument("--seed", type=int, default=0, help="(0)")


def _draw(args: Namespace) -> None:
    from fewstep.video.preparing import draw_world

    draw_world(args)


def _pipeline_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/world-pipeline"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")


def _pipeline(args: Namespace) -> None:
    from fewstep.video.world.pipeline import world_pipeline

    error = world_pipeline(args.out, args.seed)
    sys.stdout.write(f"{args.out}: the autoencoder restores frames it never saw with an error of {error:.3f}\n")


def _extend_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="of a student that is told first frames")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the clip shows")
    parser.add_argument(
        "--first", type=Path, metavar="FILE", help="a picture it begins with, or a video that it goes on from (none)"
    )
    parser.add_argument("--frames", type=positive_of, required=True, metavar="N", help="of the whole clip")
    parser.add_argument("--steps", type=positive_of, metavar="K", help="per window (those it was trained for)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="an .mp4 or a .gif (RUN/extended.mp4)")


def _extend(args: Namespace) -> None:
    from fewstep.video.extending import extend_clip

    extend_clip(args)


def _join_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", metavar="SD", help="a Stable Diffusion 1.5: folder or hub id")
    parser.add_argument("adapter", metavar="ADAPTER", help="a motion adapter: folder or hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the joined pipeline goes")


def _join(args: Namespace) -> None:
    from fewstep.core.models.animatediff import join

    join(args.pictures, args.adapter, args.out)
    sys.stdout.write(f"{args.out}\n")


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo-video"), metavar="DIR", help="(runs/demo-video)")


def _demo(args: Namespace) -> None:
    from fewstep.video.demo import run_demo

    run_demo(args.out)


VERBS = {
    "demo": Verb("train a few-step student on drawn clips in minutes, and watch it", _demo_arguments, _demo),
    "animatediff": Verb("join a Stable Diffusion and a motion adapter to one teacher", _join_arguments, _join),
    "world-pipeline": Verb("write an untrained pipeline for the drawn world", _pipeline_arguments, _pipeline),
    "extend": Verb(
        "make a clip of any length, window by window, from a picture or a video", _extend_arguments, _extend
    ),
    "prepare": Verb("encode captions and clips once, for runs to read them", _prepare_arguments, _prepare),
    "draw": Verb("draw captioned clips and images with known motion, to try things on", _draw_arguments, _draw),
}
