"""The verbs the lidar domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import looking_verbs, positive, takes_settings
from fewstep.core.verb import Verb
from fewstep.lidar.data.verb import BUILD_MAPS, names_in
from fewstep.lidar.models.verb import convert, convert_arguments
from fewstep.lidar.view.verb import view, view_arguments

METHODS = ("scorelidar", "distillation-dpo", "diffusion-dpo", "dmd2", "consistency", "sid")


def _training(parser: ArgumentParser, config: str) -> None:
    default = config or "that of --method"
    parser.add_argument("--config", default=config, metavar="NAME|FILE", help=f"shipped, or a YAML file ({default})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder, new (runs/<name>)")
    parser.add_argument("--as", dest="form", choices=("half",), help="export with matrices in float16")
    takes_settings(parser)


def _teacher_arguments(parser: ArgumentParser) -> None:
    _training(parser, "teacher-streets")


def _refiner_arguments(parser: ArgumentParser) -> None:
    _training(parser, "refiner-streets")


def _distill_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, help=f"by its shipped config ({METHODS[0]})")
    _training(parser, "")
    parser.set_defaults(config=None)


def _train(args: Namespace) -> None:
    from fewstep.lidar.cli.training import train_and_export

    train_and_export(args)


STUDENT = "streets-student"


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e4 < value < 1e4:
        raise ArgumentTypeError(f"'{text}' is not a number")
    return value


def _sampling_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default=STUDENT, metavar="NAME|DIR", help=f"shipped, a run or an export ({STUDENT})")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the sampler (what the model was made for)")
    parser.add_argument(
        "--cond-weight", type=_number, metavar="W", help="guidance scale (what the model's folder says)"
    )
    parser.add_argument(
        "--refine", nargs="?", const="streets-refiner", metavar="NAME|DIR", help="multiply the points by a refiner"
    )
    parser.add_argument("--max-range", type=_number, default=50.0, metavar="M", help="of scan and scene (50)")
    parser.add_argument(
        "--sampler",
        choices=("auto", "official", "variance-exploding"),
        default="auto",
        help="auto: a student's own, else variance-exploding; official: the released one, biased at few steps (auto)",
    )
    parser.add_argument("--points", type=positive, default=180_000, metavar="N", help="of the scene (180000)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--device", default="", help="(cuda where there is one)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--layout", metavar="NAME", help="of a folder of scans (found out)")
    parser.add_argument("--fields", type=names_in, metavar="x,y,z,..", help="columns of .bin and .npy files")
    parser.add_argument("--drop-invalid", action="store_true", help="leave NaN and infinite points out")


def _complete_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="SCAN|FOLDER", help="a scan, a folder of scans, or a sequence")
    parser.add_argument("-o", "--out", type=Path, metavar="PATH", help="a file for a scan, a folder for many")
    _sampling_arguments(parser)
    parser.add_argument(
        "--format", choices=("ply", "bin", "npy", "pcd"), default="ply", help="of files in folders (ply)"
    )
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="only every Nth scan of a folder (1)")
    parser.add_argument("--force", action="store_true", help="complete again what is there already")


def _complete(args: Namespace) -> None:
    from fewstep.lidar.cli.completing import complete

    complete(args)


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sequence", type=Path, metavar="SEQUENCE", help="a folder of scans with poses and a map")
    _sampling_arguments(parser)
    parser.set_defaults(layout="semantickitti")
    parser.add_argument("--map", type=Path, metavar="FILE", help="(map_clean.npy of the sequence, see build-maps)")
    parser.add_argument("--every", type=positive, default=1, metavar="N", help="only every Nth scan (1)")
    parser.add_argument("--scans", type=positive, metavar="N", help="at most so many")
    parser.add_argument("--emd-points", type=int, default=1024, metavar="N", help="of the exact EMD, 0 for none (1024)")
    parser.add_argument("--legacy", action="store_true", help="also the published variants that are wrong")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers")


def _evaluate(args: Namespace) -> None:
    from fewstep.lidar.cli.evaluating import evaluate

    evaluate(args)


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo-lidar"), metavar="DIR", help="(runs/demo-lidar)")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher too, which takes longer")


def _demo(args: Namespace) -> None:
    from fewstep.lidar.cli.demo import run_demo

    run_demo(args)


def _simulate_arguments(parser: ArgumentParser) -> None:
    from fewstep.lidar.simulator.verb import simulate_arguments  # its package loads numpy

    simulate_arguments(parser)


def _simulate(args: Namespace) -> None:
    from fewstep.lidar.simulator.verb import simulate

    simulate(args)


VERBS = looking_verbs(
    "held-out scenes",
    drawn=3,
    measured=6,
    teacher_steps=(1, 8, 50),
    solver="dpmpp_2m_sde",
    verbs=(
        "draw completions of a run's student from above",
        "measure a run's student, and its teacher, on windows of held-out scans",
    ),
) | {
    "demo": Verb("train a one-step student on simulated streets in minutes, and draw it", _demo_arguments, _demo),
    "complete": Verb("complete a scan, a folder of scans or a sequence", _complete_arguments, _complete),
    "evaluate": Verb("measure completions of a sequence against its map", _evaluate_arguments, _evaluate),
    "train-teacher": Verb("train a teacher of scene completion and export it", _teacher_arguments, _train),
    "train-refiner": Verb(
        "train a refiner, which makes several points of each, and export it", _refiner_arguments, _train
    ),
    "distill": Verb("train a few-step student of a teacher and export it", _distill_arguments, _train),
    "view": Verb("draw clouds side by side, and write a page that turns them", view_arguments, view),
    "simulate": Verb(
        "write drives through simulated streets, in SemanticKITTI's layout", _simulate_arguments, _simulate
    ),
    "build-maps": BUILD_MAPS,
    "convert": Verb("turn a released checkpoint into a network of this package", convert_arguments, convert),
}
