"""`fewstep restoration caption`: a caption beside each picture, to train on; loads no library until it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.core.cli.verbs import positive

if TYPE_CHECKING:
    from fewstep.restoration.captioning import Captioner
    from fewstep.restoration.cli.files import Job

SUFFIX = ".txt"


def caption_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``caption``."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="images, and folders of images")
    parser.add_argument("--model", required=True, metavar="DIR|OWNER/NAME", help="a BLIP or GIT, here or on the hub")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="pictures at a time (8)")
    parser.add_argument("--max-tokens", type=positive, default=40, metavar="N", help="of a caption, at most (40)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--device", default="", help="(cuda where there is one)")


def caption(args: Namespace) -> None:
    """Write NAME.txt beside every picture that has none, or an empty one.

    Raises UserError where nothing could be captioned, TrainingError where some pictures could not.
    """
    jobs = plan_captions(args.inputs, overwrite=args.overwrite)
    waiting = [job for job in jobs if job.status == "waiting"]
    if waiting:
        from fewstep.core.tensors import find_device
        from fewstep.restoration.captioning import Captioner

        captioner = Captioner.load(
            args.model, device=find_device(args.device), precision=args.precision, max_tokens=args.max_tokens
        )
        _run(waiting, captioner, args.batch, several=len(jobs) > 1)
    _finish(jobs)


def plan_captions(inputs: Sequence[Path], *, overwrite: bool) -> list[Job]:
    """Return a job for every picture, skipped where its caption is there; a picture given twice is one.

    Raises UserError for inputs that are missing or hold no pictures, two pictures that would share a caption, and
    folders that may not be written to.
    """
    import os

    from fewstep.core.errors import check
    from fewstep.restoration.cli.files import Job, Source

    jobs: dict[Path, Job] = {}
    for path in _pictures(inputs):
        target = path.with_suffix(SUFFIX)
        check(target != path, f"{path}: is where a caption would go; give an image file")
        place = target.parent.resolve() / target.name
        other = jobs.get(place)
        if other is None:
            jobs[place] = Job(Source(path, Path(path.name)), {"caption": target})
            if not overwrite and _says_something(target):
                jobs[place].status = "skipped"
        else:
            both = f"{other.source.path} and {path} would share {target}"
            check(other.source.path.name == path.name, f"{both}: rename or remove one of them")
    for folder in sorted({place.parent for place, job in jobs.items() if job.status == "waiting"}):
        check(os.access(folder, os.W_OK), f"{folder}: may not be written to, where captions go; copy the pictures")
    return list(jobs.values())


def _pictures(inputs: Sequence[Path]) -> list[Path]:
    from fewstep.core.data.reading import image_files
    from fewstep.core.errors import check

    found: list[Path] = []
    for given in inputs:
        check(given.exists(), f"{given}: no such file or folder; give images or folders of images")
        found += image_files(given) if given.is_dir() else [given]
    return found


def _says_something(target: Path) -> bool:
    from fewstep.core.errors import UserError

    try:
        return bool(target.read_bytes().strip())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{target}: is there and cannot be read ({error.strerror}); remove or rename it") from error


def _run(jobs: Sequence[Job], captioner: Captioner, batch: int, *, several: bool) -> None:
    """Caption pictures, one line each; what goes wrong with one stops no other. Of a single one the error says it."""
    import sys

    from tqdm import tqdm

    from fewstep.core.errors import UserError
    from fewstep.restoration.pictures.reading import read_picture

    with tqdm(
        total=len(jobs), desc="captioning", unit="picture", disable=not sys.stderr.isatty(), file=sys.stderr
    ) as bar:
        for start in range(0, len(jobs), batch):
            group = jobs[start : start + batch]
            ready = []
            for job in group:
                try:
                    ready.append((job, captioner.prepare(read_picture(job.source.path))))
                except UserError as error:
                    job.fail(error)
                except MemoryError:
                    job.fail(UserError("out of memory: free some, or make the picture smaller"))
            texts = captioner([pixels for _, pixels in ready]) if ready else []
            for (job, _), text in zip(ready, texts, strict=True):
                _write(job, text)
            for job in group:
                line = f"failed: {job.reason}" if job.reason else f"{job.targets['caption']}: {job.facts['caption']}"
                if several or not job.reason:
                    tqdm.write(" ".join(line.split()), file=sys.stderr)
            bar.update(len(group))


def _write(job: Job, text: str) -> None:
    from fewstep.core.data.writing import write_text
    from fewstep.core.errors import UserError

    if not text:
        job.fail(UserError("the model says nothing of it: caption it yourself, or give another --model"))
        return
    try:
        write_text(job.targets["caption"], text + "\n")
    except OSError as error:
        job.fail(UserError(f"its caption cannot be written ({error.strerror}): make room, or change permissions"))
        return
    job.status, job.facts["caption"] = "done", text


def _finish(jobs: Sequence[Job]) -> None:
    """Say what was done, and raise for what failed, so that the exit code tells."""
    from fewstep.core.errors import TrainingError, UserError
    from fewstep.restoration.cli.files import NAMED

    counts = {status: sum(job.status == status for job in jobs) for status in ("done", "skipped")}
    there = f", {counts['skipped']} there already (--overwrite makes them again)" if counts["skipped"] else ""
    bad = [job.reason for job in jobs if job.status == "failed"]
    if len(jobs) == 1 and bad:
        raise UserError(bad[0])
    print(f"{counts['done']} of {len(jobs)} pictures captioned{there}")
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        line = f"{len(bad)} of {len(jobs)} pictures failed: {'; '.join(bad[:NAMED])}{more}"
        raise UserError(line) if len(bad) == len(jobs) else TrainingError(line)
