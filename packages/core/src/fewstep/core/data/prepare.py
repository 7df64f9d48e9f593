"""Prepares data once for many runs: captions through the text encoders, pictures and clips through the autoencoder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.core.data.cache import INDEX, CacheWriter, Index, bytes_per_row, check_room, spec_of
from fewstep.core.data.captioned import Captioned, digest_of
from fewstep.core.data.cost import Cost, in_units
from fewstep.core.data.encoding import seconds_per_sample, write_latents
from fewstep.core.data.prepared import fingerprint, origin_of
from fewstep.core.data.samples import CentreCrops, Samples
from fewstep.core.data.source import unique
from fewstep.core.data.synthetic import Sampling, write_samples
from fewstep.core.errors import UserError, check
from fewstep.core.models.loading import DTYPES, ENCODE_BATCH, DtypeName, Teacher

Told = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and of how many."""
HEADERS = 4096  # bytes around the tensors of a shard, roughly


def prepare(
    teacher: Teacher,
    data: Samples | Captioned | Sequence[str],
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
    """Write samples, captioned pictures (centre crops at the teacher's size), or only prompts, as a folder ``out``; go
    on with one that was begun. Return what it takes, and what was refused; ``dry_run`` writes nothing, and measures.

    ``sampling``: make latents of prompts by letting the teacher sample them, or whole trajectories. Networks compute,
    and their results are kept, in ``dtype``. ``batch``: pictures or clips encoded, or samples made, at a time. Raises
    UserError for data, a size or a folder that will not do, TrainingError for too many damaged files, numbers that are
    not finite, or a full disk; what is written by then is gone on with.
    """
    check(samples_per_shard >= 1 and batch >= 1, "samples per shard and batch must be at least 1")
    shown, prompts = _samples(data, teacher)
    captions = prompts if shown is None else [shown.caption(i) for i in range(len(shown))]
    check(bool(captions), "no samples to prepare: give pictures, clips or prompts")
    texts, rows = unique(captions)
    check(sampling is None or shown is None, "the teacher samples for prompts only: these data have pictures")
    made = shown.identity if shown is not None else _made_by(teacher, sampling)
    latents = shown is not None or sampling is not None
    cut = shown.cut if shown is not None else ""
    origin = origin_of(teacher, latents=latents, dtype=dtype, data=digest_of([*captions, made]), cut=cut)
    if sampling is not None and sampling.keys:
        weights = fingerprint(teacher.folder, [teacher.family.network])
        origin = replace(origin, sampled=sampling.record(teacher, weights))
    index = Index(origin, len(rows), len(texts), samples_per_shard)
    if not (out / INDEX).is_file():
        check_room(out, index)
    shape = teacher.shape if latents else ()  # a size the teacher cannot take is said now
    words = "prompts" if sampling is None else sampling.kind
    kind = shown.kind if shown is not None else words
    runs = 0 if sampling is None else len(rows) * sampling.evaluations
    if dry_run:
        return replace(_cost(teacher, index, texts, shape, dtype, device, shown, kind), evaluations=runs)
    _check_disk(out, index, shape, dtype)
    writer = CacheWriter(out, origin, texts, rows, samples_per_shard)
    _write_texts(teacher, writer, texts, dtype, device, progress)
    if shown is not None:
        write_latents(teacher, writer, shown, DTYPES[dtype], device, batch, progress)
    elif sampling is not None:
        write_samples(teacher, writer, rows, sampling, DTYPES[dtype], device, batch, progress)
    writer.finish()
    return replace(_result(writer.index, shown, kind), evaluations=runs)


def _samples(data: Samples | Captioned | Sequence[str], teacher: Teacher) -> tuple[Samples | None, list[str]]:
    """Return samples to encode, or prompts."""
    if isinstance(data, Captioned):
        return CentreCrops(data, teacher.size), []
    return (data, []) if isinstance(data, Samples) else (None, list(data))


def _made_by(teacher: Teacher, sampling: Sampling | None) -> str:
    """Return a digest of what makes the latents of prompts: nothing, or the teacher's network and its settings."""
    return "" if sampling is None else f"{sampling} {fingerprint(teacher.folder, [teacher.family.network])}"


def _result(index: Index, samples: Samples | None, kind: str) -> Cost:
    written = sum(size for size, _ in index.files.values())
    refused = tuple(why for _, why in sorted(index.refused.items(), key=lambda item: int(item[0])))
    return Cost(index.samples, index.texts, kind, written, None, refused, samples.bad.total if samples else 0)


def _cost(
    teacher: Teacher,
    index: Index,
    texts: Sequence[str],
    shape: Sequence[int],
    dtype: DtypeName,
    device: torch.device | str,
    samples: Samples | None,
    kind: str,
) -> Cost:
    """Encode some captions and one sample, to know what each takes."""
    encode, some = teacher.text_encoder(device, DTYPES[dtype]), texts[:ENCODE_BATCH]
    found = encode(some[:1])  # the first call of a network takes longer than others
    since = time.perf_counter()
    encode(some)
    seconds = (time.perf_counter() - since) / len(some) * index.texts
    del encode
    if samples is not None:
        seconds += seconds_per_sample(teacher, samples, DTYPES[dtype], device) * index.samples
    per_text = bytes_per_row(spec_of(found.cond)) + len(texts[0].encode())
    total = index.texts * per_text + index.samples * 8 + _latent_bytes(index, shape, dtype)
    shards = len(index.shards("text")) + len(index.shards("latents"))
    sampled = samples is None and index.origin.vae is not None  # by the teacher, for as long as that takes
    return Cost(index.samples, index.texts, kind, total + (shards + 1) * HEADERS, None if sampled else seconds)


def _latent_bytes(index: Index, shape: Sequence[int], dtype: DtypeName) -> int:
    if index.origin.vae is None:
        return 0
    states = 1 if index.origin.sampled is None else len(index.origin.sampled.keys)
    return index.samples * (states * torch.Size(shape).numel() * DTYPES[dtype].itemsize + 8)


def _check_disk(out: Path, index: Index, shape: Sequence[int], dtype: DtypeName) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free, least = shutil.disk_usage(there).free, _latent_bytes(index, shape, dtype)
    if not (out / INDEX).is_file() and least > free:
        raise UserError(f"{out}: latents take {in_units(least)} and {in_units(free)} are free: give another --out")


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
