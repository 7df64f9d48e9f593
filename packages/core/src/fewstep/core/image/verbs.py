"""The verbs the image domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
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
    parser.add_argument("--out", type=Path, default=Path("runs/digits-pipeline"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")


def _pipeline(args: Namespace) -> None:
    from fewstep.core.image.captioned import captioned_pipeline

    error = captioned_pipeline(args.out, args.seed)
    sys.stdout.write(f"{args.out}: the autoencoder restores held-out digits with an error of {error:.3f} in [-1, 1]\n")


VERBS = {
    "classifier": Verb("train the digits classifier that metrics use", _classifier_arguments, _classifier),
    "digits-pipeline": Verb(
        "write an untrained text-to-image pipeline for captioned digits", _pipeline_arguments, _pipeline
    ),
    "demo": Verb("train few-step students of the digits teacher in minutes, and draw them", _demo_arguments, _demo),
}
