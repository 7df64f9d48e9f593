"""`train-teacher`, `train-refiner` and `distill`: core's training, then the export, in one command."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fewstep.core.cli.looking import export
from fewstep.core.cli.training import train_new
from fewstep.core.training.config import load_config
from fewstep.core.training.folder import CHECKPOINTS
from fewstep.lidar.domain import DOMAIN


def train_and_export(args: Namespace) -> None:
    """Train into a new run folder and export what was trained into ``export`` there, unless it was stopped."""
    config = args.config or f"{args.method}-streets"
    name = load_config(config, args.overrides, domain=DOMAIN).name
    out: Path = args.out or Path("runs") / name
    train_new(Namespace(config=config, overrides=args.overrides, domain=DOMAIN.name, print_config=False, out=out))
    if (out / CHECKPOINTS).is_dir():
        export(Namespace(run=out, out=None, form=args.form, steps=None, push=None))
