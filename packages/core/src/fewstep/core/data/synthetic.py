"""Latents the teacher samples itself: clean samples for methods that need some, where there are prompts only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load_file

from fewstep.core.data.cache import LATENTS, NULL, SAMPLES, CacheWriter
from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.guidance import Guided
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample


@dataclass(frozen=True)
class Sampling:
    """How the teacher samples: DDIM in ``steps``, under ``guidance_scale``, from the noise of ``seed``."""

    steps: int
    guidance_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"the teacher's steps must be at least 1, got {self.steps}")


def write_samples(
    teacher: Teacher,
    writer: CacheWriter,
    rows: Sequence[int],
    sampling: Sampling,
    dtype: torch.dtype,
    device: torch.device | str,
    batch: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write the latents still missing, one sample for every prompt in ``rows``; texts must be written before.

    The network and the latents are in ``dtype``. A sample depends on its place and the seed. Raises UserError for
    guidance of a teacher that has no unconditional prediction.
    """
    missing = writer.missing("latents")
    if not missing:
        return
    stored = writer.folder / NULL
    denoiser = teacher.denoiser(load_file(stored) if stored.is_file() else None, dtype)
    denoiser.backbone.to(device).eval()
    guided = Guided(denoiser, sampling.guidance_scale)
    conditions = _stored_conditions(writer)
    for name, start, stop in missing:
        parts = []
        for first in range(start, stop, batch):
            ids = tuple(range(first, min(first + batch, stop)))
            cond = {key: value.to(device) for key, value in conditions([rows[i] for i in ids]).items()}
            rng = Rng(sampling.seed, 0, ids, "synthetic", device)
            half = dtype != torch.float32
            with torch.no_grad(), torch.autocast(torch.device(device).type, dtype) if half else nullcontext():
                parts.append(teacher_sample(guided, teacher.shape, cond, rng, steps=sampling.steps).to(dtype).cpu())
            progress("samples", ids[-1] + 1, len(rows))
        samples = torch.arange(start, stop, dtype=torch.int64)
        writer.write("latents", name, {LATENTS: torch.cat(parts), SAMPLES: samples})


def _stored_conditions(writer: CacheWriter) -> Callable[[Sequence[int]], Cond]:
    """Return a way to read the conditions of captions from the shards a writer has written."""
    shards = writer.index.shards("text")

    @lru_cache(maxsize=2)
    def shard(number: int) -> Cond:
        return load_file(writer.folder / shards[number][0])

    def conditions(rows: Sequence[int]) -> Cond:
        places = [divmod(row, writer.index.per_shard) for row in rows]
        names = shard(places[0][0])
        return {name: torch.stack([shard(number)[name][row] for number, row in places]) for name in names}

    return conditions
