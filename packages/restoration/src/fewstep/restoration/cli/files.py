"""Which files a command reads and writes: files and folders given together, hierarchies kept, nothing overwritten.

Everything is found out and refused before work begins, from names and headers alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fewstep.core.data.reading import SUFFIXES
from fewstep.core.data.writing import write_text
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.restoration.pictures.reading import Header, read_header
from fewstep.restoration.pictures.writing import FORMATS, check_holds, holds

NAMED = 5  # bad files named in the last line
VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})

WRITTEN_VIDEOS = (".mp4", ".mov", ".mkv")


@dataclass(frozen=True)
class Source:
    """A file to read; ``name``: its place below the folder that was given, or its own name."""

    path: Path
    name: Path


@dataclass
class Job:
    """A file to read, those to write (by what they hold), and what became of it."""

    source: Source
    targets: dict[str, Path] = field(default_factory=dict)
    status: str = "waiting"  # then done, skipped (was there) or failed
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def fail(self, error: UserError) -> None:
        """Note why a file failed, naming it."""
        name = str(self.source.path)
        self.status, self.reason = "failed", str(error) if name in str(error) else f"{name}: {error}"


def sources_of(inputs: Sequence[Path], out: Path) -> list[Source]:
    """Return files as given and the images and videos of folders, sorted; hidden ones and those below ``out`` are left.

    Raises UserError for inputs that do not exist, and for folders that hold neither images nor videos.
    """
    found: list[Source] = []
    for given in inputs:
        check(given.exists(), f"{given}: no such file or folder; give images or folders of images")
        if not given.is_dir():
            found.append(Source(given, Path(given.name)))
            continue
        check(not _same(given, out), f"--out {out}: that is the input; choose another folder")
        inside = [source for source in _below(given) if not _is_below(source.path, out)]
        check(bool(inside), f"{given} holds no images; read are {', '.join(sorted(SUFFIXES))}")
        found += inside
    return found


def _below(folder: Path) -> list[Source]:
    try:
        names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        return [
            Source(folder / name, name)
            for name in names
            if name.suffix.lower() in SUFFIXES | VIDEOS
            and not any(part.startswith(".") for part in name.parts)
            and (folder / name).is_file()
        ]
    except PermissionError as error:
        raise UserError(f"{folder}: {error.strerror}, change its permissions or give another folder") from error


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def _is_below(path: Path, folder: Path) -> bool:
    return folder.is_dir() and folder.resolve() in path.resolve().parents


def place_of(
    inputs: Sequence[Path], out: Path | None, ending: str, *, single_file: bool = True
) -> tuple[Path, bool, str]:
    """Return where to write, whether that is the name of one file, and what file names end with before their suffix.

    Without ``out`` a file is written into the current folder and a folder beside it, their names ending with
    ``ending``. UserError where several pictures would go into a file.
    """
    alone = len(inputs) == 1 and not inputs[0].is_dir()
    if out is None:
        if alone:
            return Path(), False, ending
        return Path((inputs[0].resolve().name if len(inputs) == 1 else "pictures") + ending), False, ""
    suffix = out.suffix.lower()
    if single_file and alone and not out.is_dir():
        known = suffix in FORMATS or suffix not in SUFFIXES
        check(known, f"--out {out}: pictures are not written as {suffix}; valid: {', '.join(FORMATS)}")
        if suffix in FORMATS or (suffix in WRITTEN_VIDEOS and is_video(inputs[0])):
            return out, True, ""
    check(not out.is_file(), f"--out {out}: a file; give a folder")
    return out, False, ""


def suffix_for(source: Source, header: Header, ext: str) -> str:
    """Return the suffix to write a picture with; ``auto`` is its own where that holds it, else .png (.tif for CMYK)."""
    if ext != "auto":
        return f".{ext}"
    own = source.name.suffix.lower()
    if holds(own, header.mode, header.bits):
        return own
    return ".tif" if header.mode == "CMYK" else ".png"


def plan_jobs(
    sources: Sequence[Source],
    targets: Callable[[Source, Header], dict[str, Path]],
    *,
    overwrite: bool,
    clip_targets: Callable[[Source], dict[str, Path]] | None = None,
) -> list[Job]:
    """Return a job for every source, already failed where its header is bad, skipped where its files are all there.

    ``targets``: the files to write for a source, by what they hold; ``clip_targets``: for a video, where there is a way
    to read them. Raises UserError when two sources would write the
    same file, or one would write a source.
    """
    jobs = [Job(source) for source in sources]
    inputs = {source.path.resolve() for source in sources}
    writer: dict[Path, Path] = {}
    for job in jobs:
        path = job.source.path
        try:
            if clip_targets is not None and is_video(path):
                job.targets = clip_targets(job.source)
            else:
                check_is_picture(path)
                job.targets = targets(job.source, read_header(path))
        except UserError as error:
            job.fail(error)
            continue
        for target in job.targets.values():
            place = target.resolve()
            check(place not in inputs, f"{target}: that is an input; choose another --out")
            both = f"{writer.get(place)} and {path} would both become {target}"
            check(place not in writer, f"{both}: rename one, or do them one after the other into different folders")
            writer[place] = path
        if not overwrite and all(target.exists() for target in job.targets.values()):
            job.status = "skipped"
    return jobs


def is_video(path: Path) -> bool:
    """Return whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def check_is_picture(path: Path) -> None:
    """Raise UserError for a video."""
    advice = "`upscale` takes videos with fewstep-video installed; or give its frames (ffmpeg -i VIDEO FOLDER/%06d.png)"
    check(not is_video(path), f"{path} is a video: {advice}")


