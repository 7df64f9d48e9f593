"""`fewstep bench`: what a training step of a recipe costs here, beside a plain denoising step of the same network."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from fewstep.core.domain import find_domain
from fewstep.core.report.tables import table
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.opened import assemble
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

UNIT = "diffusion"
SELECTION = ("dmd2", "sid", "tdm", "consistency", "scm")


def bench(args: Namespace) -> None:
    """Print seconds per training step, all phases included, of each recipe on the digits teacher."""
    names = args.recipes or SELECTION
    seconds = {name: time_step(name, args.batch, args.repeat) for name in dict.fromkeys((UNIT, *names))}
    rows: Sequence[dict[str, Any]] = [
        {
            "recipe": name,
            "ms/step": 1000 * value,
            "samples/s": args.batch / value,
            f"x {UNIT} step": value / seconds[UNIT],
        }
        for name, value in seconds.items()
    ]
    print(table(rows))
    print(f"digits teacher, batch {args.batch}, best of {args.repeat}, {torch.get_num_threads()} thread(s)")


def time_step(recipe: str, batch: int, repeat: int) -> float:
    """Return the least time of a full training step, in seconds."""
    settings = [f"recipe.name={recipe}", f"train.batch={batch}", "train.steps=1000000"]
    if recipe == UNIT:
        settings.append("recipe.init=teacher")  # the same network as the others'
    world, config = World(), load_config(None, settings, domain=find_domain("image"))
    opened = assemble(config, world)
    trainer = Trainer(config, opened.problem, opened.recipe, world)
    every = max(phase.every for phase in trainer.phases)  # one round: each phase at least once
    best = float("inf")
    with Feed(opened.problem.data, config, world) as feed:
        for _ in range(repeat + 1):  # the first one warms up
            since = time.perf_counter()
            for _ in range(every):
                trainer.step(feed.get(trainer.step_count), feed)
            best = min(best, (time.perf_counter() - since) / every)
    return best
