"""Students side by side, with marks that keep a frozen or flickering one from winning unnoticed.

Most numbers reward standing still: consistency, smoothness and flickering are best for a still, and distances of
frames and similarities to prompts do not see motion at all. Here every student is judged for motion against the
teacher first, and only those that pass compete for the best of a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.video.metrics.motion import PER_SECOND, Motion, motion

Better = Literal["lower", "higher"]
BEST, OUT = " *", " !"


@dataclass(frozen=True, kw_only=True)
class MotionLimits:
    """When a student's motion disqualifies it, beside the teacher's.

    ``still``: share of the teacher's motion energy under which it is frozen; ``slow``: under which it is slowed;
    ``restless``: above which it is restless, unless its speed, which contrast leaves alone, stays below the square root
    of that; ``flicker``: by how much its flicker may exceed the teacher's; ``moving``: share of the teacher's dynamic
    degree under which it is frozen, too, since a few clips can carry the whole energy.
    """

    still: float = 0.1
    slow: float = 0.5
    restless: float = 3.0
    flicker: float = 0.25
    moving: float = 0.25

    def __post_init__(self) -> None:
        for name in ("still", "slow", "restless", "flicker", "moving"):
            value = getattr(self, name)
            check(math.isfinite(value) and value >= 0, f"limits.{name} must not be negative, got {value:g}")
        check(self.still <= self.slow <= self.restless, "limits: still, slow and restless must not decrease")


@dataclass(frozen=True)
class Verdict:
    """A student's motion beside the teacher's: ``mark`` is "" when all is well, ``why`` says it with numbers."""

    mark: Literal["", "frozen", "slowed", "restless", "flickers", "not finite"]
    why: str
    energy_ratio: float
    speed_ratio: float
    dynamic_degree: float
    flicker: float


@dataclass(frozen=True)
class Row:
    """A student in a comparison: its metrics by name, and its motion's verdict."""

    name: str
    values: Mapping[str, float]
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Rows, the direction of every metric, and what else the reader must know (protocols)."""

    rows: Sequence[Row]
    better: Mapping[str, Better]
    notes: Sequence[str] = field(default=())

    def best(self, metric: str) -> Row | None:
        """Return the best row of a metric among those without a mark; None when there is none.

        Raises UserError for a metric without a direction.
        """
        check(metric in self.better, f"the comparison does not know whether '{metric}' is better lower or higher")
        sign = 1 if self.better[metric] == "lower" else -1
        fit = [row for row in self.rows if not row.verdict.mark and math.isfinite(row.values.get(metric, math.nan))]
        return min(fit, key=lambda row: sign * row.values[metric], default=None)

    def text(self) -> str:
        """Return the table: the best of each column with ``*``, students out of competition with ``!`` and why."""
        from fewstep.core.report.tables import cell, table  # brings the reports along

        winners = {metric: self.best(metric) for metric in self.better}
        shown: list[dict[str, Any]] = []
        for row in self.rows:
            out = OUT if row.verdict.mark else ""
            line: dict[str, Any] = {"student": f"{row.name}{out}", "motion": row.verdict.mark or "kept"}
            line |= {"energy ratio": row.verdict.energy_ratio, "speed ratio": row.verdict.speed_ratio}
            line |= {"dynamic degree": row.verdict.dynamic_degree, "flicker": row.verdict.flicker}
            for metric, value in row.values.items():
                line[metric] = f"{cell(value)}{BEST if winners.get(metric) is row else ''}"
            shown.append(line)
        marked = [f"! {row.name}: {row.verdict.why}; it wins nothing here" for row in self.rows if row.verdict.mark]
        return "\n".join([table(shown), *marked, *self.notes])


def judge(
    student: Float[Tensor, "n c f h w"],
    teacher: Float[Tensor, "m _ _ _ _"],
    limits: MotionLimits | None = None,
    *,
    fps: float = PER_SECOND,
) -> Verdict:
    """Return the verdict on clips in [-1, 1] beside the teacher's of the same size, number of frames and rate.

    A teacher whose own clips are stills lets stills pass. Raises UserError for clips of different shapes and for a
    teacher that is not finite.
    """
    limits = limits or MotionLimits()
    sizes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
    check(sizes[0] == sizes[1], f"clips of {sizes[0]} cannot be judged beside a teacher's of {sizes[1]}")
    check(bool(teacher.isfinite().all()), "the teacher's clips are not finite: nothing can be judged beside them")
    if not bool(student.isfinite().all()):
        return Verdict("not finite", "some values are not finite", *[math.nan] * 4)
    return weigh(motion(student, fps=fps), motion(teacher, fps=fps), limits)


def weigh(student: Motion, teacher: Motion, limits: MotionLimits) -> Verdict:
    """Return the verdict on motion statistics; see :func:`judge`."""
    own, real = student.means(), teacher.means()
    energy, speed = (_share(own[name], real[name]) for name in ("energy", "speed"))
    degree, wanted = own["dynamic_degree"], real["dynamic_degree"]
    seen = energy, speed, degree, own["flicker"]
    if energy < limits.still or degree < limits.moving * wanted:
        why = f"frozen: {energy:.2g} of the teacher's motion energy, {degree:.2g} of its clips move ({wanted:.2g})"
        return Verdict("frozen", why, *seen)
    if energy < limits.slow:
        return Verdict("slowed", f"slowed: {energy:.2g} of the teacher's motion energy", *seen)
    if own["flicker"] > real["flicker"] + limits.flicker:
        why = f"flickers: {own['flicker']:.2g} of its change is undone by the next frame ({real['flicker']:.2g})"
        return Verdict("flickers", why, *seen)
    if energy > limits.restless and speed > limits.restless**0.5:  # more contrast raises energy alone
        return Verdict("restless", f"restless: {energy:.2g} times the teacher's motion energy", *seen)
    return Verdict("", "", *seen)


def _share(own: float, real: float) -> float:
    """Return ``own / real``; 1 when both are 0, infinite when only the teacher is still."""
    if real == 0:
        return 1.0 if own == 0 else math.inf
    return own / real