def make_folder(folder: Path) -> None:
    """Make a folder; UserError when that cannot be done, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    check(os.access(folder, os.W_OK), f"{folder}: may not be written to; choose another --out")


def check_target(path: Path, header: Header, size: tuple[int, int]) -> Path:
    """Return ``path``; UserError when its format does not hold the picture at ``size``."""
    check_holds(path, header.mode, header.bits, size)
    return path


def run_jobs(jobs: Sequence[Job], work: Callable[[Job], str], title: str) -> None:
    """Do ``work`` for the jobs that wait, one line each of what it returns; a UserError fails a job and no other."""
    several = len(jobs) > 1  # of a single one the error says it
    for job in jobs:
        if job.status == "failed" and several:
            _say(f"failed: {job.reason}")
    waiting = [job for job in jobs if job.status == "waiting"]
    bar = tqdm(waiting, desc=title, unit="picture", disable=not sys.stderr.isatty(), file=sys.stderr)
    for job in bar:
        start = time.perf_counter()
        try:
            for target in job.targets.values():
                make_folder(target.parent)
            line = work(job)
            job.status = "done"
        except UserError as error:
            job.fail(error)
        except MemoryError:
            job.fail(UserError("out of memory: free some, or cut the picture"))
        job.facts["seconds"] = round(time.perf_counter() - start, 3)
        if job.status == "done":
            _say(f"{line} in {job.facts['seconds']:.1f} s")
        elif several:
            _say(f"failed: {job.reason}")


def _say(line: str) -> None:
    tqdm.write(" ".join(line.split()), file=sys.stderr)


def finish(jobs: Sequence[Job], report: Path | None, settings: dict[str, Any]) -> None:
    """Write the report, say what was done, and raise for what failed, so that the exit code tells.

    UserError where one file was given, TrainingError where others went on.
    """
    if report is not None:
        write_report(report, jobs, settings)
    counts = {status: sum(job.status == status for job in jobs) for status in ("done", "skipped", "failed")}
    there = f", {counts['skipped']} there already (--overwrite makes them again)" if counts["skipped"] else ""
    bad = [job.reason for job in jobs if job.status == "failed"]
    if len(jobs) > 1 or not bad:
        print(f"{counts['done']} of {len(jobs)} pictures written{there}")
    if bad:
        if len(jobs) == 1:
            raise UserError(bad[0])
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise TrainingError(f"{len(bad)} of {len(jobs)} pictures failed: {'; '.join(bad[:NAMED])}{more}")


def write_report(path: Path, jobs: Sequence[Job], settings: dict[str, Any]) -> None:
    """Write settings and what became of every file as JSON; UserError when it cannot be written."""
    files = [
        {
            "input": str(job.source.path),
            "outputs": {name: str(target) for name, target in job.targets.items()},
            "status": job.status,
            **({"reason": job.reason} if job.reason else {}),
            **job.facts,
        }
        for job in jobs
    ]
    try:
        write_text(path, json.dumps({"settings": settings, "files": files}, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror})") from error
