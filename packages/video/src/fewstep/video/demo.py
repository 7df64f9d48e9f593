"""The demo: clips filmed badly, pictures taken well, a student that moves like the first and looks like the second."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cli.main import run_domain
from fewstep.core.data.writing import write_text
from fewstep.core.report import build_comparison
from fewstep.core.report.tables import table
from fewstep.core.training.folder import DEMO, make_demo_room
from fewstep.core.training.opened import Drawn, Opened, draw_student, draw_teacher, open_run
from fewstep.core.training.showing import count
from fewstep.core.training.world import World
from fewstep.video.world.pipeline import TEACHER_WORLD

CONFIG, TEACHER = "motion-consistency-world", "world"
CLIPS, IMAGES, HELD_OUT = 800, 800, 256
STEPS = 150
STUDENT_STEPS, TEACHER_STEPS = (4, 1), (50, 4)
SAMPLES, SHOWN, SEED = 128, 8, 0
MEASURE = "frames to pictures"
COLUMNS = {
    "frechet_frame": MEASURE,
    "frechet_video": "clips to clips",
    "speed_ratio": "speed",
    "direction_distance": "direction off",
}


def run_demo(out: Path) -> None:
    """Draw, train, measure and film into ``out``; an earlier demo there is replaced.

    Raises UserError for a folder with something else in it, TrainingError when training fails.
    """
    began = time.monotonic()
    make_demo_room(out)
    world, latents, run = out / "world", out / "latents", out / "student"
    size = f"{TEACHER_WORLD.height}x{TEACHER_WORLD.width}x{TEACHER_WORLD.frames}"
    drawn = ["--objects", str(TEACHER_WORLD.objects), "--size", size]
    _do("draw", world, "--clips", CLIPS, "--images", IMAGES, *drawn)
    _do("draw", out / "held-out", "--clips", HELD_OUT, "--images", HELD_OUT, "--seed", 1, *drawn)
    _do("prepare", "--teacher", TEACHER, "--size", size, "--data", world / "videos", "--out", latents)
    quick = [f"train.steps={STEPS}", "train.checkpoint_every=0", "train.preview_every=0", "train.eval_every=0"]
    data = [f"domain.data.path={latents}", f"domain.images.path={world / 'images'}"]
    against = [f"domain.evaluation.clips={out / 'held-out'}", f"domain.evaluation.images={out / 'held-out/images'}"]
    _do("train", "--config", CONFIG, "--out", run, *quick, *data, *against)
    _say(f"measuring teacher and student: {SAMPLES} clips per row")
    opened = open_run(run, World())
    rows, clips = measure(opened)
    shown = opened.problem.render(clips, out / "clips")
    minutes = (time.monotonic() - began) / 60
    build_comparison(
        out / "report.html",
        title="A few-step video student",
        lead=f"{verdict(rows)} Everything on this page was made on this machine in {minutes:.1f} minutes.",
        samples=shown,
        rows=rows,
        measure=MEASURE,
        notes=list(opened.problem.notes.items()),
        runs=[("student", "student/report.html")],
    )
    write_text(out / DEMO, json.dumps({"minutes": minutes, "rows": rows}, indent=2) + "\n")
    films = f"{shown.with_suffix('.mp4')}, {shown.with_suffix('.gif')}"
    _say("\n".join(["", table(rows), "", verdict(rows), f"{minutes:.1f} minutes; {films}; {out / 'report.html'}"]))


def measure(opened: Opened) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """Return table rows, and a few clips to film, of the teacher and the student at their step counts."""
    rows: list[dict[str, Any]] = []
    clips: list[tuple[str, Tensor]] = []

    def add(who: str, steps: int, made: Drawn) -> None:
        found = opened.problem.evaluate(made.samples, made.cond)
        named = {title: found[name] for name, title in COLUMNS.items() if name in found}
        rows.append({"sampler": who, "steps": steps, "NFE": made.evaluations, **named, "ms/clip": made.ms_per_sample})
        clips.append((f"{who}, {count(steps)}", made.samples[:SHOWN]))

    for steps in TEACHER_STEPS:
        add("teacher", steps, draw_teacher(opened, SAMPLES, SEED, steps))
    for steps in STUDENT_STEPS:
        add("student", steps, draw_student(opened, SAMPLES, SEED, steps))
    return rows, clips


def verdict(rows: list[dict[str, Any]]) -> str:
    """Return what the table says, in a sentence."""
    slow, _, mine, *_ = rows
    moves = (
        f"things move at {mine['speed']:.2f} of their true speed (the teacher's {slow['speed']:.2f}), "
        if "speed" in mine and "speed" in slow  # not where nothing was found to move
        else ""
    )
    return (
        f"In {mine['steps']} steps the student's frames are at {mine[MEASURE] / slow[MEASURE]:.2f} of the distance to "
        f"the pictures that its teacher's have after {slow['steps']}; {moves}and a clip takes "
        f"1/{slow['ms/clip'] / mine['ms/clip']:.0f} of the time."
    )


def _do(*words: object) -> None:
    argv = [str(word) for word in words]
    _say(f"$ fewstep video {shlex.join(argv)}")
    run_domain("video", argv, "fewstep video")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
