"""Line charts as inline SVG: no script, no font, no request to anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 26
MAX_POINTS = 400  # per line: more than pixels would only make the page heavy

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in pixels and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A named polyline: ``points`` as SVG writes them, and its ``last`` value as text. ``index`` chooses the colour."""

    name: str
    points: str
    last: str
    index: int


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    log: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def number(value: float) -> str:
    """Return a number as a reader wants it: four digits that count."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers within [low, high], about ``count`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def make_chart(title: str, series: Mapping[str, Series]) -> Chart:
    """Return a chart of named ``(step, value)`` series; values that are not finite are left out.

    The vertical axis is logarithmic when all values are positive and span more than a factor of 50.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    if not ys:
        return Chart(title, (), (), (), False)
    log = min(ys) > 0 and max(ys) / min(ys) > 50
    low, high = _range([math.log10(y) for y in ys] if log else ys)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        place = math.log10(y) if log else y
        return HEIGHT - BOTTOM - (place - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = []
    for index, (name, points) in enumerate(kept.items()):
        stride = -(-len(points) // MAX_POINTS)
        shown = points[::stride] + points[-1:] * ((len(points) - 1) % stride > 0)
        text = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in shown)
        lines.append(Line(name, text, number(points[-1][1]), index % 6))
    if log:
        marks = [10.0**k for k in range(math.ceil(low), math.floor(high) + 1)] or [10**low, 10**high]
    else:
        marks = nice_ticks(low, high)
    return Chart(
        title,
        lines,
        [Tick(across(x), number(x)) for x in nice_ticks(x_low, x_high)],
        [Tick(down(y), number(y)) for y in marks[:: max(1, len(marks) // 5)]],
        log,
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin
