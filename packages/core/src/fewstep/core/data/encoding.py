"""Latents of samples: read ahead of the autoencoder, and written shard by shard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fewstep.core.data.cache import LATENTS, SAMPLES, CacheWriter
from fewstep.core.data.damage import Damaged
from fewstep.core.data.samples import Samples
from fewstep.core.models.loading import Teacher

AHEAD = 1  # batches read while one is encoded

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Read:
    """Which of some samples could be read, their pixels, and the files that could not, with the reasons."""

    samples: list[int]
    pixels: list[Tensor]
    refused: dict[int, str]


def write_latents(
    teacher: Teacher,
    writer: CacheWriter,
    samples: Samples,
    dtype: torch.dtype,
    device: torch.device | str,
    batch: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the latents still missing; what earlier runs refused counts as refused."""
    for number, why in writer.index.refused.items():
        samples.bad.refused.setdefault(int(number), why)
    missing = writer.missing("latents")
    if not missing:
        return
    codec = teacher.vae(dtype).to(device)
    batches = [
        range(first, min(first + batch, stop)) for _, start, stop in missing for first in range(start, stop, batch)
    ]
    reads = ahead(lambda some: read(samples, some), batches)
    for name, start, stop in missing:
        shown: list[int] = []
        refused: dict[int, str] = {}
        latents = [torch.empty(0, *teacher.shape, dtype=dtype)]
        for first in range(start, stop, batch):
            found = next(reads)
            shown += found.samples
            refused |= found.refused
            if found.pixels:
                latents.append(codec.encode(torch.stack(found.pixels)).to(dtype).cpu())
            progress(samples.kind, min(first + batch, stop), len(samples))
        written = {LATENTS: torch.cat(latents), SAMPLES: torch.tensor(shown, dtype=torch.int64)}
        writer.write("latents", name, written, refused)


def read(samples: Samples, indices: Sequence[int]) -> Read:
    """Return what can be read of some samples."""
    found = Read([], [], {})
    for index in indices:
        try:
            pixels = samples.pixels(index)
        except Damaged:
            file = index // samples.per_file
            found.refused[file] = samples.bad.refused[file]
            continue
        found.samples.append(index)
        found.pixels.append(pixels)
    return found


def ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield what ``work`` makes of each item, in their order; while one is in use, a thread makes the next."""
    pool = ThreadPoolExecutor(1)
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def seconds_per_sample(teacher: Teacher, samples: Samples, dtype: torch.dtype, device: torch.device | str) -> float:
    """Return how long one sample takes, measured on the first that can be read; 0 where none can.

    Reading and encoding go on at the same time, so that the slower of them counts; both are done once before.
    """
    index = next((i for i in range(len(samples)) if read(samples, [i]).samples), None)
    if index is None:
        return 0.0
    codec = teacher.vae(dtype).to(device)
    since = time.perf_counter()
    pixels = torch.stack(read(samples, [index]).pixels)
    reading = time.perf_counter() - since
    codec.encode(pixels).cpu()
    since = time.perf_counter()
    codec.encode(pixels).cpu()  # waits for the device
    return max(reading, time.perf_counter() - since)
