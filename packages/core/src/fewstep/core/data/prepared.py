"""Prepared data read back: any caption's condition and any sample's latent, from where it lies on the disk."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.data.cache import AGAIN, CAPTIONS, LATENTS, NULL, ROWS, SAMPLES, Index, Kind, Origin, read_index
from fewstep.core.data.writing import sha256
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import PipelineFolder, read_json
from fewstep.core.models.loading import Teacher
from fewstep.core.rng import Rng

OPEN_FILES = 16
PIECES, PIECE = 16, 4096  # of a file, that its fingerprint is made of


def is_prepared(path: str | Path) -> bool:
    """Return whether a path is a folder of prepared data."""
    folder = Path(path).expanduser()
    return (folder / "index.json").is_file() and (folder / CAPTIONS).is_file()


def key_times_at(path: str | Path) -> tuple[float, ...]:
    """Return the key times of the trajectories in a prepared folder; none for other data, and where nothing is yet."""
    sampled = read_index(Path(path).expanduser()).origin.sampled if is_prepared(path) else None
    return () if sampled is None else sampled.key_times()


def origin_of(teacher: Teacher, *, latents: bool, dtype: str, data: str, cut: str = "") -> Origin:
    """Return what data prepared for a teacher is made with; ``data`` identifies the samples, ``cut`` tells of clips."""
    parts = [part for part in teacher.family.text if teacher.folder.has(part)]
    size = teacher.size
    sides = (size.height, size.width, *((size.frames,) if size.frames > 1 else ()))
    return Origin(
        family=teacher.family.name,
        teacher=teacher.folder.name,
        text=fingerprint(teacher.folder, parts),
        vae=fingerprint(teacher.folder, ["vae"]) if latents else None,
        negative=teacher.negative,
        size=sides if latents else None,
        dtype=dtype,
        data=data,
        cut=cut,
    )


def fingerprint(folder: PipelineFolder, parts: Sequence[str]) -> str:
    """Return a digest of components: their configs, vocabularies and pieces of their weights.

    Copies of the same components agree, whatever the rest of their pipelines is; fine-tuned ones differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part, folder.parts[part]]).encode())
        for file in sorted((folder.path / part).iterdir()):
            if file.name == "config.json":  # underscored keys say who saved it
                own = {key: value for key, value in read_json(file).items() if not key.startswith("_")}
                digest.update(json.dumps(own, sort_keys=True).encode())
            elif _counts(file, folder.variant):
                digest.update(_pieces(file))
    return digest.hexdigest()


def _counts(file: Path, variant: str | None) -> bool:
    if file.suffix == ".safetensors":
        return f".{variant}" in file.name if variant else "." not in file.stem
    return file.is_file() and file.name in ("vocab.json", "merges.txt", "tokenizer.json", "spiece.model")


