"""The command that prepares data: latents of pictures and embeddings of captions, once for many runs."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from fewstep.core.data.captioned import open_data
from fewstep.core.data.prepare import prepare
from fewstep.core.data.synthetic import Sampling
from fewstep.core.errors import check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import Teacher
from fewstep.core.tensors import find_device
from fewstep.core.training.progress import Stream, clock

SECONDS = 5.0  # between lines where no person looks


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
    size = Size(*args.size) if args.size else None
    options = {"revision": args.revision, "variant": args.variant, "negative": args.negative}
    teacher = Teacher.find(args.teacher, size=size, **options)
    sampling = _sampling(args, teacher)
    data = open_data(args.data, args.column, args.max_bad_share)
    check(
        args.size is None or sampling is not None or not isinstance(data, list),
        f"--size: {args.data} has no pictures; leave it out, or give --sample-steps",
    )
    check(isinstance(data, list) or sampling is None, f"--sample-steps: {args.data} has pictures; give prompts")
    still = teacher.family.media == "image"
    check(still or isinstance(data, list), f"{args.data}: pictures for a model of videos; give prompts")
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
    finally:
        count.close()
    sys.stdout.write(f"{out}: {cost}\n")


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
