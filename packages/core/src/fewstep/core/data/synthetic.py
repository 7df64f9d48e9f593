"""Latents the teacher samples itself, for prompts without pictures: clean samples, or states of its trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.data.cache import LATENTS, NULL, SAMPLES, CacheWriter
from fewstep.core.data.sampled import Sampled
from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample, teacher_trajectory

SOLVER = "ddim"


@dataclass(frozen=True)
class Sampling:
    """How the teacher samples: DDIM in ``steps``, under ``guidance_scale``, from the noise of ``seed``.

    ``keys``: keep that many states of each trajectory, evenly spaced from the noise on, and the clean one (0: that one
    only).
    """

    steps: int
    guidance_scale: float = 1.0
    seed: int = 0
    keys: int = field(default=0, repr=False)  # a cache of clean samples is known by what is printed

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"the teacher's steps must be at least 1, got {self.steps}")
        check(
            self.keys >= 0 and (self.keys == 0 or self.steps % self.keys == 0),
            f"{self.keys} key states need a number of steps that is a multiple of them, got {self.steps}",
        )

    @property
    def kind(self) -> str:
        """Return what is kept, in words."""
        return f"trajectories of {self.keys + 1} states" if self.keys else "samples of the teacher"

    @property
    def evaluations(self) -> int:
        """Return how many times the network is run for one sample."""
        return self.steps * (1 if self.guidance_scale == 1 else 2)

    def record(self, teacher: Teacher, network: str) -> Sampled | None:
        """Return how trajectories are made, None when none are kept; ``network``: the teacher's fingerprint."""
        if self.keys == 0:
            return None
        told = teacher.family.guidance_distilled
        return Sampled(
            solver=SOLVER,
            grid=time_grid(teacher.reading()[0], self.steps),
            keys=tuple(range(0, self.steps + 1, self.steps // self.keys)),
            guidance_scale=teacher.guidance if told else self.guidance_scale,
            seed=self.seed,
            network=network,
        )


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

    A sample is a clean latent, or with ``sampling.keys`` a row of states, noise first and clean last.

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
                parts.append(_sample(guided, teacher.shape, cond, rng, sampling).to(dtype).cpu())
            progress("samples", ids[-1] + 1, len(rows))
        samples = torch.arange(start, stop, dtype=torch.int64)
        writer.write("latents", name, {LATENTS: torch.cat(parts), SAMPLES: samples})


def _sample(guided: Denoiser, shape: tuple[int, ...], cond: Cond, rng: Rng, sampling: Sampling) -> Tensor:
    if sampling.keys == 0:
        return teacher_sample(guided, shape, cond, rng, steps=sampling.steps, solver=SOLVER)
    grid = time_grid(guided.process, sampling.steps)
    return teacher_trajectory(guided, shape, cond, rng, grid=grid, keys=sampling.keys, solver=SOLVER)


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
