"""Latents and embeddings that other tools have computed, made into prepared data.

The one layout that is read: a folder with ``latents.jsonl``, an object per sample, ``file`` and ``caption``; each file
is a safetensors file with ``latents`` "c f h w", scaled as the network takes them, and the entries of a condition as
the teacher's text encoders give them, without the batch: ``prompt_embeds`` "n d", for some with ``attention_mask`` "n"
and the like. ``null.safetensors`` has those entries of the unconditional prompt; without it, that is encoded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.core.data.cache import LATENTS, SAMPLES, CacheWriter, bytes_per_row, spec_of
from fewstep.core.data.captioned import digest_of
from fewstep.core.data.cost import Cost
from fewstep.core.data.prepare import Told
from fewstep.core.data.prepared import origin_of
from fewstep.core.data.source import unique
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.loading import DTYPES, DtypeName, Teacher
from fewstep.core.planning.kernels import GpuKernels
from fewstep.core.planning.tracker import Tracker
from fewstep.video.reading.tables import read_table

INDEX, NULL = "latents.jsonl", "null.safetensors"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Precomputed:
    """The files of a folder, in the order of its index, with their captions."""

    folder: Path
    files: tuple[Path, ...]
    captions: tuple[str, ...]

    @property
    def identity(self) -> str:
        """A digest of which samples these are."""
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        return digest_of([*sizes, *self.captions])


def is_precomputed(path: str | Path) -> bool:
    """Return whether a path is a folder of this layout, or the index in one."""
    given = Path(path).expanduser()
    return given.name == INDEX or (given / INDEX).is_file()


def open_precomputed(path: str | Path, column: str = "") -> Precomputed:
    """Return the samples of a folder; UserError naming the line of the index that does not fit."""
    given = Path(path).expanduser()
    index = given if given.name == INDEX else given / INDEX
    check(index.is_file(), f"{index}: not there; give the folder that has it")
    rows = read_table(index, column)
    for number, (file, _) in enumerate(rows, 1):
        check(file.is_file(), f"{index}, row {number}: no file {file}: remove the row or add the file")
    return Precomputed(index.parent, tuple(file for file, _ in rows), tuple(caption for _, caption in rows))


def prepare_precomputed(
    teacher: Teacher,
    data: Precomputed,
    out: Path,
    *,
    samples_per_shard: int,
    dtype: DtypeName,
    device: torch.device | str,
    progress: Told,
    dry_run: bool,
) -> Cost:
    """Write them as a folder ``out``, or go on with one that was begun; return what it takes.

    UserError for a file that cannot be read or whose tensors are not the teacher's at its size.
    """
    texts, rows = unique(data.captions)
    wanted = _wanted(teacher)
    origin = origin_of(teacher, latents=True, dtype=dtype, data=digest_of([data.identity]), cut="made elsewhere")
    first = _read(data.files[0], wanted, DTYPES[dtype])
    each = {name: value[None] for name, value in first.items()}
    per_text = bytes_per_row(spec_of({name: value for name, value in each.items() if name != LATENTS}))
    total = len(texts) * per_text + len(rows) * bytes_per_row(spec_of({LATENTS: each[LATENTS]}))
    if dry_run:
        return Cost(len(rows), len(texts), "latents", total)
    writer = CacheWriter(out, origin, texts, rows, samples_per_shard)
    _write_texts(teacher, data, writer, rows, wanted, DTYPES[dtype], device, progress)
    for name, start, stop in writer.missing("latents"):
        found = torch.stack([_read(file, wanted, DTYPES[dtype])[LATENTS] for file in data.files[start:stop]])
        writer.write("latents", name, {LATENTS: found, SAMPLES: torch.arange(start, stop)})
        progress("latents", stop, len(rows))
    writer.finish()
    return Cost(len(rows), len(texts), "latents", sum(size for size, _ in writer.index.files.values()))


def _write_texts(
    teacher: Teacher,
    data: Precomputed,
    writer: CacheWriter,
    rows: Sequence[int],
    wanted: Shapes,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Told,
) -> None:
    """Write the condition of each caption, as the first sample with it has it."""
    firsts: dict[int, Path] = {}
    for row, file in zip(rows, data.files, strict=True):
        firsts.setdefault(row, file)
    names = wanted.keys() - {LATENTS}
    for name, start, stop in writer.missing("text"):
        found = [_read(firsts[row], wanted, dtype) for row in range(start, stop)]
        if start == 0:
            null = _null(teacher, data, {key: wanted[key] for key in names}, dtype, device)
            if null is not None:
                writer.write_null(null)
        writer.write("text", name, {key: torch.stack([each[key] for each in found]) for key in sorted(names)})
        progress("captions", stop, len(firsts))


def _null(
    teacher: Teacher, data: Precomputed, wanted: Shapes, dtype: torch.dtype, device: torch.device | str
) -> Cond | None:
    stored = data.folder / NULL
    if stored.is_file():
        return {name: value[None] for name, value in _read(stored, wanted, dtype).items()}
    return teacher.encode([""], device, dtype).null


def _wanted(teacher: Teacher) -> Shapes:
    """Return the shapes of what a file holds, without reading any weights."""
    with closing(GpuKernels()) as kernels, kernels, Tracker():  # which answer questions about values that are not there
        cond = teacher.encode([""], "meta").cond
    return {LATENTS: teacher.shape} | {name: tuple(value.shape[1:]) for name, value in cond.items()}


def _read(file: Path, wanted: Shapes, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a file's tensors, floating-point ones in ``dtype``; UserError for what is missing or of another shape."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = list(opened.keys())
            missing = [name for name in wanted if name not in names]
            check(
                not missing, f"{file}: no '{''.join(missing[:1])}' in it, only {', '.join(sorted(names)) or 'nothing'}"
            )
            for name, shape in wanted.items():
                found = tuple(opened.get_slice(name).get_shape())
                check(found == shape, f"{file}: '{name}' is {found}, and this teacher's are {shape}: give its --size")
            tensors = {name: opened.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: cannot be read as safetensors ({line}): write it again") from error
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
