"""What the drawn world holds: its sizes, things and speeds, the words for them, and how well it is filmed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.core.errors import check, nearest

SHAPES = ("disc", "ring", "square", "diamond", "triangle", "cross")
DIGITS = tuple(str(digit) for digit in range(10))
TEXTURES = ("clouds", "speckles")
NAMES = (*SHAPES, *DIGITS, *TEXTURES)
CONTENT = ("shapes", "digits", "textures")
EDGES = ("bounce", "wrap")
# hues at every sixth of the colour circle, so that a pixel's hue tells whose it is
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
GROUNDS = ("black", "white")
# counter-clockwise as seen, every eighth of a turn
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
PACES = ("slowly", "fast")
REFERENCE_SIDE = 32
MAX_ELEMENTS = 2**28  # of one clip: bounds the memory of rendering to a few GB


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """A world of clips.

    ``content``: which of shapes, digits and textures there are; a texture fills the picture. ``objects``: the most in
    a clip, all of different colours. ``edges``: what happens at the border, bounce or wrap (textures always wrap).
    ``radius``: of objects, least and most, as a share of the shorter side. ``slow``, ``fast``: least and most pixels a
    frame where the shorter side is 32 pixels, in proportion elsewhere. ``jitter``: the most degrees by which a
    direction leaves its word. UserError for values out of range.
    """

    frames: int = 8
    height: int = 32
    width: int = 32
    content: tuple[str, ...] = ("shapes",)
    objects: int = 2
    edges: str = "bounce"
    radius: tuple[float, float] = (0.13, 0.18)
    slow: tuple[float, float] = (0.6, 1.0)
    fast: tuple[float, float] = (1.8, 2.4)
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _whole("frames", self.frames, 1, 4096)
        _whole("height", self.height, 16, 4096)
        _whole("width", self.width, 16, 4096)
        _whole("objects", self.objects, 1, len(COLOURS))
        elements = 3 * self.frames * self.height * self.width
        check(
            elements <= MAX_ELEMENTS, f"world: frames x height x width make a clip of more than {MAX_ELEMENTS} values"
        )
        check(bool(self.content), f"world: content names nothing; give some of {', '.join(CONTENT)}")
        for name in self.content:
            check(name in CONTENT, f"world: content has no '{name}'; {nearest(name, CONTENT)}")
        check(self.edges in EDGES, f"world: edges='{self.edges}' is unknown; {nearest(self.edges, EDGES)}")
        _range("radius", self.radius, 0.02, 0.25)
        _range("slow", self.slow, 0.0, 8.0)
        _range("fast", self.fast, 0.0, 8.0)
        check(self.slow[1] < self.fast[0], f"world: slow={self.slow} must end below fast={self.fast}")
        check(math.isfinite(self.jitter) and 0 <= self.jitter < 22.5, f"world: jitter={self.jitter} must be in 0..22.5")

    @property
    def side(self) -> int:
        """Pixels of the shorter side."""
        return min(self.height, self.width)

    @property
    def unit(self) -> float:
        """Pixels here for one pixel where the shorter side is 32."""
        return self.side / REFERENCE_SIDE


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How the world is filmed, a linear map of its colours.

    ``blur``: standard deviation of a Gaussian, in pixels where the shorter side is 32. ``contrast``: share of the
    distance from ``haze`` that remains. ``saturation``: share of the distance from gray that remains. UserError for
    values out of range.
    """

    blur: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    haze: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("blur", 8.0), ("contrast", 1.0), ("saturation", 1.0), ("haze", 1.0)):
            value = getattr(self, name)
            check(math.isfinite(value) and 0 <= value <= most, f"world: {name}={value} must be in 0..{most:g}")


HIGH = Quality()
LOW = Quality(blur=1.0, contrast=0.55, saturation=0.6, haze=0.6)


def _whole(name: str, value: int, low: int, high: int) -> None:
    check(
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
        f"world: {name}={value} must be a whole number from {low} to {high}",
    )


def _range(name: str, value: tuple[float, float], low: float, high: float) -> None:
    good = len(value) == 2 and low <= value[0] <= value[1] <= high
    check(good, f"world: {name}={value} must be a least and a most, both from {low:g} to {high:g}")
