"""`train-teacher`, `train-refiner` and `distill`: core's training, then the export, in one command."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fewstep.core.cli.looking import export
from fewstep.core.cli.training import train_new
from fewstep.core.errors import check
from fewstep.core.training.config import load_config
from fewstep.lidar.domain import DOMAIN
from fewstep.lidar.verbs import METHODS


def train_and_export(args: Namespace) -> None:
    """Train into a new run folder and export what was trained into ``export`` there, unless it was stopped."""
    method = getattr(args, "method", None)
    config = args.config or f"{method or METHODS[0]}-streets"
    resolved = load_config(config, args.overrides, domain=DOMAIN)
    check(
        method is None or method == resolved.recipe_name,
        f"--method {method}: {config} trains by {resolved.recipe_name}; leave one of the two out",
    )
    out: Path = args.out or Path("runs") / resolved.name
    given = Namespace(config=config, overrides=args.overrides, domain=DOMAIN.name, print_config=False, out=out)
    outcome = train_new(given)
    if outcome is not None and not outcome.stopped:
        export(Namespace(run=out, out=None, form=args.form, steps=None, push=None, checkpoint=None))
