"""The verbs the restoration domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import looking_verbs
from fewstep.core.verb import Verb
from fewstep.restoration.cli.captioning import caption, caption_arguments
from fewstep.restoration.cli.comparing import compare, compare_arguments
from fewstep.restoration.cli.degrading import degrade, degrade_arguments
from fewstep.restoration.cli.evaluating import evaluate, evaluate_arguments
from fewstep.restoration.cli.preparing import prepare_targets, prepare_targets_arguments
from fewstep.restoration.cli.scales import distill_scales, distill_scales_arguments
from fewstep.restoration.cli.upscaling import upscale, upscale_arguments


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo-restoration"), metavar="DIR", help="(runs/demo-restoration)"
    )
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher too, which takes longer")


def _demo(args: Namespace) -> None:
    from fewstep.restoration.cli.demo import run_demo

    run_demo(args)


VERBS = looking_verbs(
    "held-out crops",
    drawn=6,
    measured=64,
    teacher_steps=(1, 4, 15),
    solver="ddim",
    verbs=(
        "draw a run's student on crops of held-out pictures",
        "measure a run's student, and its teacher, on crops of held-out pictures",
    ),
) | {
    "demo": Verb("train a one-step student on photos in minutes, and look at it", _demo_arguments, _demo),
    "upscale": Verb("magnify and restore pictures: files and folders", upscale_arguments, upscale),
    "degrade": Verb("make low-quality pictures of good ones, as training does", degrade_arguments, degrade),
    "evaluate": Verb("measure restored pictures, or models, against the originals", evaluate_arguments, evaluate),
    "compare": Verb("put pictures side by side, or under a slider in a page", compare_arguments, compare),
    "caption": Verb("write a caption beside each picture, to train on", caption_arguments, caption),
    "prepare-targets": Verb(
        "let a teacher restore training crops, once, for students to learn from",
        prepare_targets_arguments,
        prepare_targets,
    ),
    "distill-scales": Verb(
        "train one-step students up a chain of magnifications, each by the one before",
        distill_scales_arguments,
        distill_scales,
    ),
}
