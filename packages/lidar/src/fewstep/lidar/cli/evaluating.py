"""`fewstep lidar evaluate`: completions of a sequence measured against its map."""

from __future__ import annotations

import json
import platform
import tempfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.core.data.writing import write_text
from fewstep.core.errors import UserError, check
from fewstep.core.report.tables import table
from fewstep.lidar.cli.completing import completer_of, each_scan, raise_for
from fewstep.lidar.clouds import Cloud
from fewstep.lidar.data.crops import ground_truth
from fewstep.lidar.data.maps import load_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.metrics.scores import PROTOCOL, Scores

NOTHING = "scan"  # the model that completes nothing: what the scan itself scores


def evaluate(args: Namespace) -> None:
    """Complete scans of a sequence, score them, print the table and write it as JSON.

    Raises UserError for a sequence without map or poses, TrainingError after the table when scans had to be skipped.
    """
    sequence = open_sequence(args.sequence, args.layout, args.fields)
    points = load_map(args.map or sequence.folder)
    sequence.pose(0)  # now, and not after the network has been loaded
    if args.json:
        _can_write(args.json)
    chosen = list(range(len(sequence))[:: args.every])[: args.scans]
    scores, seconds = Scores(emd_points=args.emd_points, legacy=args.legacy), defaultdict[str, list[float]](list)
    completer = None if args.model == NOTHING else completer_of(args)
    evaluations = 0

    def work(i: int, scan: Cloud) -> None:
        nonlocal evaluations
        truth = ground_truth(points, sequence.pose(i), scan.xyz, max_range=args.max_range)
        check(len(truth) > 0, "nothing of the map lies in the scan's view")
        if completer is None:
            near = np.linalg.norm(scan.xyz, axis=1) < args.max_range
            scores.update(scan.xyz[near], truth)
            return
        done = completer(scan.xyz)
        scores.update(done.points, truth)
        evaluations = done.evaluations
        for stage, took in {**done.seconds, "all": done.total}.items():
            seconds[stage].append(took)

    bad = each_scan(chosen, sequence, args.drop_invalid, work)
    if not scores.scans:
        raise UserError(f"{args.sequence}: no scan could be scored: {bad[0] if bad else 'none chosen'}")
    timing = {stage: float(np.median(took[1:] or took)) for stage, took in seconds.items()}  # the first one warms up
    report(args, scores, timing, evaluations, completer.about() if completer else "the scan itself")
    raise_for(bad, len(chosen))


def report(args: Namespace, scores: Scores, timing: dict[str, float], evaluations: int, about: str) -> None:
    """Print the numbers with their protocol, and write them where that is asked for."""
    rows = [
        {"number": row.name, "mean": row.mean, "std": "" if row.std is None else f"{row.std:.4g}", "better": row.better}
        for row in scores.rows()
    ]
    number = len(scores.scans)
    print(f"{about}\n{number} scan{'s' * (number > 1)} of {args.sequence}\n\n{table(rows)}")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if timing:
        stages = ", ".join(f"{stage} {took:.3f}" for stage, took in timing.items() if stage != "all")
        print(f"\nseconds per scan, median without the first: {timing['all']:.3f} ({stages}) on {_machine(device)}")
        print(f"network evaluations per scan: {evaluations}")
    print(f"\n{PROTOCOL}")
    if args.json:
        result: dict[str, Any] = scores.table()
        result |= {"about": about, "sequence": str(args.sequence), "model": args.model, "every": args.every}
        result |= {"seconds": timing, "evaluations": evaluations, "machine": _machine(device)}
        result["per_scan"] = [dict(scan) for scan in scores.scans]
        _write(args.json, json.dumps(result, indent=2) + "\n")


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of a {platform.machine()} CPU"


def _can_write(path: Path) -> None:
    """Raise UserError when a file cannot be written: now, and not after hours of work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from error
