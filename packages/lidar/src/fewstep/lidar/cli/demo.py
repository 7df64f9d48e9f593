"""The demo: a one-step student of the shipped teacher, trained on simulated streets in front of the user."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.core.data.writing import write_text
from fewstep.core.report import build_comparison
from fewstep.core.report.tables import table
from fewstep.core.training.folder import DEMO, make_demo_room
from fewstep.lidar.cli.training import train_and_export
from fewstep.lidar.clouds import Cloud, write_cloud
from fewstep.lidar.completion import Completer, CompletionConfig
from fewstep.lidar.data.crops import ground_truth
from fewstep.lidar.data.folder import MAP_FILE
from fewstep.lidar.data.maps import build_map, load_map, save_map
from fewstep.lidar.data.sequence import Sequence, open_sequence
from fewstep.lidar.metrics.scores import Scores
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
from fewstep.lidar.simulator.sequence import simulate_sequence
from fewstep.lidar.view.html import write_viewer
from fewstep.lidar.view.raster import draw_panels

DRIVES = ("00", "01", "08")  # the last one is never trained on
SCANS, CHOSEN = 12, (3, 8)
SEED = 1000  # of streets no shipped network was trained on
RANGE, POINTS = 20.0, 28_800  # a scene of 50 m has 180,000
TEACHER, STUDENT, REFINER = "streets", "streets-student", "streets-refiner"
STEPS = 60
MEASURE = "Chamfer, m"


def run_demo(args: Namespace) -> None:
    """Simulate, train, complete, measure and draw into ``args.out``; an earlier demo there is replaced.

    Raises UserError for a folder with something else in it, TrainingError when training fails.
    """
    out, began = Path(args.out), time.monotonic()
    make_demo_room(out)
    _say(f"simulating {len(DRIVES)} drives of {SCANS} scans")
    held = _simulate(out)
    teacher = TEACHER
    if args.from_scratch:
        _say("training a teacher (half an hour on two cores)")
        _train(out, "teacher-streets", "teacher", [])
        teacher = str(out / "teacher")
    _say(f"training a one-step student for {STEPS} steps: ScoreLiDAR")
    steps = [f"train.steps={STEPS}", "train.eval_every=0", "train.preview_every=0", "train.log_every=10"]
    _train(out, "scorelidar-streets", "student", [*steps, f"domain.teacher={teacher}"])
    _say("completing scans of a street never trained on")
    rows, panels = measure(held, out, teacher)
    picture = draw_panels(panels, out / "scenes.png", max_range=RANGE, size=400)
    page = write_viewer(out / "scenes.html", panels, title="A simulated street, completed", max_range=RANGE)
    minutes = (time.monotonic() - began) / 60
    build_comparison(
        out / "report.html",
        title="Few-step students of a LiDAR scene completion teacher",
        lead=f"{verdict(rows)} Everything on this page was made on this machine in {minutes:.1f} minutes.",
        samples=picture,
        rows=rows,
        measure=MEASURE,
        notes=[
            ("scenes", f"{len(CHOSEN)} scans of a held-out simulated street, within {RANGE:g} m, {POINTS:,} points")
        ],
        runs=[("student", "student/report.html")],
    )
    write_text(out / DEMO, json.dumps({"minutes": minutes, "rows": rows}, indent=2) + "\n")
    _say(
        "\n".join(["", table(rows), "", verdict(rows), f"{minutes:.1f} minutes; {picture}; {page}; {out}/report.html"])
    )


def _simulate(out: Path) -> Sequence:
    street, sensor = StreetConfig(speed=12.0), SensorConfig(azimuth_step=0.36)
    for number, name in enumerate(DRIVES):
        folder = simulate_sequence(out / "streets", name, SCANS, SEED + number, street, sensor)
        save_map(folder / MAP_FILE, build_map(open_sequence(folder)))
    return open_sequence(out / "streets" / "sequences" / DRIVES[-1])


def _train(out: Path, config: str, name: str, overrides: list[str]) -> None:
    data = [
        "domain.data.source=semantickitti",
        f"domain.data.path={out / 'streets'}",
        f"domain.data.sequences=[{','.join(repr(drive) for drive in DRIVES[:-1])}]",
        f"domain.data.held_out=['{DRIVES[-1]}']",
    ]
    train_and_export(Namespace(config=config, out=out / name, form=None, overrides=[*data, *overrides]))


def measure(held: Sequence, out: Path, teacher: str) -> tuple[list[dict[str, Any]], list[tuple[str, np.ndarray]]]:
    """Return a row per sampler, and the first scene as each of them completes it, between the scan and the truth."""
    samplers = [
        ("teacher", teacher, 50, ""),
        ("teacher", teacher, 8, ""),
        ("your student", str(out / "student"), 1, ""),
        ("shipped student", STUDENT, 1, ""),
        ("shipped student, refined", STUDENT, 1, REFINER),
    ]
    points = load_map(held.folder)
    scans = [held.scan(i).xyz for i in CHOSEN]
    truths = [ground_truth(points, held.pose(i), scan, max_range=RANGE) for i, scan in zip(CHOSEN, scans, strict=True)]
    rows, drawn = [], list[tuple[str, np.ndarray]]()
    for name, model, steps, refiner in samplers:
        config = CompletionConfig(steps=steps, points=POINTS, max_range=RANGE)
        completer, scores, seconds = Completer(model, config, refiner=refiner), Scores(emd_points=0), list[float]()
        for number, (scan, truth) in enumerate(zip(scans, truths, strict=True)):
            done = completer(scan)
            scores.update(done.points, truth)
            seconds.append(done.total)
            if number == 0:
                drawn.append((f"{name}, {steps}", done.points))
                write_cloud(out / f"{name.replace(' ', '-').replace(',', '')}-{steps}.ply", Cloud(done.points))
        found = {row.name: row.mean for row in scores.rows()}
        rows.append(
            {
                "sampler": name,
                "steps": steps,
                "evaluations": done.evaluations,
                MEASURE: found["chamfer_m"],
                "JSD BEV": found["jsd_bev"],
                "IoU 0.5 m, %": found["iou_0.5m"],
                "s/scan": float(np.mean(seconds)),
            }
        )
    near = np.linalg.norm(scans[0], axis=1) < RANGE
    shown = [drawn[0], drawn[2], drawn[4]]
    return rows, [("scan", scans[0][near]), *shown, ("map", truths[0])]


def verdict(rows: list[dict[str, Any]]) -> str:
    """Return what the table says, in a sentence."""
    slow, mine = rows[0], rows[2]
    better = "closer to" if mine[MEASURE] < slow[MEASURE] else "farther from"
    return (
        f"Your student is {better} the map in one step ({mine[MEASURE]:.3f} m) than its teacher in {slow['steps']} "
        f"({slow[MEASURE]:.3f} m), and {slow['s/scan'] / mine['s/scan']:.0f} times as fast."
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
