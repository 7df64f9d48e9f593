"""The commands and their options. No library is loaded here: each command imports its module when it runs."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.verb import Verb

SETTINGS = "settings of the config to change, as key=value or --key value, such as train.steps=100"


def positive(text: str) -> int:
    """Return a whole number of at least 1 from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def gibibytes(text: str) -> float:
    """Return a positive number from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ArgumentTypeError(f"'{text}' is not a positive number of GiB")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Return a list such as ``1,4,8`` from the command line."""
    return tuple(positive(part) for part in text.split(","))


def takes_settings(parser: ArgumentParser) -> None:
    """Let a parser accept settings of a config after its own options."""
    parser.set_defaults(takes_settings=True)
    parser.epilog = f"{SETTINGS}. {parser.epilog or ''}"


def _config(parser: ArgumentParser) -> None:
    parser.add_argument("--config", metavar="NAME|FILE", help="a config shipped with the domain, or a YAML file")
    takes_settings(parser)


def _run_folder(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")


def _run_student(parser: ArgumentParser) -> None:
    _run_folder(parser)
    parser.add_argument("--checkpoint", type=positive, metavar="STEP", help="of those the run kept (the newest)")


def _samples(parser: ArgumentParser, n: int) -> None:
    parser.add_argument("-n", type=positive, default=n, metavar="N", help=f"number of samples ({n})")
    parser.add_argument("--steps", type=counts, metavar="K,K", help="step counts (those the student was trained for)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")


def _train_arguments(parser: ArgumentParser) -> None:
    _config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder, new (runs/<name>)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")


def _train(args: Namespace) -> None:
    from fewstep.core.cli.training import train_new

    train_new(args)


def _resume_arguments(parser: ArgumentParser) -> None:
    _run_folder(parser)
    takes_settings(parser)


def _resume(args: Namespace) -> None:
    from fewstep.core.cli.training import resume_run

    resume_run(args)


def _sample_arguments(parser: ArgumentParser) -> None:
    _run_student(parser)
    _samples(parser, 50)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; may be given several times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a file of prompts: txt, csv, jsonl, parquet")
    parser.add_argument("--teacher-steps", type=counts, metavar="K,K", help="show the teacher too, at these steps")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (RUN/samples.png)")


def _sample(args: Namespace) -> None:
    from fewstep.core.cli.looking import sample

    sample(args)


def _eval_arguments(parser: ArgumentParser) -> None:
    _run_student(parser)
    _samples(parser, 2000)
    parser.add_argument(
        "--teacher-steps", type=counts, default=(1, 2, 4, 8, 16, 50), metavar="K,K", help="(1,2,4,8,16,50)"
    )
    parser.add_argument("--solver", default="ddim", help="of the teacher: ddim, heun, dpmpp_2m ... (ddim)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers as JSON (RUN/evaluation.json)")


def _eval(args: Namespace) -> None:
    from fewstep.core.cli.looking import evaluate

    evaluate(args)


def _export_arguments(parser: ArgumentParser) -> None:
    _run_student(parser)
    parser.add_argument("--steps", type=positive, metavar="K", help="sampling steps (those it was trained for)")
    parser.add_argument(
        "--as", dest="form", metavar="FORM", help="lora, pipeline or pipeline-fp16, where there is a choice"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload it to this repository of the hub")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the artefact's folder (RUN/export)")


def _export(args: Namespace) -> None:
    from fewstep.core.cli.looking import export

    export(args)


def _nothing(parser: ArgumentParser) -> None:
    """Add no options."""


def _list(args: Namespace) -> None:
    from fewstep.core.cli.listing import show_list

    show_list(args)


def _check_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, built in or installed")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with a recipe section")
    takes_settings(parser)


def _check(args: Namespace) -> None:
    from fewstep.core.cli.checking import check_recipe

    check_recipe(args)


