"""The demo: a one-step student of the shipped teacher, trained on photos in front of the user."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cli.looking import export
from fewstep.core.cli.training import train_new
from fewstep.core.data.writing import write_text
from fewstep.core.errors import TrainingError
from fewstep.core.report import build_comparison
from fewstep.core.report.tables import table
from fewstep.core.training.folder import DEMO, make_demo_room
from fewstep.restoration.benchmark import Bicubic, Entry, Restores, degradation, low_quality, run, tensor_sources
from fewstep.restoration.comparison.html import write_page
from fewstep.restoration.comparison.panels import make_panels
from fewstep.restoration.comparison.sheet import draw_sheet
from fewstep.restoration.data.photos import held_out
from fewstep.restoration.evaluation import Scores, measures
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.writing import write_picture
from fewstep.restoration.restorer import Restorer

TEACHER, STUDENT = "photos", "photos-student"
PRESET, SCALE = "bicubic-matlab", 4
STEPS = 80
SHOWN, PART = "chelsea", (120, 40, 200, 160)  # of the photo that is drawn: x, y, width, height
MEASURE = "spectrum, dB"


def run_demo(args: Namespace) -> None:
    """Train, restore, measure and draw into ``args.out``; an earlier demo there is replaced.

    Raises UserError for a folder with something else in it, TrainingError when training fails.
    """
    out, began = Path(args.out), time.monotonic()
    make_demo_room(out)
    teacher = TEACHER
    if args.from_scratch:
        _say("training a teacher (an hour on two cores)")
        teacher = str(_train(out / "teacher", "teacher-photos", []))
    _say(f"training a one-step student for {STEPS} steps: TAD-SR")
    quick = [f"train.steps={STEPS}", "train.eval_every=0", "train.preview_every=0", "train.ema.decay=0.9"]
    student = str(_train(out / "student", "tad-sr-photos", [*quick, f"domain.teacher={teacher}"]))
    _say(f"restoring photos never trained on, x{SCALE}")
    models: list[tuple[str, Restores]] = [
        ("bicubic", Bicubic()),
        ("teacher", Restorer.load(teacher)),
        ("teacher", Restorer.load(teacher, steps=1)),
        ("your student", Restorer.load(student)),
        ("shipped student", Restorer.load(STUDENT, noise=1)),
    ]
    rows = measure(models)
    sheet, page = draw(models, out)
    minutes = (time.monotonic() - began) / 60
    build_comparison(
        out / "report.html",
        title="A few-step student of a restoration teacher",
        lead=f"{verdict(rows)} Everything on this page was made on this machine in {minutes:.1f} minutes.",
        samples=sheet,
        rows=rows,
        measure=MEASURE,
        notes=[("pictures", f"{len(held_out())} photos never trained on, x{SCALE}, degraded by '{PRESET}'")],
        runs=[("student", "student/report.html")],
    )
    write_text(out / DEMO, json.dumps({"minutes": minutes, "rows": rows}, indent=2) + "\n")
    _say("\n".join(["", table(rows), "", verdict(rows), f"{minutes:.1f} minutes; {sheet}; {page}; {out}/report.html"]))
    _say("now one of your own: fewstep restoration upscale photo.png -o restored.png")


def _train(run_dir: Path, config: str, overrides: list[str]) -> Path:
    outcome = train_new(
        Namespace(config=config, overrides=overrides, domain="restoration", print_config=False, out=run_dir)
    )
    if outcome is None or outcome.stopped:
        raise TrainingError(f"{run_dir}: training was stopped; run the demo again")
    export(Namespace(run=run_dir, out=None, form=None, steps=None, push=None, checkpoint=None))
    return run_dir


def measure(models: list[tuple[str, Restores]]) -> list[dict[str, Any]]:
    """Return a row of means over the held-out photos for each model."""
    entries = [Entry(model, Scores(measures(("psnr", "ssim", "gmsd", "spectrum")))) for _, model in models]
    for problem in run(entries, tensor_sources(held_out()), degradation(PRESET), scale=SCALE):
        if problem:
            raise TrainingError(f"demo: {problem}")
    rows = []
    for (name, model), entry in zip(models, entries, strict=True):
        found = entry.scores.means()
        rows.append(
            {
                "sampler": name,
                "steps": model.steps,
                "PSNR-Y": found["psnr"],
                "SSIM-Y": found["ssim"],
                "GMSD": found["gmsd"],
                MEASURE: found["spectrum"],
                "s/picture": entry.median_seconds,
            }
        )
    return rows


def draw(models: list[tuple[str, Restores]], out: Path) -> tuple[Path, Path]:
    """Write a photo as every model restores it, a sheet of a part of it, and a page that wipes between them."""
    index, photo = next((i, x) for i, (name, x) in enumerate(held_out()) if name == SHOWN)
    lq, truth = low_quality(photo, degradation(PRESET), SCALE, 0, index)
    pictures: list[tuple[str, Tensor]] = [("input", lq[0])]
    for name, model in models:
        steps = f", {model.steps} step{'s' * (model.steps > 1)}" if model.steps else ""
        pictures.append((f"{name}{steps}", model(lq, SCALE)[0].clamp(0, 1)))
    pictures.append(("original", truth))
    whole = [(name, Picture(colours=x, mode="RGB")) for name, x in pictures]
    for name, picture in whole:
        write_picture(out / f"{SHOWN}-{name.replace(', ', '-').replace(' ', '-')}.png", picture)
    sheet = draw_sheet(make_panels(whole, crop=PART), out / "pictures.png")
    return sheet, write_page(make_panels(whole), out / "pictures.html")


def verdict(rows: list[dict[str, Any]]) -> str:
    """Return what the table says, in a sentence."""
    plain, slow, single, mine = rows[:4]
    return (
        f"In one step your student has detail within {mine[MEASURE]:.1f} dB of the originals' at each scale; its "
        f"teacher's own single step {single[MEASURE]:.1f}, bicubic {plain[MEASURE]:.1f}, the teacher in "
        f"{slow['steps']} steps {slow[MEASURE]:.1f}, which takes {slow['s/picture'] / mine['s/picture']:.0f} times as "
        "long."
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
