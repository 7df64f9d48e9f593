"""Prepared targets: crops, the noise each starts from, and what a teacher's sampler makes of it, kept in a folder.

A sampler of many steps in every iteration takes most of a training's time. Here it runs once for each of a fixed set
of crops, in shards: ``targets-N.safetensors`` with ``x0``, ``noise``, ``target`` and the condition's entries.
``index.json`` says what made them, and sizes and SHA-256 of the shards; it is written again after each, so that a
killed preparation goes on where it was. What goes into the sampler is rounded to the stored type first: the target is
that of the numbers in the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.core.data.epochs import epoch_indices
from fewstep.core.data.writing import sha256, write_tensors, write_text
from fewstep.core.denoiser import NetworkDenoiser
from fewstep.core.domain import DataSource
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.guidance import Guided
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.training.state import fingerprint
from fewstep.restoration.recipes.rollout import NOISE, TARGET, TeacherConfig, rollout, start_at_noise

FORMAT = 1
INDEX, CLEAN = "index.json", "x0"
MAX_INDEX = 64 * 2**20
MAX_SAMPLES, MAX_SHARDS = 2**32, 1_000_000
AGAIN = "prepare the targets again into a new folder"
Stored = Literal["float16", "float32"]
DTYPES: Mapping[Stored, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class TargetOrigin:
    """What made a set: fingerprints of the teacher and its process, how it sampled, the seed, the stored type."""

    teacher: str
    process: str
    sampler: str
    guidance_scale: float
    seed: int
    dtype: Stored

    def about(self) -> str:
        """Return the sampler in words."""
        guided = f", guidance scale {self.guidance_scale:g}" if self.guidance_scale != 1 else ""
        return f"{self.sampler}{guided}"


@dataclass
class TargetIndex:
    """The content of ``index.json``; ``files``: size and SHA-256 of the shards that are done."""

    origin: TargetOrigin
    samples: int
    per_shard: int
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def shards(self) -> list[tuple[str, int, int]]:
        """Return the file of each shard and the range of samples in it."""
        starts = range(0, self.samples, self.per_shard)
        return [
            (f"targets-{i:05d}.safetensors", start, min(start + self.per_shard, self.samples))
            for i, start in enumerate(starts)
        ]

    def missing(self) -> list[tuple[str, int, int]]:
        """Return the shards still to write."""
        return [shard for shard in self.shards() if shard[0] not in self.files]

    def write(self, folder: Path) -> None:
        """Write ``index.json``."""
        write_text(folder / INDEX, json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n")


def origin_of(teacher: NetworkDenoiser, config: TeacherConfig, seed: int, dtype: Stored) -> TargetOrigin:
    """Return what a set of this teacher's targets is made with; UserError for targets it does not make."""
    check(
        config.target in ("deterministic", "ancestral"),
        f"targets of kind '{config.target}' are not made by sampling: prepare deterministic or ancestral ones",
    )
    return TargetOrigin(
        teacher=fingerprint(teacher.backbone),
        process=process_fingerprint(teacher.process),
        sampler=f"{config.target}, {config.steps(teacher.process)} steps",
        guidance_scale=float(config.guidance_scale),
        seed=seed,
        dtype=dtype,
    )


