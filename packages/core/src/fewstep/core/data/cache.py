"""Prepared data: what a teacher's text encoders and autoencoder make of a data set, kept in a folder.

``captions.jsonl``: the different captions, one JSON string a line. ``rows.safetensors``: the caption of each sample.
``text-N.safetensors``: encoded captions. ``latents-N.safetensors``: latents, and which sample each one is.
``null.safetensors``: the unconditional condition. ``index.json``: what made them, and sizes and SHA-256 of all others;
it is written again after every shard, so a killed preparation goes on where it was.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from fewstep.core.data.sampled import Sampled
from fewstep.core.data.writing import ASIDE, sha256, write_tensors, write_text
from fewstep.core.errors import TrainingError, UserError, check

FORMAT = 1
INDEX, CAPTIONS, ROWS, NULL = "index.json", "captions.jsonl", "rows.safetensors", "null.safetensors"
SAMPLES, LATENTS = "samples", "latents"  # tensors in a shard of latents
MAX_INDEX = 256 * 2**20
AGAIN = "prepare it again into a new folder"

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip

Kind = Literal["text", "latents"]
Spec = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of one row of each tensor."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a cache was made with.

    ``text`` and ``vae``: fingerprints; ``data``: a digest of the samples; ``vae`` and ``size``: None without latents;
    ``cut``: how clips were cut out of videos, in words.
    ``sampled``: None unless latents are trajectories.
    """

    family: str
    teacher: str
    text: str
    vae: str | None
    negative: str | None
    size: tuple[int, ...] | None
    dtype: str
    data: str
    cut: str = ""
    sampled: Sampled | None = None

    def about(self) -> str:
        """Return the teacher and the size in words."""
        at = f" at {'x'.join(map(str, self.size))}" if self.size else ""
        negative = f" with the negative prompt '{self.negative}'" if self.negative else ""
        made = f", {len(self.sampled.keys)} states of {len(self.sampled.grid)} steps" if self.sampled else ""
        return f"{self.family} teacher '{self.teacher}'{at}{negative}{made}"


@dataclass
class Index:
    """The content of ``index.json``.

    ``files``: size and SHA-256 of those that are done; ``counts``: rows of shards; ``refused``: the files of the data
    that gave no sample, by their place among them, and why.
    """

    origin: Origin
    samples: int
    texts: int
    per_shard: int
    tensors: dict[str, Spec] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def shards(self, kind: Kind) -> list[tuple[str, int, int]]:
        """Return the file of each shard and the range of captions or samples in it."""
        if kind == "latents" and self.origin.vae is None:
            return []
        total = self.texts if kind == "text" else self.samples
        starts = range(0, total, self.per_shard)
        return [
            (f"{kind}-{i:05d}.safetensors", start, min(start + self.per_shard, total)) for i, start in enumerate(starts)
        ]

    def names(self) -> set[str]:
        """Return the names of all files of a complete cache; ``null.safetensors`` may be missing."""
        shards = [*self.shards("text"), *self.shards("latents")]
        return {CAPTIONS, ROWS, NULL, INDEX, *(name for name, _, _ in shards)}

    def dump(self) -> str:
        """Return the index as JSON."""
        content = asdict(self)
        if self.origin.sampled is None:  # as indices were before there were trajectories
            del content["origin"]["sampled"]
        return json.dumps({"format": FORMAT, **content}, indent=1, sort_keys=True) + "\n"


