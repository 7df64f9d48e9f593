"""Examples to learn from: a good picture, or a pair of a good and a bad one, read when it is asked for."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Num
from PIL import Image
from torch import Tensor

from fewstep.core.data.captioned import digest_of, sidecar_caption
from fewstep.core.data.damage import BadFiles, Damaged
from fewstep.core.errors import UserError, check
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.pictures.reading import DAMAGED, FORMATS, read_picture

log = logging.getLogger("fewstep.data")

MAX_CACHE = 4 * 2**30  # bytes
CHECKED = 2000  # pairs whose sizes are looked at before the first is asked for

Pixels = Num[Tensor, "3 h w"]
"""uint8 for pictures of 8 bits, else float32 in [0, 1]; see :func:`to_float`."""


class Example(NamedTuple):
    """A good picture, where there are pairs the bad one of it at 1/scale of its sides, and what it is said to show."""

    hr: Pixels
    lq: Pixels | None = None
    caption: str = ""


@runtime_checkable
class Examples(Protocol):
    """Examples by index. ``identity``: a digest of which they are; ``scale``: of pairs, 0 where there are none."""

    identity: str
    scale: int

    def __len__(self) -> int:
        """Return the number of examples, damaged ones included."""

    def name(self, index: int) -> str:
        """Return what a person calls an example."""

    def example(self, index: int) -> Example:
        """Return an example; Damaged for one that cannot be read, TrainingError once there are too many of those."""


def to_float(pixels: Pixels) -> Float[Tensor, "3 h w"]:
    """Return pixels as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def to_pixels(picture: Picture) -> Pixels:
    """Return a picture in three channels, transparency on white, in its own colour profile.

    Gray is repeated. Profiles are ignored, not converted: pictures to restore keep theirs as well.
    """
    x = picture.colours.expand(3, -1, -1)
    if picture.alpha is not None:
        x = x * picture.alpha + (1 - picture.alpha)
    return (x * 255).round().to(torch.uint8) if picture.bits == 8 else x.contiguous()


class Photos:
    """Pictures in memory: float in [0, 1], "3 h w", with their names."""

    scale = 0

    def __init__(self, photos: Sequence[tuple[str, Float[Tensor, "3 h w"]]]) -> None:
        check(bool(photos), "domain.data: no photos to learn from")
        self._photos = list(photos)
        shown = ((name, tuple(x.shape), hashlib.sha256(x.numpy().tobytes()).hexdigest()) for name, x in self._photos)
        self.identity = digest_of(shown)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._photos)

    def name(self, index: int) -> str:
        """Return a picture's name."""
        return self._photos[index][0]

    def example(self, index: int) -> Example:
        """Return a picture."""
        return Example(self._photos[index][1])


class Joined:
    """The pictures of several sources, one source after another; no pairs."""

    scale = 0

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = list(parts)
        self.identity = digest_of((part.identity,) for part in self.parts)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return sum(len(part) for part in self.parts)

    def name(self, index: int) -> str:
        """Return a picture's name."""
        part, at = self._place(index)
        return part.name(at)

    def example(self, index: int) -> Example:
        """Return a picture; raises what its source raises."""
        part, at = self._place(index)
        return part.example(at)

    def _place(self, index: int) -> tuple[Examples, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)


@dataclass(frozen=True)
class Entry:
    """The file of a good picture, that of its bad partner in a pair, and a name that does not depend on the folder."""

    hr: Path
    lq: Path | None
    name: str