def process_fingerprint(process: Process) -> str:
    """Return a hash of a process's name and its coefficients over the clock, to ten digits."""
    t = process.unit_to_time(torch.linspace(0, 1, 17, dtype=torch.float64))
    numbers = [[f"{value:.10g}" for value in part.tolist()] for part in (t, *process.coefficients(t))]
    return hashlib.sha256(json.dumps([type(process).__name__, numbers]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How many targets are made and how; ``batch``: crops sampled at a time. They are a function of the ``seed``."""

    samples: int
    teacher: TeacherConfig = TeacherConfig()
    seed: int = 0
    batch: int = 16
    per_shard: int = 256
    dtype: Stored = "float16"

    def __post_init__(self) -> None:
        check(1 <= self.samples <= MAX_SAMPLES, f"samples must lie in 1..{MAX_SAMPLES}, got {self.samples}")
        check(min(self.batch, self.per_shard) >= 1, "batch and per_shard must be at least 1")


def prepare_targets(
    teacher: NetworkDenoiser,
    source: DataSource,
    folder: Path,
    how: Preparation,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TargetIndex:
    """Write targets of crops of ``source`` into a folder, or go on with what was begun there; return its index.

    Sample i is that of id i at step 0: the same whatever the batch. Raises UserError for a folder with something else
    in it, TrainingError when the teacher's samples are not finite.
    """
    index = _begin(
        folder, TargetIndex(origin_of(teacher, how.teacher, how.seed, how.dtype), how.samples, how.per_shard)
    )
    teacher.backbone.to(device).eval()
    for name, start, stop in index.missing():
        pieces = []
        for first in range(start, stop, how.batch):
            ids = tuple(range(first, min(first + how.batch, stop)))
            pieces.append(_make(teacher, source, Rng(how.seed, 0, ids, "targets", device, how.samples), how))
            progress(ids[-1] + 1, how.samples)
        tensors = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
        bad = [key for key, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
        if bad:
            raise TrainingError(f"{folder / name}: '{bad[0]}' is not finite: another teacher, or float32 targets?")
        write_tensors(folder / name, tensors)
        index.files[name] = ((folder / name).stat().st_size, sha256(folder / name))
        index.write(folder)
    return index


def _begin(folder: Path, wanted: TargetIndex) -> TargetIndex:
    if (folder / INDEX).is_file():
        found = read_index(folder)
        same = (found.origin, found.samples, found.per_shard) == (wanted.origin, wanted.samples, wanted.per_shard)
        check(same, f"{folder}: holds other targets ({found.samples}, {found.origin.about()}): give another folder")
        return found
    check(not folder.exists() or folder.is_dir(), f"{folder}: is a file: give another folder")
    check(not folder.is_dir() or not any(folder.iterdir()), f"{folder}: holds something else: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): give another folder") from error
    wanted.write(folder)
    return wanted


@torch.no_grad()
def _make(teacher: NetworkDenoiser, source: DataSource, rng: Rng, how: Preparation) -> dict[str, Tensor]:
    """Return stored tensors of the samples of ``rng``."""
    batch = source.batch(rng.fork("data"), rng.device)
    x0, stored = batch.clean_samples("prepare-targets"), DTYPES[how.dtype]
    for name in (CLEAN, NOISE, TARGET):
        check(name not in batch.cond, f"the data has an entry '{name}' already: prepare targets of plain data")

    def rounded(value: Tensor) -> Tensor:
        return value.to(stored) if value.is_floating_point() else value

    noise = rounded(rng.normal("noise", tuple(x0.shape[1:])))
    kept = {**{name: rounded(value) for name, value in batch.cond.items()}, NOISE: noise}
    used = {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}
    actors = Actors({"teacher": teacher}, teacher.process, tuple(x0.shape[1:]))
    start = start_at_noise(actors, Batch(batch.size, used, x0, rng.device), rng)
    guided = Guided(teacher, how.teacher.guidance_scale)
    steps, ancestral = how.teacher.steps(teacher.process), how.teacher.target == "ancestral"
    made = rollout(guided, start, steps, rng.fork("rollout"), ancestral=ancestral)
    return {name: value.cpu() for name, value in (kept | {CLEAN: rounded(x0), TARGET: rounded(made)}).items()}


def read_index(folder: Path) -> TargetIndex:
    """Return the index of a folder of targets, complete or not; UserError when it has none that can be read."""
    path = folder / INDEX
    check(path.is_file(), f"{folder}: no {INDEX} there: give a folder that `fewstep restoration prepare-targets` wrote")
    check(path.stat().st_size <= MAX_INDEX, f"{path}: too large to be an index: {AGAIN}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check(found["format"] == FORMAT, f"{path}: format {found['format']}, and this version reads {FORMAT}: {AGAIN}")
        return _index(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not the index of prepared targets: {AGAIN}") from error


def _index(found: Mapping[str, Any]) -> TargetIndex:
    made = TargetIndex(
        origin=TargetOrigin(**found["origin"]),
        samples=int(found["samples"]),
        per_shard=int(found["per_shard"]),
        files={str(name): (int(size), str(digest)) for name, (size, digest) in found["files"].items()},
    )
    texts = (made.origin.teacher, made.origin.process, made.origin.sampler)
    if not all(isinstance(text, str) for text in texts) or made.origin.dtype not in DTYPES:
        raise ValueError
    if not isinstance(made.origin.guidance_scale, float):
        raise ValueError
    if not 1 <= made.samples <= MAX_SAMPLES or made.per_shard < 1 or made.samples // made.per_shard > MAX_SHARDS:
        raise ValueError
    if made.files.keys() - {name for name, _, _ in made.shards()}:
        raise ValueError
    return made


class TargetSource:
    """Batches of a complete folder of targets, in epochs: clean samples, conditions, ``noise`` and ``target``.

    Rows are read when they are asked for. UserError for an incomplete or damaged folder and, with a teacher, for
    targets of another network or another process.
    """

    def __init__(self, folder: str | Path, teacher: NetworkDenoiser | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.index = read_index(self.folder)
        left = len(self.index.missing())
        check(left == 0, f"{self.folder}: {left} shards are missing: prepare the targets again to go on from there")
        for name, (size, _) in self.index.files.items():
            path = self.folder / name
            there = path.stat().st_size if path.is_file() else 0
            check(there == size, f"{path}: {there} bytes instead of {size}: copy the folder again")
        if teacher is not None:
            self._check_teacher(teacher)
        self._names = [name for name, _, _ in self.index.shards()]

    def _check_teacher(self, teacher: NetworkDenoiser) -> None:
        origin = self.index.origin
        for what, found, wanted in (
            ("noise schedule", origin.process, process_fingerprint(teacher.process)),
            ("teacher", origin.teacher, fingerprint(teacher.backbone)),
        ):
            check(found == wanted, f"{self.folder}: these targets were made with another {what}: {AGAIN}")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.index.samples

    def about(self) -> str:
        """Return what this is, for a report."""
        return f"{self.index.samples} prepared targets ({self.index.origin.about()})"

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return a batch, float32."""
        rows = [self._row(sample) for sample in epoch_indices(rng, len(self))]
        names = rows[0].keys()
        try:
            tensors = {name: torch.stack([row[name] for row in rows]) for name in names}
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{self.folder}: its shards hold different tensors: {AGAIN}") from error
        wide = {name: (v.float() if v.is_floating_point() else v).to(device) for name, v in tensors.items()}
        x0 = wide.pop(CLEAN)
        return Batch(len(rows), wide, x0, device)

    def verify(self) -> None:
        """Compare the SHA-256 of every shard with the index; UserError naming the first that differs."""
        for name, (_, digest) in sorted(self.index.files.items()):
            check(sha256(self.folder / name) == digest, f"{self.folder / name}: damaged, its SHA-256 differs: {AGAIN}")

    def _row(self, sample: int) -> dict[str, Tensor]:
        shard, row = divmod(sample, self.index.per_shard)
        path = self.folder / self._names[shard]
        try:
            with safe_open(str(path), framework="pt") as file:
                found = {name: file.get_slice(name)[row] for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError, IndexError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path}: cannot be read ({line}): {AGAIN}") from error
        check({CLEAN, NOISE, TARGET} <= found.keys(), f"{path}: holds no targets: {AGAIN}")
        return found
