"""Batches of text-conditioned models: encoded prompts and, where there are pictures, latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import Captioned
from fewstep.core.data.crops import cover, crop_at
from fewstep.core.data.damage import Damaged
from fewstep.core.data.epochs import epoch_indices
from fewstep.core.denoiser import Cond
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.core.models.family import Size
from fewstep.core.models.loading import ENCODE_BATCH, Teacher
from fewstep.core.recipe import STATES, TIMES, Batch
from fewstep.core.rng import Rng

MAX_GIB = 8.0
GIB = 2**30


@runtime_checkable
class Texts(Protocol):
    """Encoded prompts: unique ``captions``, the row of each sample among them, and the unconditional condition."""

    @property
    def captions(self) -> Sequence[str]:
        """The different captions."""

    @property
    def rows(self) -> Sequence[int]:
        """The caption of each sample, by its place among them."""

    @property
    def null(self) -> Cond | None:
        """One row of the unconditional condition, None where there is none."""

    def conditions(self, rows: Sequence[int]) -> Cond:
        """Return the conditions of some captions, on the CPU, one row each."""


@runtime_checkable
class Latents(Protocol):
    """Clean latents of the samples."""

    def latents(self, samples: Sequence[int], rng: Rng) -> tuple[list[int], Float[Tensor, "b *d"]]:
        """Return which samples these are, after damaged ones were replaced, and their latents, float32.

        ``rng``: of these samples, for what is random in them.
        """


@runtime_checkable
class Trajectories(Protocol):
    """Latents that are states of a teacher's trajectories, the clean one last."""

    @property
    def key_times(self) -> Sequence[float]:
        """The times of the states before the clean one, noise first; empty for latents alone."""

    def trajectories(self, samples: Sequence[int]) -> Float[Tensor, "b k *d"]:
        """Return the states, float32."""


@dataclass(frozen=True)
class EncodedTexts:
    """Prompts encoded in memory."""

    captions: Sequence[str]
    rows: Sequence[int]
    cond: Cond
    null: Cond | None

    def conditions(self, rows: Sequence[int]) -> Cond:
        """Return the conditions of some captions."""
        chosen = torch.tensor(list(rows), dtype=torch.long)
        return {name: value[chosen] for name, value in self.cond.items()}


