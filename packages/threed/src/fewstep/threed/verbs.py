"""The verbs the threed domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import counts, positive
from fewstep.core.verb import Verb


def _eval_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("assets", type=Path, nargs="+", metavar="ASSET", help="folders, runs, or .ply of Gaussians")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what they should be (what their folders say)")
    parser.add_argument(
        "--views", type=positive, default=8, metavar="N", help="on a ring, at angles nobody trained (8)"
    )
    parser.add_argument("--size", type=positive, default=64, metavar="N", help="of the pictures, in pixels (64)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers as JSON as well")
    model = parser.add_argument_group("for runs whose student is a model of views")
    model.add_argument("-n", type=positive, default=256, metavar="N", help="number of samples (256)")
    model.add_argument("--steps", type=counts, metavar="K,K", help="step counts (those the student was trained for)")
    model.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    model.add_argument("--teacher-steps", type=counts, default=(1, 4, 20), metavar="K,K", help="(1,4,20)")
    model.add_argument("--solver", default="ddim", help="of the teacher (ddim)")


def _eval(args: Namespace) -> None:
    from fewstep.threed.cli.evaluating import evaluate

    evaluate(args)


VERBS = {
    "eval": Verb("measure assets against the truth and their views against each other", _eval_arguments, _eval),
}
