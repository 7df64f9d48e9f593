"""The command that prepares data: latents of pictures or clips and embeddings of captions, once for many runs."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.core.data.captioned import Captioned, open_data
from fewstep.core.data.prepare import prepare
from fewstep.core.data.samples import Samples
from fewstep.core.data.synthetic import Sampling
from fewstep.core.data.writing import write_text
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.tensors import find_device
from fewstep.core.training.progress import Stream, clock

SECONDS = 5.0  # between lines where no person looks
SHOWN = 20  # refused files, at the end


class Count:
    """Shows how far something is: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._bar: Any = None
        self._what, self._first, self._began, self._said = "", 0, 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done."""
        now = time.monotonic()
        if what != self._what:
            self.close()
            self._what, self._first, self._began, self._said = what, done, now, 0.0
            if self.stream.isatty():
                from tqdm import tqdm

                self._bar = tqdm(total=total, initial=done, desc=what, file=self.stream, dynamic_ncols=True)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif done == total or now - self._said >= SECONDS:
            made = done - self._first
            left = clock((now - self._began) / made * (total - done)) if made else "?"
            self._said = now
            self.stream.write(f"{what}: {done}/{total}  ETA {left}\n")
            self.stream.flush()

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def prepare_data(args: Namespace) -> None:
    """Run ``fewstep image prepare``."""

    def find(teacher: Teacher) -> Captioned | list[str]:
        data = open_data(args.data, args.column, args.max_bad_share)
        still = teacher.family.media == "image"
        check(still or isinstance(data, list), f"{args.data}: pictures for a model of videos; give prompts, or videos")
        return data

    run_preparation(args, find)


def find_teacher(args: Namespace) -> Teacher:
    """Return the teacher that the arguments name, at the size they give."""
    size = Size(*args.size) if args.size else None
    return Teacher.find(args.teacher, size=size, revision=args.revision, variant=args.variant, negative=args.negative)


def run_preparation(args: Namespace, find: Callable[[Teacher], Samples | Captioned | list[str]]) -> None:
    """Prepare what ``find`` makes of the arguments for a teacher; say what it takes and what was refused."""
    teacher = find_teacher(args)
    sampling = _sampling(args, teacher)
    data = find(teacher)
    check(
        args.size is None or sampling is not None or not isinstance(data, list),
        f"--size: {args.data} has no pictures; leave it out, or give --sample-steps",
    )
    check(isinstance(data, list) or sampling is None, f"--sample-steps: {args.data} has pictures; give prompts")
    if args.list_refused:
        check(
            not isinstance(data, list), f"--list-refused: {args.data} has no files that could be refused; leave it out"
        )
        check(not args.dry_run, "--list-refused: a dry run reads one sample only; leave one of the two out")
    out = args.out or Path("prepared") / default_name(args.data, args.teacher)
    count = Count(sys.stderr)
    try:
        cost = prepare(
            teacher,
            data,
            out,
            sampling=sampling,
            samples_per_shard=args.samples_per_shard,
            dtype=args.dtype,
            device=find_device(args.device),
            batch=args.batch,
            progress=count,
            dry_run=args.dry_run,
        )
    except TrainingError:
        _list_refused(args.list_refused, data)
        raise
    finally:
        count.close()
    _list_refused(args.list_refused, data)
    sys.stdout.write(f"{out}: {cost}\n")
    if cost.refused:
        sys.stdout.write(f"refused: {len(cost.refused)} of {cost.files} files\n")
        sys.stdout.writelines(f"  {why}\n" for why in cost.refused[:SHOWN])
        if len(cost.refused) > SHOWN:
            sys.stdout.write(f"  and {len(cost.refused) - SHOWN} more, which --list-refused FILE names\n")


def _list_refused(file: Path | None, data: Samples | Captioned | list[str]) -> None:
    """Write one line for every file that could not be read."""
    if file is None or isinstance(data, list):
        return
    try:
        write_text(file, "".join(f"{why}\n" for _, why in sorted(data.bad.refused.items())))
    except OSError as error:
        raise UserError(f"--list-refused {file}: cannot be written ({error.strerror}); give another file") from error


def _sampling(args: Namespace, teacher: Teacher) -> Sampling | None:
    """Return how the teacher is to sample, None when it is not; a distilled guidance is told to the model."""
    if args.sample_steps is None:
        check(args.guidance_scale == 1, "--guidance-scale belongs to --sample-steps")
        check(args.keys is None, "--keys belongs to --sample-steps: the teacher's trajectories are what states are of")
        return None
    keys = args.keys or 0
    if teacher.family.guidance_distilled:
        teacher.guidance = args.guidance_scale
        return Sampling(args.sample_steps, seed=args.seed, keys=keys)
    return Sampling(args.sample_steps, args.guidance_scale, args.seed, keys)


def default_name(data: str, teacher: str) -> str:
    """Return a folder's name made of those of the data and the teacher."""
    names = (Path(data).name.split(".")[0], teacher.rstrip("/").split("/")[-1])
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(names)).strip("-.")
