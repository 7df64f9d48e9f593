"""Memory of progressive rendering distillation: the peak of a training step in 4 parts over that in 1 part.

    python benchmarks/prd_memory.py [--batch 4]

Bytes in use in the loop's second step, weights and optimizer included, by the profiler's record of allocations (see
benchmarks/memory.py): peaks of resident memory would count what the allocator keeps, too. The floor is 1, as each
part's graph is gone before the next is made, plus the gradients, which are there from the second part on. All parts at
once is beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from memory import measured

from fewstep.core.recipe import Batch, LossTerms
from fewstep.core.report.tables import table
from fewstep.core.rng import Rng
from fewstep.core.training.settings import EMAConfig, OptimConfig, RunConfig, TrainConfig
from fewstep.threed.feedforward import build_planes
from fewstep.threed.judges import ViewJudge
from fewstep.threed.planes.model import PlanesConfig
from fewstep.threed.recipes.prd import PRD, PRDConfig
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.teachers.view_model import load_model

LIMIT = 1.10


class AtOnce(PRD):
    """All parts' graphs in memory together."""

    def losses(self, phase: str, batch: Batch, rng: Rng, step: int) -> Iterator[LossTerms]:
        """Yield the sum of all parts."""
        parts = list(super().losses(phase, batch, rng, step))
        yield LossTerms({f"part{i}": part.total() for i, part in enumerate(parts)})


def peak(kind: type[PRD], parts: int, batch: int) -> float:
    """Return the peak of a step, in MiB."""
    config, planes = PRDConfig(student_steps=parts, moments=parts), PlanesConfig()
    judge = ViewJudge(load_model("solids"))
    problem = build_planes(planes, {"teacher": judge}, named_prompts("things"), PRD.role_specs(config), 0)
    run = RunConfig(
        name="memory",
        seed=0,
        recipe_name="prd",
        recipe=config,
        domain_name="threed",
        domain=planes,
        train=TrainConfig(steps=2, batch=batch, ema=EMAConfig(kind="none")),
        optim=OptimConfig(),
    )
    return measured(run, problem, kind(config, problem.actors)) / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    base = peak(PRD, 1, args.batch)
    rows = [{"parts": 1, "how": "a part at a time", "MiB": base, "ratio": 1.0}]
    for kind, how in ((PRD, "a part at a time"), (AtOnce, "at once")):
        found = peak(kind, 4, args.batch)
        rows.append({"parts": 4, "how": how, "MiB": found, "ratio": found / base})
    print(table(rows))
    print(f"limit of the second row: {LIMIT:.2f}")


if __name__ == "__main__":
    main()