def read_index(folder: Path) -> Index:
    """Return the index of a prepared folder, complete or not; UserError when it has none that can be read."""
    path = folder / INDEX
    check(path.is_file(), f"{folder}: no {INDEX} there: give a folder that `prepare` wrote")
    check(path.stat().st_size <= MAX_INDEX, f"{path}: too large to be an index: {AGAIN}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["format"]
        check(version == FORMAT, f"{path}: format {version}, and this version reads {FORMAT}: {AGAIN}")
        return _index(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not the index of prepared data: {AGAIN}") from error


def _index(found: Mapping[str, Any]) -> Index:
    origin = dict(found["origin"])
    size, sampled = origin.pop("size"), origin.pop("sampled", None)
    if not all(value is None or isinstance(value, str) for value in origin.values()):
        raise ValueError
    made = Index(
        origin=Origin(
            **origin,
            size=None if size is None else tuple(map(int, size)),
            sampled=None if sampled is None else Sampled.read(sampled),
        ),
        samples=int(found["samples"]),
        texts=int(found["texts"]),
        per_shard=int(found["per_shard"]),
        tensors={
            str(kind): {str(n): (str(dtype), tuple(map(int, shape))) for n, (dtype, shape) in spec.items()}
            for kind, spec in found["tensors"].items()
        },
        counts={str(name): int(count) for name, count in found["counts"].items()},
        files={str(name): (int(size), str(digest)) for name, (size, digest) in found["files"].items()},
        refused={str(int(number)): str(why) for number, why in found.get("refused", {}).items()},
        complete=bool(found["complete"]),
    )
    if min(made.samples, made.texts, made.per_shard) < 1 or made.texts > made.samples:
        raise ValueError
    if made.samples > 2**40 or made.samples // made.per_shard > 1_000_000:
        raise ValueError
    if any(dtype not in DTYPES for spec in made.tensors.values() for dtype, _ in spec.values()):
        raise ValueError
    if made.complete and made.names() - {NULL, INDEX} - made.files.keys():
        raise ValueError
    return made


class CacheWriter:
    """Writes a prepared folder shard by shard, or goes on with one that was begun; both end with the same bytes.

    ``captions``: the different ones; ``rows``: the caption of each sample. Raises UserError for a folder with
    something else in it, or with data prepared from something else; TrainingError when the disk refuses.
    """

    def __init__(
        self, folder: Path, origin: Origin, captions: Sequence[str], rows: Sequence[int], per_shard: int
    ) -> None:
        self.folder = folder
        self.index = Index(origin, len(rows), len(captions), per_shard)
        if (folder / INDEX).is_file():
            self._go_on(read_index(folder))
            return
        check_room(folder, self.index)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}): give another --out") from error
        with self._disk():
            write_text(folder / CAPTIONS, "".join(f"{json.dumps(caption)}\n" for caption in captions))
            write_tensors(folder / ROWS, {"rows": torch.tensor(list(rows), dtype=torch.int64)})
            self._note(CAPTIONS, ROWS)

    def _go_on(self, found: Index) -> None:
        wanted = self.index
        same = (found.origin, found.samples, found.texts) == (wanted.origin, wanted.samples, wanted.texts)
        if not same:
            raise UserError(f"{self.folder}: holds data prepared for {_other(found, wanted)}: give another --out")
        if found.per_shard != wanted.per_shard:
            raise UserError(f"{self.folder}: was begun with {found.per_shard} samples per shard: go on with as many")
        self.index = found
        for leftover in self.folder.glob(f"{ASIDE}*"):
            leftover.unlink()
        for name, (size, _) in list(found.files.items()):
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                check(name not in (CAPTIONS, ROWS), f"{path}: lost or changed: {AGAIN}")
                del found.files[name]
                found.complete = False

    def missing(self, kind: Kind) -> list[tuple[str, int, int]]:
        """Return the shards still to write, with the range of captions or samples that belongs into each."""
        return [shard for shard in self.index.shards(kind) if shard[0] not in self.index.files]

    def write_null(self, null: Mapping[str, Tensor]) -> None:
        """Write the unconditional condition, one row."""
        with self._disk():
            write_tensors(self.folder / NULL, null)
            self._note(NULL)

    def write(
        self, kind: Kind, name: str, tensors: Mapping[str, Tensor], refused: Mapping[int, str] | None = None
    ) -> None:
        """Write a shard; TrainingError for rows too few, too many, unlike the other shards', or not finite.

        ``refused``: the files among its samples' that could not be read, and why.
        """
        spec = spec_of(tensors)
        if self.index.tensors.setdefault(kind, spec) != spec:
            raise TrainingError(
                f"{self.folder / name}: tensors {spec} unlike the other shards' {self.index.tensors[kind]}"
            )
        for key, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise TrainingError(f"{self.folder / name}: '{key}' is not finite: encode in fp32 or bf16 (--dtype)")
        start, stop = next((first, last) for shard, first, last in self.index.shards(kind) if shard == name)
        lengths = {len(value) for value in tensors.values()}
        whole = lengths == {stop - start} if kind == "text" else len(lengths) == 1 and max(lengths) <= stop - start
        if not whole:
            raise TrainingError(f"{self.folder / name}: {sorted(lengths)} rows for {stop - start} of {kind}")
        with self._disk():
            write_tensors(self.folder / name, tensors)
            self.index.counts[name] = len(next(iter(tensors.values())))
            self.index.refused |= {str(number): why for number, why in (refused or {}).items()}
            self._note(name)

    def finish(self) -> None:
        """Declare the folder complete; TrainingError when a shard is missing."""
        left = [*self.missing("text"), *self.missing("latents")]
        if left:
            raise TrainingError(f"{self.folder}: {len(left)} shards are not written yet")
        if not self.index.complete:
            self.index.complete = True
            with self._disk():
                self._note()

    def _note(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            self.index.files[name] = (path.stat().st_size, sha256(path))
        write_text(self.folder / INDEX, self.index.dump())

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
            reason = "the disk is full" if full else str(getattr(error, "strerror", None) or error)
            raise TrainingError(f"{self.folder}: not written, {reason}; run it again to go on from there") from error


def _other(found: Index, wanted: Index) -> str:
    """Return in words what a folder was prepared for, where it differs from what is wanted."""
    about, cut = found.origin.about(), found.origin.cut
    if about != wanted.origin.about():
        return about
    return f"other clips ({cut})" if cut != wanted.origin.cut else "other data or dtype"


def check_room(folder: Path, index: Index) -> None:
    """Raise UserError unless a folder is new, empty, or holds only what a preparation just begun leaves."""
    check(not folder.exists() or folder.is_dir(), f"{folder}: is a file: give another --out")
    if folder.is_dir():
        strange = [p.name for p in folder.iterdir() if p.name not in index.names() and not p.name.startswith(ASIDE)]
        check(
            not strange, f"{folder}: holds something else ({sorted(strange)[0]}): give another --out" if strange else ""
        )


def spec_of(tensors: Mapping[str, Tensor]) -> Spec:
    """Return dtype and shape of one row of each tensor."""
    return {name: (str(value.dtype).removeprefix("torch."), tuple(value.shape[1:])) for name, value in tensors.items()}


def bytes_per_row(spec: Spec) -> int:
    """Return the bytes one row takes."""
    return sum(DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in spec.values())
