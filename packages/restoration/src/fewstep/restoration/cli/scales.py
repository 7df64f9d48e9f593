"""`fewstep restoration distill-scales`: scale distillation up a chain, each student the teacher of the next."""

from __future__ import annotations

import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.core.cli.verbs import counts, takes_settings
from fewstep.core.errors import check

CONFIG = "yonos-photos"


class Link(NamedTuple):
    """One training: its run's folder and the settings it has over the chain's."""

    run: Path
    settings: tuple[str, ...]


def chain(scales: Sequence[int], out: Path) -> list[Link]:
    """Return the trainings from a teacher of the first scale up; UserError for scales that are no chain."""
    check(len(scales) >= 2, f"--scales needs two scales or more, such as 2,4,8; got {','.join(map(str, scales))}")
    links: list[Link] = []
    for milder, scale in itertools.pairwise(scales):
        check(
            milder < scale and scale % milder == 0, f"--scales: each must be a multiple of the last: {milder}, {scale}"
        )
        settings: tuple[str, ...] = (f"domain.scales=[{scale}]", f"domain.milder_scale={milder}")
        if links:  # the first teacher is the config's
            settings += (f"domain.teacher={links[-1].run / 'export'}",)
        links.append(Link(out / f"x{scale}", settings))
    return links


def distill_scales_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fewstep restoration distill-scales``."""
    parser.add_argument("--config", default=CONFIG, metavar="NAME|FILE", help=f"of every training ({CONFIG})")
    parser.add_argument("--scales", type=counts, default=(2, 4, 8), metavar="S,S", help="the teacher's first (2,4,8)")
    parser.add_argument("--out", type=Path, default=Path("runs/yonos"), metavar="DIR", help="of the runs (runs/yonos)")
    takes_settings(parser)


def distill_scales(args: Namespace) -> None:
    """Train and export one student after the other; those that are exported already are passed by."""
    from fewstep.core.cli.looking import export
    from fewstep.core.cli.training import train_new
    from fewstep.core.training.config import load_config
    from fewstep.restoration.domain import DOMAIN

    links = chain(args.scales, args.out)
    found = load_config(args.config, args.overrides, domain=DOMAIN)
    check(found.recipe_name == "yonos", f"{args.config}: scales are distilled by recipe yonos, not {found.recipe_name}")
    for run, settings in links:
        if (run / "export").is_dir():
            print(f"{run}: exported already")
            continue
        own = [*args.overrides, *settings]
        given = Namespace(config=args.config, overrides=own, domain=DOMAIN.name, print_config=False, out=run)
        outcome = train_new(given)
        if outcome is None or outcome.stopped:
            print(f"{run}: stopped; `fewstep restoration resume {run}`, `... export {run}`, then this command again")
            return
        export(Namespace(run=run, out=None, form=None, steps=None, push=None, checkpoint=None))
