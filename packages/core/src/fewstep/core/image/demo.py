"""The demo: students of the digits teacher, trained in front of the user, measured and drawn beside it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.image.domain import DOMAIN
from fewstep.core.image.rendering import render_rows
from fewstep.core.report import build_comparison, build_report
from fewstep.core.report.tables import table
from fewstep.core.training.config import load_config
from fewstep.core.training.folder import write_text
from fewstep.core.training.loop import train
from fewstep.core.training.opened import Drawn, Opened, assemble, draw_student, draw_teacher, open_run
from fewstep.core.training.showing import count, sample_steps
from fewstep.core.training.world import World

STUDENTS = ("dmd2-digits", "sid-digits", "consistency-digits", "tdm-digits")
TEACHER = "teacher-digits"
TEACHER_STEPS = (1, 4, 8, 50)
SAMPLES = 2000
SEED = 0
SHOWN = 10
MARKER = "demo.json"
MEASURE = "Frechet distance"


def run_demo(out: Path, *, from_scratch: bool = False) -> None:
    """Train, measure and draw into ``out``; an earlier demo there is replaced.

    Raises UserError for a folder with something else in it.
    """
    began = time.monotonic()
    _make_room(out)
    world = World()
    teacher = str(_train_teacher(out / TEACHER, world)) if from_scratch else "digits"
    for number, name in enumerate(STUDENTS, 1):
        _say(f"student {number} of {len(STUDENTS)}: {name}")
        settings = [f"domain.teacher={teacher}", "domain.neighbours=0", "train.eval_every=0"]
        _train(name, out / name, settings, world)
        build_report(out / name)
    _say(f"measuring: {SAMPLES} samples each")
    students = {name: open_run(out / name, world) for name in STUDENTS}
    rows, drawn = measure(students)
    samples = render_rows(drawn, out / "samples")
    minutes = (time.monotonic() - began) / 60
    _report(out, rows, samples, next(iter(students.values())), minutes)
    _say("\n".join([table(rows), "", *verdicts(rows), f"{minutes:.1f} minutes; {samples}; {out / 'report.html'}"]))


def measure(students: Mapping[str, Opened]) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """Return table rows, and a few samples to draw, of the teacher at its step counts and the students at theirs."""
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[str, Tensor]] = []

    def add(opened: Opened, who: str, steps: int, made: Drawn) -> None:
        found = opened.problem.evaluate(made.samples, made.cond)
        row = {"sampler": who, "steps": steps, "NFE": made.evaluations, MEASURE: found["frechet"]}
        more = {"class accuracy": found["accuracy"], "diversity": found["diversity"], "ms/image": made.ms_per_sample}
        rows.append(row | more)
        drawn.append((f"{who}, {count(steps)}", made.samples[:SHOWN]))

    first = next(iter(students.values()))
    for steps in sorted(TEACHER_STEPS, reverse=True):
        add(first, "teacher", steps, draw_teacher(first, SAMPLES, SEED, steps))
    for name, opened in students.items():
        for steps in sample_steps(opened.config):
            add(opened, name.removesuffix("-digits"), steps, draw_student(opened, SAMPLES, SEED, steps))
    return rows, drawn


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the table says, in sentences: the best one-step student, and every student at its own step count."""
    teacher = {row["steps"]: row[MEASURE] for row in rows if row["sampler"] == "teacher"}
    students = [row for row in rows if row["sampler"] != "teacher"]
    best = min((row for row in students if row["steps"] == 1), key=lambda row: float(row[MEASURE]))
    found = [
        f"best in one step: {best['sampler']} at {best[MEASURE]:.2f}; "
        f"the teacher needs 8 steps for {teacher[8]:.2f} and 50 for {teacher[50]:.2f}"
    ]
    behind = [r for r in students if r["steps"] in teacher and r[MEASURE] >= teacher[r["steps"]]]
    if behind:
        names = ", ".join(f"{row['sampler']} ({count(row['steps'])})" for row in behind)
        return [*found, f"not better than the teacher at the same number of steps: {names}"]
    return [*found, "every student is better than the teacher at the same number of steps"]


def _make_room(out: Path) -> None:
    """Make an empty folder with the demo's marker in it."""
    if (out / MARKER).is_file():
        shutil.rmtree(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something else than a demo: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / MARKER, "{}\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}): give another --out") from error


def _train(config: str, out: Path, settings: Sequence[str], world: World) -> None:
    resolved = load_config(config, settings, domain=DOMAIN)
    made = assemble(resolved, world)
    outcome = train(resolved, made.problem, made.recipe, out, world=world)
    if outcome.stopped:
        raise KeyboardInterrupt


def _train_teacher(out: Path, world: World) -> Path:
    """Train the teacher as the shipped one was; returns its export."""
    _say(f"teacher: {TEACHER}")
    _train(TEACHER, out, ["train.eval_every=0"], world)
    opened = open_run(out, world)
    opened.problem.export(opened.student(), opened.plan(max(TEACHER_STEPS)), out / "export", {"name": TEACHER})
    return out / "export"


def _report(out: Path, rows: Sequence[Mapping[str, Any]], samples: Path, opened: Opened, minutes: float) -> None:
    lead = (
        f"One teacher of 8x8 handwritten digits, and students of it trained on this machine in {minutes:.1f} minutes, "
        f"evaluation included. {' '.join(f'{line[0].upper()}{line[1:]}.' for line in verdicts(rows))}"
    )
    build_comparison(
        out / "report.html",
        title="Few-step students of a digits teacher",
        lead=lead,
        samples=samples,
        rows=rows,
        measure=MEASURE,
        notes=[("samples", f"{SAMPLES} per row, the same noise and classes for all"), *opened.problem.notes.items()],
        runs=[(name, f"{name}/report.html") for name in STUDENTS],
    )
    write_text(out / MARKER, json.dumps({"minutes": minutes, "rows": list(rows)}, indent=2) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