def _plan_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", metavar="NAME|FILE", help="a YAML file, or a config shipped with a domain")
    parser.add_argument("--domain", dest="domain_name", metavar="DOMAIN", help="whose config NAME is (image)")
    parser.add_argument("--gpu-gib", type=gibibytes, metavar="N", help="memory to fit into (that of the GPU here)")
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="that share the batch (1)")
    parser.add_argument("--fsdp", action="store_true", help="the processes share weights and optimizers too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers, in bytes")
    takes_settings(parser)


def _plan(args: Namespace) -> None:
    from fewstep.core.cli.planning import plan_memory

    plan_memory(args)


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="image", metavar="DOMAIN", help="(image)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="(runs/demo)")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher too, which takes longer")


def _demo(args: Namespace) -> None:
    from fewstep.core.cli.demo import run_demo

    run_demo(args)


def _doctor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="also look at this run")


def _doctor(args: Namespace) -> None:
    from fewstep.core.cli.doctor import examine

    examine(args)


def _bench_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipes to time (a selection)")
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="samples per step (32)")
    parser.add_argument("--repeat", type=positive, default=5, metavar="N", help="steps timed, of which the best (5)")


def _bench(args: Namespace) -> None:
    from fewstep.core.cli.bench import bench

    bench(args)


def looking_verbs(
    what: str, *, drawn: int, measured: int, teacher_steps: tuple[int, ...], solver: str, verbs: tuple[str, str]
) -> dict[str, Verb]:
    """Return ``sample`` and ``eval`` of a domain without prompts, with its own defaults.

    ``what``: its samples are called, in the plural; ``drawn`` and ``measured``: how many; ``verbs``: what the two do.
    """

    def common(parser: ArgumentParser, n: int) -> None:
        _run_student(parser)
        parser.add_argument("-n", type=positive, default=n, metavar="N", help=f"{what} ({n})")
        parser.add_argument("--steps", type=counts, metavar="K,K", help="step counts (those the student is shown at)")
        parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")

    def sample_arguments(parser: ArgumentParser) -> None:
        common(parser, drawn)
        parser.add_argument("--teacher-steps", type=counts, metavar="K,K", help="show the teacher too, at these steps")
        parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (RUN/samples.png)")
        parser.set_defaults(prompt=None, prompts=None)

    def eval_arguments(parser: ArgumentParser) -> None:
        common(parser, measured)
        shown = ",".join(map(str, teacher_steps))
        parser.add_argument("--teacher-steps", type=counts, default=teacher_steps, metavar="K,K", help=f"({shown})")
        parser.add_argument("--solver", default=solver, help=f"of the teacher ({solver})")
        parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers as JSON (RUN/evaluation.json)")

    return {"sample": Verb(verbs[0], sample_arguments, _sample), "eval": Verb(verbs[1], eval_arguments, _eval)}


TOP_VERBS = {
    "demo": Verb("train few-step students of a small teacher in minutes, and draw them", _demo_arguments, _demo),
    "list": Verb("list recipes with their papers, domains and configs", _nothing, _list),
    "check": Verb("check a recipe and its settings against exact mathematics", _check_arguments, _check),
    "plan": Verb("say what a config will take in memory, and what to change to fit a GPU", _plan_arguments, _plan),
    "doctor": Verb(
        "look at this machine's environment, or at what may be wrong with a run", _doctor_arguments, _doctor
    ),
    "bench": Verb("time the training steps of recipes on this machine", _bench_arguments, _bench),
}

DOMAIN_VERBS = {
    "train": Verb("train a student, or a teacher, into a new run folder", _train_arguments, _train),
    "resume": Verb("go on with a run from its newest checkpoint that verifies", _resume_arguments, _resume),
    "sample": Verb("draw samples of a run's student", _sample_arguments, _sample),
    "eval": Verb("measure a run's student, and its teacher at several step counts", _eval_arguments, _eval),
    "export": Verb("write a run's student as an artefact that loads without fewstep", _export_arguments, _export),
}
