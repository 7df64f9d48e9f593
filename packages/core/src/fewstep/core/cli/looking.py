"""`sample`, `eval` and `export`: what one does with a run's student."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.core.errors import UserError
from fewstep.core.report import build_report
from fewstep.core.report.tables import table
from fewstep.core.training.folder import ENVIRONMENT, write_text
from fewstep.core.training.opened import Drawn, Opened, draw_student, draw_teacher, open_run
from fewstep.core.training.showing import sample_steps
from fewstep.core.training.world import World

ROW = 10  # samples in a row of a picture


def _step_counts(opened: Opened, args: Namespace) -> tuple[int, ...]:
    return tuple(args.steps) if args.steps else sample_steps(opened.config)


def sample(args: Namespace) -> None:
    """Draw samples of the student, one picture for all step counts."""
    opened = open_run(args.run, World())
    rows = []
    for steps in _step_counts(opened, args):
        images = draw_student(opened, args.n, args.seed, steps).samples
        label = "1 step" if steps == 1 else f"{steps} steps"
        rows += [(label if i == 0 else "", images[i : i + ROW]) for i in range(0, len(images), ROW)]
    out = args.out or args.run / "samples.png"
    try:
        file = opened.problem.render(rows, out.with_suffix(""))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    print(file)


def evaluate(args: Namespace) -> None:
    """Measure the student, and its teacher at several step counts, and print a table."""
    opened = open_run(args.run, World())
    rows = [
        _row(opened, f"student, step {opened.step}", steps, draw_student(opened, args.n, args.seed, steps))
        for steps in _step_counts(opened, args)
    ]
    if opened.has_teacher():
        for steps in args.teacher_steps:
            drawn = draw_teacher(opened, args.n, args.seed, steps, args.solver)
            rows.append(_row(opened, f"teacher, {args.solver}", steps, drawn))
    print(table(rows))
    for name, note in opened.problem.notes.items():
        print(f"{name}: {note}")
    out = args.out or args.run / "evaluation.json"
    result = {"run": str(args.run), "step": opened.step, "samples": args.n, "seed": args.seed, "rows": rows}
    _write(out, json.dumps(result | {"notes": opened.problem.notes}, indent=2) + "\n")
    build_report(args.run)


def _row(opened: Opened, who: str, steps: int, drawn: Drawn) -> dict[str, Any]:
    metrics = opened.problem.evaluate(drawn.samples, drawn.cond)
    return {"sampler": who, "steps": steps, "NFE": drawn.evaluations, **metrics, "ms/sample": drawn.ms_per_sample}


def export(args: Namespace) -> None:
    """Write the student as a standard artefact."""
    opened = open_run(args.run, World())
    out = args.out or args.run / "export"
    opened.problem.export(opened.student(), opened.plan(args.steps), out, card(opened, args.run))
    print(out)


def card(opened: Opened, run_dir: Path) -> Mapping[str, Any]:
    """Return the facts that go into an exported student's card; the command is the one the run was started with."""
    recipe = type(opened.recipe)
    facts = {
        "name": opened.config.name,
        "recipe": recipe.name,
        "paper": f"arXiv {recipe.paper}",
        "training steps": opened.step,
        "batch": opened.config.train.batch,
        "seed": opened.config.seed,
        "made by": shlex.join(_command(run_dir)),
    }
    return facts | opened.problem.notes


def _command(run_dir: Path) -> list[str]:
    file = run_dir / ENVIRONMENT
    return list(json.loads(file.read_text(encoding="utf-8")).get("command", [])) if file.is_file() else []


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