def unique(captions: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the captions without repetitions, in order of appearance, and the row of each among them."""
    number: dict[str, int] = {}
    rows = [number.setdefault(caption, len(number)) for caption in captions]
    return list(number), rows


def encode_texts(
    teacher: Teacher,
    captions: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_gib: float = MAX_GIB,
    done: Callable[[int], None] = lambda count: None,
) -> EncodedTexts:
    """Return the encoded captions of samples, each different one encoded once.

    ``done`` is told how many are ready. Raises UserError when they would take more than ``max_gib`` of memory.
    """
    texts, rows = unique(captions)
    check(bool(texts), "no prompts to encode")
    encode = teacher.text_encoder(device, dtype)
    first = encode(texts[:ENCODE_BATCH], done)
    gib = bytes_of(first.cond) / min(len(texts), ENCODE_BATCH) * len(texts) / GIB
    if gib > max_gib:
        raise UserError(
            f"{len(texts)} encoded prompts take {gib:.1f} GiB of memory, more than {max_gib:g}: run `fewstep "
            f"{teacher.family.media} prepare --teacher {teacher.folder.name} --data ... --out DIR` once, and give the "
            "folder it writes as data"
        )
    if len(texts) <= ENCODE_BATCH:
        return EncodedTexts(texts, rows, first.cond, first.null)
    rest = encode(texts[ENCODE_BATCH:], lambda count: done(ENCODE_BATCH + count))
    cond = {name: torch.cat([value, rest.cond[name]]) for name, value in first.cond.items()}
    return EncodedTexts(texts, rows, cond, first.null)


def bytes_of(cond: Cond) -> int:
    """Return the size of a condition in memory."""
    return sum(value.numel() * value.element_size() for value in cond.values())


class BlankLatents:
    """Latents of zeros: where only their shape matters."""

    def __init__(self, shape: Sequence[int], key_times: Sequence[float] = ()) -> None:
        self.shape, self.key_times = tuple(shape), tuple(key_times)

    def latents(self, samples: Sequence[int], rng: Rng) -> tuple[list[int], Float[Tensor, "b *d"]]:
        """Return zeros."""
        return list(samples), torch.zeros(len(samples), *self.shape)

    def trajectories(self, samples: Sequence[int]) -> Float[Tensor, "b k *d"]:
        """Return zeros for every key time and the clean state."""
        return torch.zeros(len(samples), len(self.key_times) + 1, *self.shape)


def blank_source(
    teacher: Teacher, dtype: torch.dtype, *, pictures: bool, key_times: Sequence[float] = ()
) -> tuple[TextSource, EncodedTexts]:
    """Return samples of the right shapes and their texts, made on the meta device: no weights or data are read.

    ``key_times``: of stored trajectories.
    """
    found = teacher.encode([""], "meta", dtype)
    texts = EncodedTexts([""], [0], found.cond, found.null)
    return TextSource(texts, BlankLatents(teacher.shape, key_times) if pictures else None), texts


class EncodedPictures:
    """Random crops of pictures, encoded when they are asked for.

    ``encode``: "1 c h w" in [-1, 1] to a latent, such as a codec's. A picture is resized until the crop just fits,
    aspect kept. ``flip``: mirror half of the crops. Pictures are encoded one at a time: a sample's bits do not depend
    on its company.
    """

    def __init__(self, pictures: Captioned, encode: Callable[[Tensor], Tensor], size: Size, flip: bool = False) -> None:
        check(size.frames == 1, f"pictures have no {size.frames} frames: give videos, or frames=1")
        self.pictures, self.encode, self.size, self.flip = pictures, encode, size, flip

    def latents(self, samples: Sequence[int], rng: Rng) -> tuple[list[int], Float[Tensor, "b *d"]]:
        """Return crops "b *d"; TrainingError when no picture can be read."""
        corners = rng.uniform("crop", (2,)).tolist()
        mirrored = (rng.uniform("flip") < 0.5).tolist() if self.flip else [False] * len(rng.ids)
        shown, latents = [], []
        for sample, corner, mirror in zip(samples, corners, mirrored, strict=True):
            index, picture = readable(self.pictures, sample)
            crop = crop_to(picture, self.size, corner)
            shown.append(index)
            latents.append(self.encode((crop.flip(-1) if mirror else crop)[None] * 2 - 1))
        return shown, torch.cat(latents)


def crop_to(picture: Float[Tensor, "c h w"], size: Size, corner: Sequence[float]) -> Float[Tensor, "c k l"]:
    """Return a crop of ``size`` of a picture resized until it just fits."""
    return crop_at(cover(picture, size.height, size.width), (size.height, size.width), corner)


def readable(pictures: Captioned, index: int) -> tuple[int, Float[Tensor, "c h w"]]:
    """Return a picture and which one it is: a damaged one's place is taken by the next that can be read."""
    for step in range(len(pictures)):
        at = (index + step) % len(pictures)
        try:
            return at, pictures.picture(at)
        except Damaged:
            continue
    raise TrainingError(f"none of the {len(pictures)} pictures can be read")


class TextSource:
    """Samples with a prompt each, and with latents or without: the DataSource of text-conditioned models.

    Samples come in epochs, each a permutation. One prompt is a constant condition. Where latents are ends of
    trajectories, conditions have the states as "trajectory" and their times as "trajectory_times".
    """

    def __init__(self, texts: Texts, latents: Latents | None = None) -> None:
        check(len(texts.rows) > 0, "no samples to train on: give prompts")
        self.texts, self.pictures = texts, latents

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.texts.rows)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return conditions and, with pictures, latents "b *d"."""
        samples, x0, states = epoch_indices(rng, len(self)), None, None
        kept = _kept(self.pictures)
        if kept is not None:
            states = kept.trajectories(samples)
            x0 = states[:, -1].to(device)
        elif self.pictures is not None:
            samples, x0 = self.pictures.latents(samples, rng)
            x0 = x0.to(device)
        cond = dict(self.texts.conditions([self.texts.rows[sample] for sample in samples]))
        if kept is not None and states is not None:
            row = torch.tensor(list(kept.key_times), dtype=torch.float64)
            cond |= {STATES: states, TIMES: row.expand(len(samples), -1)}
        return Batch(len(samples), {name: value.to(device) for name, value in cond.items()}, x0, device)


def _kept(latents: object) -> Trajectories | None:
    return latents if isinstance(latents, Trajectories) and len(latents.key_times) > 0 else None
