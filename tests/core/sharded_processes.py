"""What two processes do in the tests of real networks in shards; started by ``torch.distributed.run``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.sharding import STEPS, image_config, image_problem
from core.toys import ToyRecipe

from fewstep.core.training.loop import train
from fewstep.core.training.world import World, part


def main(root: Path) -> None:
    held = []
    for dtype, steps in ((dtype, steps) for dtype in ("fp32", "bf16") for steps in (STEPS - 2, STEPS)):
        world = World()
        world.shards = True
        config = image_config(dtype, steps)
        problem = image_problem(config)
        recipe = ToyRecipe(config.recipe, problem.actors)
        train(config, problem, recipe, root / dtype, world=world, resume=steps == STEPS)
        network = problem.actors.module("student").network
        held = [p.to_local().numel() for p in network.parameters()]
    (root / f"said-{World().rank}.json").write_text(json.dumps(sum(held)))
    part()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
