"""Memory of progressive rendering distillation: the peak of a training step in 4 parts over that in 1 part.

    python benchmarks/prd_memory.py [--batch 16]

Each in a process of its own, so that no peak hides in another: peak resident memory, less what was resident before the
first step. The floor is 1: each part's graph is gone before the next is made. All at once (`loss`) is beside it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from fewstep.core.recipe import LossTerms
from fewstep.core.report.tables import table
from fewstep.core.rng import Rng
from fewstep.threed.feedforward import build_planes
from fewstep.threed.judges import ViewJudge
from fewstep.threed.planes.model import PlanesConfig
from fewstep.threed.recipes.prd import PRD, PRDConfig
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.teachers.view_model import load_model


def resident() -> float:
    """Return the peak of resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def one(parts: int, batch: int, at_once: bool) -> float:
    """Return how much a step adds to the peak, in MiB."""
    config = PRDConfig(student_steps=parts, moments=parts)
    judge = ViewJudge(load_model("solids"))
    problem = build_planes(PlanesConfig(), {"teacher": judge}, named_prompts("things"), PRD.role_specs(config), 0)
    recipe: Any = PRD(config, problem.actors)
    rng = Rng.for_batch(0, 0, batch)
    data = problem.data.batch(rng, "cpu")
    before = resident()
    losses: Iterator[LossTerms] = (
        iter([recipe.loss("student", data, rng, 0)]) if at_once else recipe.losses("student", data, rng, 0)
    )
    for terms in losses:
        terms.total().mean().backward()
        del terms
    return resident() - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--one", nargs=2, metavar=("PARTS", "AT_ONCE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(one(int(args.one[0]), args.batch, args.one[1] == "1"))
        return

    def measured(parts: int, at_once: bool) -> float:
        words = [sys.executable, __file__, "--batch", str(args.batch), "--one", str(parts), str(int(at_once))]
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])

    base = measured(1, False)
    rows = [{"parts": 1, "how": "a part at a time", "MiB": base, "ratio": 1.0}]
    for parts, at_once in ((4, False), (4, True)):
        found = measured(parts, at_once)
        rows.append(
            {"parts": parts, "how": "at once" if at_once else "a part at a time", "MiB": found, "ratio": found / base}
        )
    print(table(rows))


if __name__ == "__main__":
    main()
