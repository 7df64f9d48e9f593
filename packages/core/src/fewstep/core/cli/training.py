"""`train` and `resume`."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from fewstep.core.domain import find_domain
from fewstep.core.report import build_report
from fewstep.core.training.config import dump, load_config
from fewstep.core.training.folder import CONFIG, check_new, check_run
from fewstep.core.training.loop import Outcome, train
from fewstep.core.training.opened import assemble
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import World


def train_new(args: Namespace) -> Outcome | None:
    """Train into a new folder and return how that ended, or print the resolved settings and return None."""
    config = load_config(args.config, args.overrides, domain=find_domain(args.domain))
    if args.print_config:
        sys.stdout.write(dump(config))
        return None
    out = args.out or Path("runs") / config.name
    check_new(out)  # before the teacher is loaded
    return _train(config, out, resume=False)


def resume_run(args: Namespace) -> None:
    """Go on with a run, with changed settings where some are given (``train.steps=2000``)."""
    check_run(args.run)
    config = load_config(args.run / CONFIG, args.overrides, domain=find_domain(args.domain))
    _train(config, args.run, resume=True)


def _train(config: RunConfig, out: Path, resume: bool) -> Outcome:
    world = World()
    opened = assemble(config, world)
    outcome = train(config, opened.problem, opened.recipe, out, resume=resume, world=world)
    if world.main:
        build_report(out)
    if world.main and not outcome.stopped:
        measures = f"`fewstep {config.domain_name} eval {out}` measures the student"
        print(f"{out}: {outcome.steps} steps done, see report.html; {measures}")
    return outcome
