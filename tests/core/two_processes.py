"""What two processes do in the tests of distributed training; started by ``torch.distributed.run``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from core.runs import LORA, build, config_of, go
from core.toys import ToyRecipe

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.training.loop import train
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import World, part


def refused(work) -> str:
    """The error ``work`` ends with."""
    try:
        work()
    except (UserError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Uneven(ToyRecipe):
    """Memory runs out on one process only; the loss goes wrong on one process only; a signal reaches one only."""

    rank, trouble = 0, ""

    def loss(self, phase, batch, rng, step):
        if self.trouble == "memory" and self.rank == 1 and batch.size > 2:
            raise torch.OutOfMemoryError("no memory")
        if self.trouble == "signal" and self.rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        terms = super().loss(phase, batch, rng, step)
        if self.trouble == "nan" and self.rank == 1 and step == 2:
            terms.terms[next(iter(terms.terms))].data[0] = float("nan")
        return terms


def in_shards(config: RunConfig, folder: Path, resume: bool = False, reshard: bool = True) -> int:
    """Train with networks divided over the processes; returns the number of the student's parameters held here."""
    world = World()
    world.shards, world.reshard = True, reshard
    problem, recipe = build(config)
    train(config, problem, recipe, folder, world=world, resume=resume)
    return sum(p.to_local().numel() for p in problem.actors.module("student").parameters())


def adapted(root: Path) -> None:
    """LoRA roles over one base in shards; runs that one process began, and that one process will end."""
    in_shards(config_of(*LORA, recipe="dmd2"), root / "lora-dmd2")
    in_shards(config_of(*LORA), root / "lora-toy")
    in_shards(config_of(*LORA), root / "kept-toy", reshard=False)
    in_shards(config_of("domain.dtype=float64"), root / "kept-full", reshard=False)
    in_shards(config_of(*LORA, "train.steps=4"), root / "shrinks")
    in_shards(config_of(*LORA), root / "grows", resume=True)


def main(root: Path, recipes: list[str]) -> None:
    world = World()
    said: dict[str, object] = {"size": world.size}
    for name in recipes:
        go(config_of("domain.dtype=float64", recipe=name), root / f"two-{name}")
        in_shards(config_of("domain.dtype=float64", "train.steps=4", recipe=name), root / f"shards-{name}")
        config = config_of("domain.dtype=float64", recipe=name)
        said["parameters"] = in_shards(config, root / f"shards-{name}", resume=True)
    adapted(root)
    config = config_of("domain.dtype=float64")
    for trouble in ("memory", "nan", "signal"):
        problem, _ = build(config)
        uneven = Uneven(config.recipe, problem.actors)
        uneven.rank, uneven.trouble = world.rank, trouble
        said[trouble] = refused(lambda u=uneven, p=problem, t=trouble: go(config, root / t, problem=p, recipe=u))
    said["batch"] = refused(lambda: go(config_of("train.batch=9"), root / "odd"))
    said["taken"] = refused(lambda: go(config, root / "two-toy"))
    (root / f"said-{world.rank}.json").write_text(json.dumps(said))
    part()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
