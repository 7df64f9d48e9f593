"""Prepares data once for many runs: captions through the text encoders, pictures through the autoencoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.data.cache import (
    INDEX,
    LATENTS,
    SAMPLES,
    CacheWriter,
    Index,
    bytes_per_row,
    check_room,
    spec_of,
)
from fewstep.core.data.captioned import Captioned, digest_of
from fewstep.core.data.damage import Damaged
from fewstep.core.data.prepared import fingerprint, origin_of
from fewstep.core.data.source import GIB, crop_to, unique
from fewstep.core.data.synthetic import Sampling, write_samples
from fewstep.core.errors import UserError, check
from fewstep.core.models.loading import DTYPES, DtypeName, Teacher

Told = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and of how many."""
HEADERS = 4096  # bytes around the tensors of a shard, roughly


@dataclass(frozen=True)
class Cost:
    """What prepared data takes: samples of a ``kind``, different captions, bytes on the disk.

    ``evaluations``: of the teacher's network, where it samples; guided ones count twice.
    """

    samples: int
    texts: int
    kind: str
    bytes: int
    evaluations: int = 0

    def __str__(self) -> str:
        """Return the cost in words."""
        what = f"{self.samples} {self.kind}, {self.texts} different captions"
        runs = f", {self.evaluations} evaluations of the network" if self.evaluations else ""
        return f"{what}: {in_units(self.bytes)} on the disk{runs}"


def in_units(size: int) -> str:
    """Return a number of bytes as people write it."""
    for unit, least in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"


def prepare(
    teacher: Teacher,
    data: Captioned | Sequence[str],
    out: Path,
    *,
    sampling: Sampling | None = None,
    samples_per_shard: int = 512,
    dtype: DtypeName = "fp32",
    device: torch.device | str = "cpu",
    batch: int = 8,
    progress: Told = lambda what, done, total: None,
    dry_run: bool = False,
) -> Cost:
    """Write captioned pictures (centre crops at the teacher's size), or only prompts, as a folder ``out``; go on with
    one that was begun. Return what it takes; ``dry_run`` writes nothing.

    ``sampling``: make latents of prompts by letting the teacher sample them, or whole trajectories. Networks compute,
    and their results are kept, in ``dtype``. ``batch``: pictures encoded, or samples made, at a time. Raises UserError
    for data, a size or a folder that will not do, TrainingError for too many damaged pictures, numbers that are not
    finite, or a full disk; what is written by then is gone on with.
    """
    check(samples_per_shard >= 1 and batch >= 1, "samples per shard and batch must be at least 1")
    pictures = data if isinstance(data, Captioned) else None
    captions = [pictures.caption(i) for i in range(len(pictures))] if pictures is not None else list(_prompts(data))
    check(bool(captions), "no samples to prepare: give pictures or prompts")
    texts, rows = unique(captions)
    check(sampling is None or pictures is None, "the teacher samples for prompts only: these data have pictures")
    made = pictures.identity if pictures is not None else _made_by(teacher, sampling)
    latents = pictures is not None or sampling is not None
    origin = origin_of(teacher, latents=latents, dtype=dtype, data=digest_of([*captions, made]))
    if sampling is not None and sampling.keys:
        origin = replace(
            origin, sampled=sampling.record(teacher, fingerprint(teacher.folder, [teacher.family.network]))
        )
    index = Index(origin, len(rows), len(texts), samples_per_shard)
    if not (out / INDEX).is_file():
        check_room(out, index)
    shape = teacher.shape if latents else ()  # a size the teacher cannot take is said now
    kind = "pictures" if pictures is not None else "prompts" if sampling is None else sampling.kind
    runs = 0 if sampling is None else len(rows) * sampling.evaluations
    if dry_run:
        return replace(_cost(teacher, index, texts, shape, dtype, device, kind), evaluations=runs)
    _check_disk(out, index, shape, dtype)
    writer = CacheWriter(out, origin, texts, rows, samples_per_shard)
    _write_texts(teacher, writer, texts, dtype, device, progress)
    if pictures is not None:
        _write_latents(teacher, writer, pictures, dtype, device, batch, progress)
    elif sampling is not None:
        write_samples(teacher, writer, rows, sampling, DTYPES[dtype], device, batch, progress)
    writer.finish()
    written = sum(size for size, _ in writer.index.files.values())
    return Cost(len(rows), len(texts), kind, written, runs)