class Files:
    """Pictures, or pairs of ``scale``, in files; those used last stay decoded in memory, ``cache`` of them.

    ``where``: the folder or list, for messages. ``captions``: each good picture's is in the ``.txt`` beside it; one
    without has an empty one. UserError without entries.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        where: str,
        *,
        scale: int = 0,
        max_bad_share: float = 0.01,
        cache: int = 64,
        captions: bool = False,
    ) -> None:
        check(bool(entries), f"{where}: no pictures there")
        self.entries, self.scale, self.cache, self.captions = list(entries), scale, cache, captions
        self.bad = BadFiles(where, len(self.entries), max_bad_share, "domain.data.max_bad_share")
        self.identity = digest_of((entry.name, _size(entry.hr), _size(entry.lq)) for entry in self.entries)
        self._kept: OrderedDict[int, Example] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()  # batches are made in a thread of their own
        for index in range(0, len(self.entries), -(-len(self.entries) // CHECKED)):
            self._check_pair(index)

    def __len__(self) -> int:
        """Return the number of files or pairs."""
        return len(self.entries)

    def name(self, index: int) -> str:
        """Return the name of the good picture."""
        return self.entries[index].name

    def example(self, index: int) -> Example:
        """Return a picture or a pair; Damaged or TrainingError for files, UserError for sizes that do not fit."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        entry = self.entries[index]
        if index in self.bad.indices:
            raise Damaged(str(entry.hr))
        hr = self._read(index, entry.hr)
        found = Example(hr)
        if entry.lq is not None:
            lq = self._read(index, entry.lq)
            check_sizes(entry, _sides(hr), _sides(lq), self.scale)
            found = common(hr, lq, self.scale)
        if self.captions:
            found = found._replace(caption=sidecar_caption(entry.hr) or "")
        with self._lock:
            self._keep(index, found)
        return found

    def _check_pair(self, index: int) -> None:
        entry = self.entries[index]
        sizes = [_claimed(path) for path in (entry.hr, entry.lq) if path is not None]
        if len(sizes) == 2 and (0, 0) not in sizes and not fits(sizes[0], sizes[1], self.scale):
            with suppress(Damaged):
                self.example(index)  # turned by its EXIF orientation it may fit

    def _read(self, index: int, path: Path) -> Pixels:
        try:
            return to_pixels(read_picture(path))
        except UserError as error:
            self.bad.add(index, str(path), error)
            raise Damaged(str(path)) from error

    def _keep(self, index: int, example: Example) -> None:
        size = _bytes(example)
        if index in self._kept or self.cache == 0 or size > MAX_CACHE:
            return
        self._kept[index] = example
        self._bytes += size
        while len(self._kept) > self.cache or self._bytes > MAX_CACHE:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def check_captions(entries: Sequence[Entry], where: str) -> None:
    """Log how many good pictures have no caption beside them; UserError when none has."""
    without = [entry for entry in entries if not entry.hr.with_suffix(".txt").is_file()]
    advice = "write it there, or let `fewstep restoration caption` do so"
    check(len(without) < len(entries), f"{where}: no picture has a caption, as NAME.txt beside it; {advice}")
    if without:
        count = f"{len(without)} of {len(entries)}"
        log.warning("%s: %s pictures have no caption, %s first; they are told the prompt", where, count, without[0].hr)


def _bytes(example: Example) -> int:
    return sum(x.numel() * x.element_size() for x in (example.hr, example.lq) if x is not None)


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return -1  # reading it will say why


def _sides(x: Pixels) -> tuple[int, int]:
    return int(x.shape[1]), int(x.shape[2])


def _claimed(path: Path) -> tuple[int, int]:
    """Return height and width as a file's header has them, zeros where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                return opened.height, opened.width
    except DAMAGED:
        return 0, 0  # reading it will say why


def fits(hr: tuple[int, int], lq: tuple[int, int], scale: int) -> bool:
    """Return whether sides are ``scale`` times those of a bad picture, but for less than ``scale`` pixels."""
    return all(large >= scale and abs(large - scale * small) < scale for large, small in zip(hr, lq, strict=True))


def check_sizes(entry: Entry, hr: tuple[int, int], lq: tuple[int, int], scale: int) -> None:
    """Raise UserError naming both files of a pair and their sizes unless they fit."""
    check(
        fits(hr, lq, scale),
        f"{entry.hr} has {hr[1]}x{hr[0]} pixels and {entry.lq} {lq[1]}x{lq[0]}: not {scale} times as many a side; "
        "give the scale or the pairs that belong together",
    )


def common(hr: Pixels, lq: Pixels, scale: int) -> Example:
    """Return what both pictures of a pair show: the good one ``scale`` times the bad one exactly."""
    height, width = (min(a // scale, b) for a, b in zip(_sides(hr), _sides(lq), strict=True))
    return Example(hr[:, : scale * height, : scale * width], lq[:, :height, :width])
