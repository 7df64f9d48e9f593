"""The verbs the image domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.verb import Verb


def _classifier_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to (the file shipped with the package)")


def _classifier(args: Namespace) -> None:
    from fewstep.core.image.classifier import WEIGHTS, held_out_accuracy, save_classifier, train_classifier

    model = train_classifier()
    file = save_classifier(model, args.out or WEIGHTS)
    sys.stdout.write(f"{file}: {held_out_accuracy(model):.1%} of the held-out digits\n")


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="(runs/demo)")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher too, which takes longer")


def _demo(args: Namespace) -> None:
    from fewstep.core.image.demo import run_demo

    run_demo(args.out, from_scratch=args.from_scratch)


def _pipeline_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/digits-pipeline"), metavar="DIR", help="(runs/digits-pipeline)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")


def _pipeline(args: Namespace) -> None:
    from fewstep.core.image.captioned import captioned_pipeline

    error = captioned_pipeline(args.out, args.seed)
    sys.stdout.write(f"{args.out}: the autoencoder restores held-out digits with an error of {error:.3f} in [-1, 1]\n")


def size_of(text: str) -> tuple[int, ...]:
    """Return height, width and perhaps frames out of ``512``, ``512x768`` or ``480x832x81``."""
    sides = text.lower().split("x")
    if len(sides) > 3 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise ArgumentTypeError(f"'{text}' is not a size such as 512, 512x768 or 480x832x81 (height, width, frames)")
    numbers = tuple(int(side) for side in sides)
    return numbers * 2 if len(numbers) == 1 else numbers


def positive_of(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def share_of(text: str) -> float:
    """Return a number from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"'{text}' is not a share from 0 to 1")
    return share


def _prepare_arguments(parser: ArgumentParser) -> None:
    prepare_arguments(parser, "prompts, a folder of captioned images, or webdataset archives", "HxW", 8)


def prepare_arguments(parser: ArgumentParser, data: str, size: str, batch: int) -> None:
    """Add what every domain's ``prepare`` takes; ``data`` says what, ``size`` how it is written."""
    parser.add_argument("--teacher", required=True, metavar="NAME", help="a pipeline: folder, hub id or tiny:FAMILY")
    parser.add_argument("--data", required=True, metavar="PATH", help=data)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (prepared/<data>-<teacher>)")
    parser.add_argument("--column", default="", metavar="NAME", help="of the text (text, caption or prompt)")
    parser.add_argument("--size", type=size_of, metavar=size, help="pixels of crops or samples (the teacher's)")
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="to encode and keep in (fp32)"
    )
    parser.add_argument("--device", default="", help="to encode on (cuda where there is one)")
    parser.add_argument("--batch", type=positive_of, default=batch, metavar="N", help=f"at a time ({batch})")
    parser.add_argument(
        "--sample-steps", type=positive_of, metavar="N", help="let the teacher sample latents for prompts, in N steps"
    )
    parser.add_argument(
        "--keys", type=positive_of, metavar="M", help="keep M states of each of their trajectories, and the clean one"
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, metavar="S", help="of these samples (1)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (0)")
    parser.add_argument("--samples-per-shard", type=positive_of, default=512, metavar="N", help="in a file (512)")
    parser.add_argument(
        "--max-bad-share", type=share_of, default=0.01, metavar="X", help="of damaged or uncaptioned files (0.01)"
    )
    parser.add_argument(
        "--list-refused", type=Path, metavar="FILE", help="write the names of unreadable files, with the reasons"
    )
    parser.add_argument("--negative", metavar="TEXT", help="the unconditional prompt (the pipeline's own)")
    parser.add_argument("--revision", default="", help="of a hub id")
    parser.add_argument("--variant", default="", help="of the weight files, such as fp16")
    parser.add_argument("--dry-run", action="store_true", help="only say what it will take")


def _prepare(args: Namespace) -> None:
    from fewstep.core.image.preparing import prepare_data

    prepare_data(args)


PREPARE = Verb("encode captions and pictures once, for runs to read them", _prepare_arguments, _prepare)

VERBS = {
    "classifier": Verb("train the digits classifier that metrics use", _classifier_arguments, _classifier),
    "digits-pipeline": Verb(
        "write an untrained text-to-image pipeline for captioned digits", _pipeline_arguments, _pipeline
    ),
    "demo": Verb("train few-step students of the digits teacher in minutes, and draw them", _demo_arguments, _demo),
    "prepare": PREPARE,
}
