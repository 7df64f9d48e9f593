"""What two processes do in the tests of DeepSpeed; started by ``accelerate launch``."""

from __future__ import annotations

import sys
from pathlib import Path

from core.runs import ZERO, build, config_of, go
from core.two_processes import Uneven, refused

from fewstep.core.domain import Problem
from fewstep.core.recipe import Recipe
from fewstep.core.training.loop import train
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.world import World, part

BAD = "train.max_bad_steps=2"


def broken(config: RunConfig, problem: Problem) -> Recipe:
    """A recipe whose losses are nan in the third step, on the last process."""
    recipe = Uneven(config.recipe, problem.actors)
    recipe.rank, recipe.trouble = int(World().rank == World().size - 1), "nan"
    return recipe


def zero(stage: int, folder: Path, *overrides: str, recipe: str = "toy", resume: bool = False) -> None:
    world = World()
    assert world.zero_stage == 2  # as the launch config says
    assert world.size == 2
    world.zero_stage = stage
    config = config_of(*ZERO, *overrides, recipe=recipe)
    train(config, *build(config), folder, world=world, resume=resume)


def main(root: Path) -> None:
    for stage in (1, 2):
        zero(stage, root / f"toy-{stage}", "train.steps=4")
        zero(stage, root / f"toy-{stage}", resume=True)
    zero(2, root / "lora", "domain.roles.mode=lora")
    zero(2, root / "dmd2", recipe="dmd2")
    zero(2, root / "progressive", recipe="progressive")
    zero(2, root / "shrinks", "train.steps=4")
    zero(2, root / "grows", resume=True)
    world = World()
    config = config_of(*ZERO, BAD)
    problem, _ = build(config)
    train(config, problem, broken(config, problem), root / "bad", world=world)
    world.accelerator.state.deepspeed_plugin.zero_stage = 3
    (root / f"said-{world.rank}.txt").write_text(refused(lambda: go(config_of(), root / "three")))
    part()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
