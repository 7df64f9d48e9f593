"""`fewstep lidar complete`: a file, a folder or a sequence of scans, one completed cloud for each."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.tensors import find_device
from fewstep.lidar.clouds import Cloud, is_cloud, read_cloud, write_cloud
from fewstep.lidar.completion import Completer, CompletionConfig
from fewstep.lidar.data.sequence import Sequence, open_sequence

NAMED = 5  # bad scans named in the last line
FORMATS = ("ply", "bin", "npy", "pcd")


def completer_of(args: Namespace) -> Completer:
    """Return the completer the options of `complete` and `evaluate` describe."""
    config = CompletionConfig(
        steps=args.steps,
        guidance_scale=args.cond_weight,
        sampler=args.sampler,
        points=args.points,
        max_range=args.max_range,
        seed=args.seed,
        precision=args.precision,
    )
    return Completer(args.model, config, refiner=args.refine or "", device=find_device(args.device))


def complete(args: Namespace) -> None:
    """Complete what the input names; see the module."""
    source: Path = args.input
    check(source.exists(), f"{source}: no such file or folder; give a scan, a folder of scans, or a sequence")
    if source.is_file():
        _one(args, source)
    else:
        _many(args, open_sequence(source, args.layout or _layout(source), args.fields))


def _layout(folder: Path) -> str:
    if (folder / "velodyne").is_dir() or (folder / "sequences").is_dir() or (folder / "dataset").is_dir():
        return "semantickitti"
    return "kitti-raw" if (folder / "velodyne_points").is_dir() else "folder"


def _one(args: Namespace, source: Path) -> None:
    name = open_sequence(source).stem(0)
    out: Path = args.out or Path(f"{name}-complete.{args.format}")
    if out.is_dir() or not out.suffix:
        out = out / f"{name}.{args.format}"
    check(is_cloud(out), f"--out {out}: an unknown kind of file; end it with {', '.join('.' + f for f in FORMATS)}")
    check(not _same(out, source), f"--out {out}: that is the input; choose another name")
    _folder(out.parent)  # now, and not after a minute of work
    scan = read_cloud(source, args.fields, drop_invalid=args.drop_invalid)
    completer = completer_of(args)
    print(completer.about(), file=sys.stderr)
    try:
        done = completer(scan.xyz)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    _write(out, done.points)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in done.seconds.items())
    print(f"{out}: {len(scan):,} points became {len(done.points):,} in {done.total:.1f} s ({stages})")


def _same(a: Path, b: Path) -> bool:
    return a.exists() and a.samefile(b)


def _folder(folder: Path) -> None:
    """Make a folder; UserError when that cannot be done, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    check(os.access(folder, os.W_OK), f"{folder}: may not be written to; choose another --out")


def _write(out: Path, points: np.ndarray) -> None:
    write_cloud(out, Cloud(np.ascontiguousarray(points, np.float32)))


def _many(args: Namespace, sequence: Sequence) -> None:
    out: Path = args.out or Path(f"{sequence.name}-complete")
    check(not out.is_file(), f"--out {out}: a file; a folder of scans is completed into a folder")
    check(not _same(out, sequence.folder), f"--out {out}: that is the input; choose another folder")
    numbers = range(len(sequence))[:: args.every]
    names = Counter(sequence.stem(i) for i in numbers)
    twice = [name for name, times in names.items() if times > 1]
    check(
        not twice, f"{sequence.folder}: several scans are called {', '.join(twice[:NAMED])}; rename them, or move them"
    )
    waiting = [i for i in numbers if args.force or not (out / f"{sequence.stem(i)}.{args.format}").exists()]
    there = len(numbers) - len(waiting)
    if not waiting:
        print(f"{out}: all {there} scans are completed already (--force completes them again)")
        return
    _folder(out)
    completer = completer_of(args)
    print(completer.about(), file=sys.stderr)

    def work(i: int, scan: Cloud) -> None:
        _write(out / f"{sequence.stem(i)}.{args.format}", completer(scan.xyz).points)

    bad = each_scan(waiting, sequence, args.drop_invalid, work)
    made = len(waiting) - len(bad)
    print(f"{out}: {made} scans completed{f', {there} were there already' if there else ''}")
    raise_for(bad, len(numbers))


def each_scan(
    numbers: list[int], sequence: Sequence, drop_invalid: bool, work: Callable[[int, Cloud], None]
) -> list[str]:
    """Do ``work`` for scans with a progress bar; returns a line for each that could not be used."""
    bad: list[str] = []
    for i in tqdm(numbers, desc=sequence.name, unit="scan", disable=not sys.stderr.isatty(), file=sys.stderr):
        try:
            work(i, sequence.scan(i, drop_invalid=drop_invalid))
        except UserError as error:
            line = str(error) if sequence.stem(i) in str(error) else f"{sequence.stem(i)}: {error}"
            bad.append(line)
            tqdm.write(f"skipped {line}", file=sys.stderr)
    return bad


def raise_for(bad: list[str], of: int) -> None:
    """Raise TrainingError naming scans that were skipped, so that the exit code tells; nothing when there are none."""
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise TrainingError(f"{len(bad)} of {of} scans skipped: {'; '.join(bad[:NAMED])}{more}")
