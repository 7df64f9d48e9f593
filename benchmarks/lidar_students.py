"""Teacher and students of LiDAR completion on simulated streets never trained on: distances to the map, and seconds.

    python benchmarks/lidar_students.py --students runs/scorelidar-streets runs/dmd2-streets --refiner streets-refiner

Streets are simulated with seeds that no shipped network has seen. Within one run all rows see the same scans and the
same noise; seconds are medians of whole completions, thinning and cropping included. Floor: a perfect completion would
score 0 m; the scan's own points, all of them on surfaces, are 0.02 to 0.04 m from the map, whose cells are 0.1 m.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.core.report.tables import table
from fewstep.lidar.artefacts import find_network
from fewstep.lidar.completion import Completer, CompletionConfig
from fewstep.lidar.data.crops import ground_truth
from fewstep.lidar.data.maps import build_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.metrics.scores import Scores
from fewstep.lidar.models.files import load_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.simulator.config import SensorConfig, StreetConfig
from fewstep.lidar.simulator.sequence import simulate_sequence

SEED = 5000
Scene = tuple[np.ndarray, np.ndarray]


def scenes(drives: int, per_drive: int, max_range: float) -> list[Scene]:
    """Return scans with the truth around them, of drives simulated here."""
    found: list[Scene] = []
    street, sensor = StreetConfig(speed=12.0), SensorConfig(azimuth_step=0.36)
    for number in range(drives):
        with tempfile.TemporaryDirectory() as folder:
            drive = open_sequence(simulate_sequence(Path(folder), "00", 40, SEED + number, street, sensor))
            points = build_map(drive)
            for i in np.linspace(8, 32, per_drive).round().astype(int):
                scan = drive.scan(int(i)).xyz
                found.append((scan, ground_truth(points, drive.pose(int(i)), scan, max_range=max_range)))
    return found


def rows_of(
    name: str, completer: Completer | None, data: list[Scene], max_range: float, refiner: Refiner | None = None
) -> list[dict[str, Any]]:
    """Return the numbers of one sampler, and of the same scenes refined."""
    plain, refined = (Scores(emd_points=0), list[float]()), (Scores(emd_points=0), list[float]())
    evaluations = 0
    for scan, truth in data:
        if completer is None:
            plain[0].update(scan[np.linalg.norm(scan, axis=1) < max_range], truth)
            continue
        done = completer(scan)
        plain[0].update(done.points, truth)
        plain[1].append(done.total)
        evaluations = done.evaluations
        if refiner is not None:
            since = time.perf_counter()
            with torch.no_grad():
                more = refiner(torch.from_numpy(done.points)[None])[0].numpy()
            refined[1].append(done.total + time.perf_counter() - since)
            refined[0].update(more, truth)
    steps = completer.steps if completer is not None else ""
    made = [_row(name, steps, evaluations, *plain)]
    return made if refiner is None else [*made, _row(f"{name}, refined", steps, evaluations, *refined)]


def _row(name: str, steps: int | str, evaluations: int, scores: Scores, seconds: list[float]) -> dict[str, Any]:
    found = {one.name: one.mean for one in scores.rows()}
    return {
        "sampler": name,
        "steps": steps,
        "evaluations": evaluations or "",
        "CD, m": round(found["chamfer_m"], 4),
        "JSD BEV": round(found["jsd_bev"], 4),
        "IoU 0.5": round(found["iou_0.5m"], 2),
        "IoU 0.2": round(found["iou_0.2m"], 2),
        "IoU 0.1": round(found["iou_0.1m"], 2),
        "s/scan": round(statistics.median(seconds), 3) if seconds else "",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="streets")
    parser.add_argument("--teacher-steps", default="50,8,1")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the teacher")
    parser.add_argument("--students", nargs="*", default=["streets-student"])
    parser.add_argument("--steps", default="8,4,2,1")
    parser.add_argument("--refiner", default="")
    parser.add_argument("--drives", type=int, default=2)
    parser.add_argument("--per-drive", type=int, default=2)
    parser.add_argument("--points", type=int, default=90_000)
    parser.add_argument("--max-range", type=float, default=35.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = scenes(args.drives, args.per_drive, args.max_range)
    truth = sum(len(scene) for _, scene in data) / len(data)
    print(f"{len(data)} scans, {truth:,.0f} points of truth each, {args.points:,} points made, {args.threads} threads")
    rows = rows_of("the scan itself", None, data, args.max_range)
    refiner = load_refiner(find_network(args.refiner, "refiner")) if args.refiner else None
    plan = [(args.teacher, int(k)) for k in args.teacher_steps.split(",")]
    plan += [(name, int(k)) for name in args.students for k in args.steps.split(",")]
    for name, steps in plan:
        scale = args.guidance if name == args.teacher else 1.0
        config = CompletionConfig(steps=steps, points=args.points, max_range=args.max_range, guidance_scale=scale)
        made = rows_of(Path(name).name, Completer(name, config), data, args.max_range, refiner)
        rows += made
        for one in made:
            print("  ".join(f"{key} {value}" for key, value in one.items()), flush=True)
    print(f"\n{table(rows)}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
