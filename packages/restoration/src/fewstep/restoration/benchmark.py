"""Models compared on pictures that are degraded here: restored, measured and timed, one row of a table each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.captioned import sidecar_caption
from fewstep.core.data.reading import image_files
from fewstep.core.errors import UserError, check
from fewstep.core.rng import Rng
from fewstep.restoration.degradations import BicubicConfig, DegradationConfig, degrade, imresize, mod_crop, preset
from fewstep.restoration.evaluation import Scores
from fewstep.restoration.pictures.reading import read_picture
from fewstep.restoration.tiling import is_out_of_memory

BICUBIC = "bicubic"


class Source(NamedTuple):
    """A picture: its name, what reads "c h w" in [0, 1], and what says what it shows, "" where nothing does."""

    name: str
    read: Callable[[], Tensor]
    caption: Callable[[], str] = str


class Restores(Protocol):
    """What is compared: a picture of low quality in, one ``scale`` times as large out."""

    name: str
    steps: int

    def __call__(self, lq: Float[Tensor, "b 3 h w"], scale: int) -> Float[Tensor, "b 3 k l"]:
        """Return restored pictures, not clamped."""


@runtime_checkable
class Reads(Protocol):
    """A model that is told what pictures show."""

    def tell(self, caption: str) -> None:
        """Say what the next picture shows, "" for nothing."""


class Bicubic:
    """The baseline without a network: MATLAB's bicubic."""

    name = BICUBIC
    steps = 0

    def __call__(self, lq: Float[Tensor, "b 3 h w"], scale: int) -> Float[Tensor, "b 3 k l"]:
        """Return the pictures enlarged."""
        return imresize(lq, scale)


@dataclass
class Entry:
    """A model with the scores and the seconds of its pictures so far; ``told``: whether it is told what they show."""

    model: Restores
    scores: Scores
    told: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        """Return the median over pictures without the first, which warms up; of that alone where there is no other."""
        return statistics.median(self.seconds[1:] or self.seconds)


def degradation(name: str) -> DegradationConfig:
    """Return a preset that makes pictures small, also of those that enlarge them again; UserError if unknown."""
    config = preset(name)
    return config if isinstance(config, BicubicConfig) else replace(config, back_to_size=False)


def folder_sources(path: Path, captions: bool = False) -> list[Source]:
    """Return the pictures of a folder, or the one of a file; with their own captions, in ``NAME.txt`` beside them."""
    check(path.exists(), f"{path} does not exist: give a picture or a folder of pictures")
    files = image_files(path) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    return [
        Source(file.relative_to(root).as_posix(), partial(_colours, file), partial(_caption, file) if captions else str)
        for file in files
    ]


def _colours(file: Path) -> Tensor:
    return read_picture(file).colours


def _caption(file: Path) -> str:
    return sidecar_caption(file) or ""


def tensor_sources(pictures: Sequence[tuple[str, Float[Tensor, "c h w"]]]) -> list[Source]:
    """Return pictures that are in memory as sources."""
    return [Source(name, picture.clone) for name, picture in pictures]


def low_quality(
    hr: Float[Tensor, "c h w"], config: DegradationConfig, scale: int, seed: int, index: int
) -> tuple[Float[Tensor, "1 3 k l"], Float[Tensor, "3 h w"]]:
    """Return a degraded picture and its reference, cropped to a multiple of ``scale``; the index picks the noise."""
    reference = mod_crop(hr[None].float(), scale).expand(-1, 3, -1, -1)
    return degrade(reference, config, Rng(seed, 0, (index,)), scale), reference[0]


def run(
    entries: Sequence[Entry],
    sources: Sequence[Source],
    config: DegradationConfig,
    *,
    scale: int,
    seed: int = 0,
    device: str = "cpu",
    prompt: str = "",
) -> Iterator[str]:
    """Restore and measure every picture with every model, yielding "" or why a picture was left out.

    ``prompt``: what models that are told something are told of a picture without a caption. A picture that one model
    cannot restore, or a measure cannot take, counts for none, so that means stay comparable.
    """
    for index, (name, read, caption) in enumerate(sources):
        try:
            lq, reference = low_quality(read(), config, scale, seed, index)
            words = caption() or prompt
            for entry in entries:
                if entry.told and isinstance(entry.model, Reads):
                    entry.model.tell(words)
            done = [_restored(entry, lq.to(device), reference, scale) for entry in entries]
        except UserError as error:
            yield str(error) if name in str(error) else f"{name}: {error}"
            continue
        for entry, (values, seconds) in zip(entries, done, strict=True):
            entry.seconds.append(seconds)
            entry.scores.add(name, {**values, "seconds": seconds})
        yield ""


@torch.no_grad()
def _restored(entry: Entry, lq: Tensor, reference: Tensor, scale: int) -> tuple[dict[str, Any], float]:
    begin = time.perf_counter()
    try:
        restored = entry.model(lq, scale)
        if lq.is_cuda:
            torch.cuda.synchronize(lq.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{entry.model.name}: out of memory; restore it in tiles by `upscale`, then evaluate that"
        ) from error
    seconds = time.perf_counter() - begin
    return entry.scores.score(restored[0].float().cpu().clamp(0, 1), reference), seconds