def _pieces(path: Path) -> bytes:
    size = path.stat().st_size
    with open(path, "rb") as file:
        found = [size.to_bytes(8, "little")]
        for piece in range(PIECES):
            file.seek(max(0, size - PIECE) * piece // (PIECES - 1))
            found.append(file.read(PIECE))
    return b"".join(found)


class Prepared:
    """A complete prepared folder. Conditions and latents are read when they are asked for, in the stored dtype.

    ``captions``: the different ones; ``rows``: the caption of each sample; ``null``: the unconditional condition. With
    a teacher, UserError unless the data was prepared for it; UserError too for an incomplete or damaged folder.
    """

    def __init__(self, folder: str | Path, teacher: Teacher | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.index = read_index(self.folder)
        check(self.index.complete, f"{self.folder}: not complete; run the same `prepare` again to finish")
        if teacher is not None:
            check_origin(self.folder, self.index, teacher)
        self._check_sizes()
        self._text_shards, self._latent_shards = self.index.shards("text"), self.index.shards("latents")
        self._lock = Lock()
        self._open: OrderedDict[str, Any] = OrderedDict()
        self.captions = _captions(self.folder / CAPTIONS, self.index.texts)
        self.null: Cond | None = self._null() if NULL in self.index.files else None
        rows = self._rows()
        self._starts: list[int] = []  # of each shard of latents, among the samples
        self.rows: list[int] = rows if not self.has_latents else []
        for name, start, stop in self._latent_shards:
            self._starts.append(len(self.rows))
            samples = self._tensor(name, SAMPLES, slice(None)).tolist()
            if len(samples) != self.index.counts.get(name) or not all(start <= i < stop for i in samples):
                raise UserError(f"{self.folder / name}: damaged, its samples are others than the index says: {AGAIN}")
            self.rows += [rows[sample] for sample in samples]

    @property
    def has_latents(self) -> bool:
        """Whether there are latents, and not only conditions."""
        return self.index.origin.vae is not None

    def __len__(self) -> int:
        """Return the number of samples; damaged pictures left none."""
        return len(self.rows)

    def conditions(self, rows: Sequence[int]) -> Cond:
        """Return the conditions of some captions."""
        places = [(self._text_shards[row // self.index.per_shard][0], row % self.index.per_shard) for row in rows]
        return {name: self._take("text", name, places) for name in self.index.tensors["text"]}

    def latents(self, samples: Sequence[int], rng: Rng | None = None) -> tuple[list[int], Float[Tensor, "b *d"]]:
        """Return the samples and their clean latents "b *d", float32; nothing about them is random."""
        stored = self._stored(samples)
        return list(samples), stored[:, -1] if self.key_times else stored

    @property
    def key_times(self) -> tuple[float, ...]:
        """Return the times of the stored states of trajectories, noise first; the clean one's is not among them."""
        sampled = self.index.origin.sampled
        return () if sampled is None else sampled.key_times()

    def trajectories(self, samples: Sequence[int]) -> Float[Tensor, "b k *d"]:
        """Return the stored states of some samples' trajectories, noise first, clean last; UserError without any."""
        check(bool(self.key_times), f"{self.folder}: clean latents only: prepare it with --keys")
        return self._stored(samples)

    def _stored(self, samples: Sequence[int]) -> Tensor:
        check(self.has_latents, f"{self.folder}: prompts only, without pictures")
        shards = [bisect_right(self._starts, sample) - 1 for sample in samples]
        places = [
            (self._latent_shards[shard][0], sample - self._starts[shard])
            for shard, sample in zip(shards, samples, strict=True)
        ]
        return self._take("latents", LATENTS, places).float()

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the index; UserError naming the first that differs."""
        for name, (_, digest) in sorted(self.index.files.items()):
            check(sha256(self.folder / name) == digest, f"{self.folder / name}: damaged, its SHA-256 differs: {AGAIN}")

    def _check_sizes(self) -> None:
        strange = self.index.files.keys() - self.index.names()
        check(not strange, f"{self.folder}: its index names files that do not belong to it: {AGAIN}")
        for name, (size, _) in self.index.files.items():
            path = self.folder / name
            check(path.is_file(), f"{path}: missing: copy the folder again")
            found = path.stat().st_size
            check(
                found == size, f"{path}: truncated or changed, {found} bytes instead of {size}: copy the folder again"
            )

    def _null(self) -> Cond:
        null = _load(self.folder / NULL)
        shapes = {name: (1, *shape) for name, (_, shape) in self.index.tensors.get("text", {}).items()}
        wrong = [name for name, value in null.items() if tuple(value.shape) != shapes.get(name)]
        check(not wrong, f"{self.folder / NULL}: '{''.join(wrong[:1])}' is unlike the conditions': {AGAIN}")
        return null

    def _rows(self) -> list[int]:
        rows = _load(self.folder / ROWS).get("rows")
        whole = rows is not None and rows.shape == (self.index.samples,) and rows.dtype == torch.int64
        if rows is None or not whole or int(rows.min()) < 0 or int(rows.max()) >= self.index.texts:
            raise UserError(f"{self.folder / ROWS}: not the caption of each sample: {AGAIN}")
        return [int(row) for row in rows.tolist()]

    def _take(self, kind: Kind, name: str, places: Sequence[tuple[str, int]]) -> Tensor:
        dtype, shape = self.index.tensors[kind][name]
        found = torch.cat([self._tensor(file, name, slice(row, row + 1)) for file, row in places])
        if (str(found.dtype), tuple(found.shape[1:])) != (f"torch.{dtype}", shape):
            raise UserError(f"{self.folder}: '{name}' is {found.dtype} {tuple(found.shape[1:])}, not as its index says")
        return found

    def _tensor(self, file: str, name: str, rows: slice) -> Tensor:
        try:
            with self._lock:
                if file in self._open:
                    self._open.move_to_end(file)
                else:
                    self._open[file] = safe_open(str(self.folder / file), framework="pt")
                    if len(self._open) > OPEN_FILES:
                        self._open.popitem(last=False)
                found: Tensor = self._open[file].get_slice(name)[rows]
        except (OSError, SafetensorError, IndexError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.folder / file}: cannot be read ({line}): {AGAIN}") from error
        return found


def check_origin(folder: Path, index: Index, teacher: Teacher) -> None:
    """Raise UserError, naming both, unless data was prepared for this teacher at its size."""
    found = index.origin
    wanted = origin_of(teacher, latents=found.vae is not None, dtype=found.dtype, data=found.data)
    wanted = replace(wanted, sampled=found.sampled)  # how is not the teacher's
    keys = ("family", "text", "vae", "negative", "size")
    if [getattr(found, key) for key in keys] != [getattr(wanted, key) for key in keys]:
        why = " (the weights differ)" if found.about() == wanted.about() else ""
        raise UserError(
            f"{folder}: prepared for the {found.about()}, not for the {wanted.about()}{why}: prepare it again"
        )
    network = teacher.family.network
    if found.sampled is not None and found.sampled.network != fingerprint(teacher.folder, [network]):
        raise UserError(f"{folder}: trajectories of another {network} than this teacher's: prepare it again")


def _captions(path: Path, count: int) -> list[str]:
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {AGAIN}") from error
    whole = len(found) == count and all(isinstance(caption, str) for caption in found)
    check(whole, f"{path}: not the {count} captions of the index: {AGAIN}")
    return found


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}): {AGAIN}") from error