def _made_by(teacher: Teacher, sampling: Sampling | None) -> str:
    """Return a digest of what makes the latents of prompts: nothing, or the teacher's network and its settings."""
    return "" if sampling is None else f"{sampling} {fingerprint(teacher.folder, [teacher.family.network])}"


def _prompts(data: Captioned | Sequence[str]) -> Sequence[str]:
    if isinstance(data, Captioned):
        raise TypeError("captioned pictures are no list of prompts")
    return data


def _cost(
    teacher: Teacher,
    index: Index,
    texts: Sequence[str],
    shape: Sequence[int],
    dtype: DtypeName,
    device: torch.device | str,
    kind: str,
) -> Cost:
    """Encode one caption, to know what each takes."""
    found = teacher.encode(texts[:1], device, DTYPES[dtype])
    per_text = bytes_per_row(spec_of(found.cond)) + len(texts[0].encode())
    total = index.texts * per_text + index.samples * 8 + _latent_bytes(index, shape, dtype)
    shards = len(index.shards("text")) + len(index.shards("latents"))
    return Cost(index.samples, index.texts, kind, total + (shards + 1) * HEADERS)


def _latent_bytes(index: Index, shape: Sequence[int], dtype: DtypeName) -> int:
    if index.origin.vae is None:
        return 0
    states = 1 if index.origin.sampled is None else len(index.origin.sampled.keys)
    return index.samples * (states * torch.Size(shape).numel() * DTYPES[dtype].itemsize + 8)


def _check_disk(out: Path, index: Index, shape: Sequence[int], dtype: DtypeName) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free, least = shutil.disk_usage(there).free, _latent_bytes(index, shape, dtype)
    if not (out / INDEX).is_file() and least > free:
        raise UserError(f"{out}: latents take {least / GIB:.1f} GiB and {free / GIB:.1f} are free: give another --out")


def _write_texts(
    teacher: Teacher,
    writer: CacheWriter,
    texts: Sequence[str],
    dtype: DtypeName,
    device: torch.device | str,
    progress: Told,
) -> None:
    missing = writer.missing("text")
    if not missing:
        return
    encode = teacher.text_encoder(device, DTYPES[dtype])
    for name, start, stop in missing:

        def done(count: int, start: int = start) -> None:
            progress("captions", start + count, len(texts))

        # every shard is encoded from its own first caption on, so that it has the same bits whenever it is made
        found = encode(texts[start:stop], done)
        if start == 0 and found.null is not None:
            writer.write_null(found.null)
        writer.write("text", name, found.cond)


def _write_latents(
    teacher: Teacher,
    writer: CacheWriter,
    pictures: Captioned,
    dtype: DtypeName,
    device: torch.device | str,
    batch: int,
    progress: Told,
) -> None:
    missing = writer.missing("latents")
    if not missing:
        return
    codec = teacher.vae(DTYPES[dtype]).to(device)
    for name, start, stop in missing:
        samples: list[int] = []
        latents = [torch.empty(0, *teacher.shape, dtype=DTYPES[dtype])]
        for first in range(start, stop, batch):
            shown, crops = _crops(pictures, range(first, min(first + batch, stop)), teacher)
            samples += shown
            if shown:
                latents.append(codec.encode(torch.stack(crops) * 2 - 1).to(DTYPES[dtype]).cpu())
            progress("pictures", min(first + batch, stop), len(pictures))
        writer.write("latents", name, {LATENTS: torch.cat(latents), SAMPLES: torch.tensor(samples, dtype=torch.int64)})


def _crops(pictures: Captioned, indices: Sequence[int], teacher: Teacher) -> tuple[list[int], list[Tensor]]:
    shown, crops = [], []
    for index in indices:
        try:
            picture = pictures.picture(index)
        except Damaged:
            continue
        shown.append(index)
        crops.append(crop_to(picture, teacher.size, (0.5, 0.5)))
    return shown, crops
