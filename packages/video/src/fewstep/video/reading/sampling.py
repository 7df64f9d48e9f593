"""Which frames of a video make a clip, and which part of them: pure functions, and draws by (seed, epoch, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import UserError, check
from fewstep.core.rng import Rng
from fewstep.video.reading.info import ClipInfo

Short = Literal["skip", "shorten", "loop", "repeat_last"]


class TooShort(UserError):
    """A video with fewer frames than a clip needs, where it is to be skipped."""


class NoRate(UserError):
    """A video that does not say how many frames a second it shows, where that is needed."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A clip: ``frames`` of a video, every ``interval``-th, or as many apart as come nearest to ``fps`` a second.

    ``start``: where in the video. ``short``, for videos with too few frames: ``skip`` them, ``shorten`` the interval,
    ``loop`` the video, or ``repeat_last``, its last frame. ``size``: (height, width) in pixels, cropped after resizing
    the video to the smallest size that covers it; ``crop``: where; ``flip``: left and right swapped half of the time.
    """

    frames: int = 16
    interval: int = 1
    fps: float = 0.0
    start: Literal["random", "first", "centre"] = "random"
    short: Short = "skip"
    size: tuple[int, int] = (256, 256)
    crop: Literal["random", "centre"] = "centre"
    flip: bool = False

    def __post_init__(self) -> None:
        check(self.frames >= 1, f"frames must be at least 1, got {self.frames}")
        check(self.interval >= 1, f"interval must be at least 1, got {self.interval}")
        check(self.fps >= 0, f"fps must not be negative, got {self.fps:g}")
        check(self.fps == 0 or self.interval == 1, "fps and interval: give one of the two")
        check(min(self.size) >= 1, f"size must be positive, got {self.size}")

    def __str__(self) -> str:
        """Return the settings in words."""
        rate = (
            f"{self.fps:g} a second" if self.fps else "all of them" if self.interval == 1 else f"1 in {self.interval}"
        )
        flip = ", half of them mirrored" if self.flip else ""
        height, width = self.size
        where = f"start {self.start}, crop {self.crop}, short {self.short}{flip}"
        return f"{self.frames} frames of {height}x{width}, {rate}, {where}"

    @property
    def random(self) -> bool:
        """Whether clips of one video differ."""
        return self.start == "random" or self.crop == "random" or self.flip


@dataclass(frozen=True)
class Draw:
    """Where a clip lies: ``start`` in time, ``top`` and ``left``, all as fractions in [0, 1); ``flip``: mirrored."""

    start: float
    top: float
    left: float
    flip: bool


@dataclass(frozen=True)
class Window:
    """What to read: frames ``indices`` at the ``resized`` (height, width), out of which the clip's size is cropped."""

    indices: tuple[int, ...]
    resized: tuple[int, int]
    top: int
    left: int
    flip: bool


def draw(config: ClipConfig, seed: int, epoch: int, index: int) -> Draw:
    """Return where the clip of a video lies: a function of (seed, epoch, index) alone."""
    start, top, left, flip = Rng(seed, epoch, (index,)).uniform("clip", (4,))[0].tolist()
    fixed = {"random": start, "first": 0.0, "centre": 0.5}[config.start]
    top, left = (top, left) if config.crop == "random" else (0.5, 0.5)
    return Draw(fixed, top, left, config.flip and flip < 0.5)


def window(config: ClipConfig, info: ClipInfo, drawn: Draw) -> Window:
    """Return what to read of a video; TooShort for one that is to be skipped, NoRate where its fps is not known."""
    interval = interval_of(config, info.fps)
    indices = clip_indices(info.frames, config.frames, interval, drawn.start, config.short)
    resized = covering((info.height, info.width), config.size)
    top, left = (
        place(f, whole - side) for f, whole, side in zip((drawn.top, drawn.left), resized, config.size, strict=True)
    )
    return Window(tuple(indices), resized, top, left, drawn.flip)


def interval_of(config: ClipConfig, fps: float) -> int:
    """Return the interval in frames, for a video of ``fps``; NoRate where its rate is needed and unknown."""
    if config.fps == 0:
        return config.interval
    if fps <= 0:
        raise NoRate(f"fps={config.fps:g}: the video does not say its own rate; give an interval instead")
    return max(1, round(fps / config.fps))


def span(frames: int, interval: int) -> int:
    """Return how many frames of a video lie from a clip's first to its last."""
    return (frames - 1) * interval + 1


def clip_indices(total: int, frames: int, interval: int, start: float, short: Short = "skip") -> list[int]:
    """Return a clip's indices among ``total`` frames, equally spaced from a start that is uniform when ``start`` is.

    With too few frames, ``short`` decides as in :class:`ClipConfig`; TooShort for ``skip``, and for ``shorten`` when
    even neighbours are too few, or there is no frame at all.
    """
    needed = span(frames, interval)
    if total < needed and short == "shorten" and total >= frames:
        interval = (total - 1) // (frames - 1)
        needed = span(frames, interval)
    if total >= needed:
        first = place(start, total - needed)
        return list(range(first, first + needed, interval))
    if total < 1 or short in ("skip", "shorten"):
        way = "shorten the interval, loop or repeat_last" if total >= frames else "loop or repeat_last"
        raise TooShort(f"{total} frames, and {needed} are needed: {way} would use it")
    if short == "loop":
        return [number * interval % total for number in range(frames)]
    return [min(number * interval, total - 1) for number in range(frames)]


def place(fraction: float, room: int) -> int:
    """Return the place in 0..room that a fraction in [0, 1) means; each is equally likely for a uniform fraction."""
    return min(int(fraction * (room + 1)), room)


def covering(sides: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (height, width) of the same shape as ``sides`` that a crop of ``size`` fits in."""
    scale = max(wanted / side for wanted, side in zip(size, sides, strict=True))
    height, width = (max(wanted, round(scale * side)) for wanted, side in zip(size, sides, strict=True))
    return height, width
