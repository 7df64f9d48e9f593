"""The demo: students of the digits teacher, trained in front of the user, measured and drawn beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.data.writing import write_text
from fewstep.core.errors import TrainingError
from fewstep.core.image.rendering import render_rows
from fewstep.core.report import build_comparison
from fewstep.core.report.tables import table
from fewstep.core.training.folder import DEMO, make_demo_room
from fewstep.core.training.opened import Drawn, Opened, draw_student, draw_teacher, open_run
from fewstep.core.training.showing import count, sample_steps
from fewstep.core.training.world import World

STUDENTS = ("dmd2-digits", "sid-digits", "consistency-digits", "tdm-digits")
TEACHER = "teacher-digits"
TEACHER_STEPS = (1, 2, 4, 8, 50)
SAMPLES = 2000
SEED = 0
SHOWN = 10
SETTINGS = ("domain.neighbours=0", "train.eval_every=0")
MEASURE = "Frechet distance"


def run_demo(out: Path, *, from_scratch: bool = False) -> None:
    """Train, measure and draw into ``out``; an earlier demo there is replaced.

    Every student is a process of its own, as many at a time as there are cores. Raises UserError for a folder with
    something else in it, TrainingError when a training fails.
    """
    began = time.monotonic()
    make_demo_room(out)
    teacher = "digits"
    if from_scratch:
        _say(f"teacher: {TEACHER}")
        _train_all({TEACHER: []}, out)
        _export_teacher(out / TEACHER)
        teacher = str(out / TEACHER / "export")
    _say(f"training {len(STUDENTS)} students, {_jobs()} at a time")
    _train_all({name: [f"domain.teacher={teacher}"] for name in STUDENTS}, out)
    _say(f"measuring teacher and students: {SAMPLES} samples per row")
    with _one_thread():
        students = {name: open_run(out / name, World()) for name in STUDENTS}
        rows, drawn = measure(students)
    samples = render_rows(drawn, out / "samples")
    minutes = (time.monotonic() - began) / 60
    _report(out, rows, samples, next(iter(students.values())), minutes)
    _say("\n".join([table(rows), "", *verdicts(rows), f"{minutes:.1f} minutes; {samples}; {out / 'report.html'}"]))


def _jobs() -> int:
    return max(1, min(len(STUDENTS), os.cpu_count() or 1))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks of 8x8 images are too small to share among threads, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_all(settings: Mapping[str, Sequence[str]], out: Path) -> None:
    """Run ``fewstep image train`` for every config, several at a time, one thread each."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    waiting, running = list(settings), dict[str, subprocess.Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < _jobs():
                name = waiting.pop(0)
                given = ["--config", name, "--out", str(out / name), *settings[name], *SETTINGS]
                command = [sys.executable, "-m", "fewstep.core.cli.main", "image", "train", *given]
                running[name] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            time.sleep(0.05)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                if code != 0:
                    raise TrainingError(f"demo: training of {name} ended with exit code {code}; its message is above")
    finally:
        for process in running.values():
            process.terminate()


def _export_teacher(run: Path) -> None:
    opened = open_run(run, World())
    opened.problem.export(opened.student(), opened.plan(max(TEACHER_STEPS)), run / "export", {"name": TEACHER})


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
        notes=[
            ("samples", f"{SAMPLES} per row, the same noise and classes for all; times: one thread"),
            *opened.problem.notes.items(),
        ],
        runs=[(name, f"{name}/report.html") for name in STUDENTS],
    )
    write_text(out / DEMO, json.dumps({"minutes": minutes, "rows": list(rows)}, indent=2) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
