"""The verbs the lidar domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import takes_settings
from fewstep.core.verb import Verb
from fewstep.lidar.data.verb import BUILD_MAPS
from fewstep.lidar.simulator.verb import simulate, simulate_arguments
from fewstep.lidar.view.verb import view, view_arguments

METHODS = ("scorelidar", "distillation-dpo", "diffusion-dpo", "dmd2", "consistency", "sid")


def _training(parser: ArgumentParser, config: str) -> None:
    parser.add_argument("--config", default=config, metavar="NAME|FILE", help=f"shipped, or a YAML file ({config})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder, new (runs/<name>)")
    takes_settings(parser)


def _teacher_arguments(parser: ArgumentParser) -> None:
    _training(parser, "teacher-streets")


def _refiner_arguments(parser: ArgumentParser) -> None:
    _training(parser, "refiner-streets")


def _distill_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"({METHODS[0]})")
    _training(parser, "")
    parser.set_defaults(config=None)


def _train(args: Namespace) -> None:
    from fewstep.lidar.training import train_and_export

    train_and_export(args)


VERBS = {
    "train-teacher": Verb("train a teacher of scene completion and export it", _teacher_arguments, _train),
    "train-refiner": Verb("train a refiner, which makes several points of each, and export it", _refiner_arguments, _train),
    "distill": Verb("train a few-step student of a teacher and export it", _distill_arguments, _train),
    "view": Verb("draw clouds side by side, and write a page that turns them", view_arguments, view),
    "simulate": Verb("write drives through simulated streets, in SemanticKITTI's layout", simulate_arguments, simulate),
    "build-maps": BUILD_MAPS,
}
