"""Collapse alarms: pure functions of clips and thresholds.

Four ways a video student dies: values that are not finite, a single colour, a still, oversaturated frames. Each is
looked for clip by clip; an alarm is raised when most of the clips have gone that way and the teacher's have not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise, sample_mean
from fewstep.video.metrics.motion import motion_energy
from fewstep.video.watching.causes import likely_cause

Kind = Literal["not finite", "single colour", "still", "oversaturated"]
KINDS: tuple[Kind, ...] = ("not finite", "single colour", "still", "oversaturated")  # in this order of precedence
EDGE = 0.99  # a value beyond it is at an end of [-1, 1]: within two 8-bit levels


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Limits of a healthy clip, and how many clips must be beyond them; UserError for values not in (0, 1].

    ``contrast``, ``movement``: under them a clip is a single colour, or a still; with a teacher ``relative`` times its
    mean takes their place, so that neither a calm nor a lively style is judged by a constant. ``clipped``, ``chroma``:
    above either of them a clip is oversaturated; with a teacher its mean plus ``excess``, where that is more.
    ``clips``: the share of the clips that makes an alarm, among those the teacher leaves healthy. The quantities are
    those of :class:`Health`.
    """

    contrast: float = 0.04
    movement: float = 0.01
    clipped: float = 0.5
    chroma: float = 0.7
    relative: float = 0.2
    excess: float = 0.2
    clips: float = 0.5

    def __post_init__(self) -> None:
        for name in ("contrast", "movement", "clipped", "chroma", "relative", "excess", "clips"):
            value = getattr(self, name)
            check(0 < value <= 1, f"watching: {name} must be in (0, 1], got {value:g}")


@dataclass(frozen=True)
class Health:
    """Statistics of clips, "b" each; clips that are not finite count as gray in all but ``finite``.

    ``contrast``: mean spatial standard deviation of the frames' channels; ``movement``: root of the motion energy, one
    8-bit level being 0.008; ``clipped``: share of values at or beyond an end of the range; ``chroma``: mean distance of
    the largest and the smallest channel over the range; ``frames``: of each clip.
    """

    finite: Bool[Tensor, " b"]
    contrast: Float[Tensor, " b"]
    movement: Float[Tensor, " b"]
    clipped: Float[Tensor, " b"]
    chroma: Float[Tensor, " b"]
    frames: int


@dataclass(frozen=True)
class Alarm:
    """A collapse: its kind, the share of the clips in it, the first of them, what was seen and the likely cause."""

    kind: Kind
    share: float
    first: int
    seen: str
    cause: str

    def text(self) -> str:
        """Return the alarm on one line."""
        return f"{self.kind}: {self.share:.0%} of the clips, {self.seen}; likely cause: {self.cause}"


def health(clips: Float[Tensor, "b c f h w"]) -> Health:
    """Return the statistics of decoded clips, nominally in [-1, 1]; UserError for none."""
    check(clips.numel() > 0, "there are no clips to watch")
    x = precise(clips)
    finite = x.isfinite().flatten(1).all(1)
    x = torch.where(finite.reshape(-1, 1, 1, 1, 1), x, torch.zeros_like(x))
    kept = x.clamp(-1, 1)
    return Health(
        finite,
        sample_mean(kept.std((-2, -1), correction=0)),
        motion_energy(kept).sqrt(),
        sample_mean((x.abs() >= EDGE).to(x.dtype)),
        sample_mean(kept.amax(1) - kept.amin(1)) / 2,
        x.shape[2],
    )


def alarms(
    clips: Float[Tensor, "b c f h w"],
    thresholds: Thresholds | None = None,
    *,
    teacher: Float[Tensor, "n c f h w"] | None = None,
    signals: Mapping[str, float] | None = None,
) -> list[Alarm]:
    """Return the alarms of decoded clips, nominally in [-1, 1], in the order of :data:`KINDS`; none for healthy ones.

    ``teacher``: its clips under prompts of the same sort; their own share of such clips is no collapse. ``signals``:
    numbers of the run that tell causes apart (:mod:`.causes`). A clip counts under the first kind that fits it, and
    one clip that is not finite is enough; clips of one frame are never called still. UserError for a teacher whose
    clips are not finite.
    """
    limits = thresholds or Thresholds()
    own, usual = health(clips), dict.fromkeys(KINDS, 0.0)
    if teacher is not None:
        base = health(teacher)
        check(bool(base.finite.all()), "the teacher's clips are not finite: nothing can be judged beside them")
        limits = _beside(limits, base)
        usual = {kind: float(flags.double().mean()) for kind, flags in _collapsed(base, limits).items()}
    found = []
    for kind, flags in _collapsed(own, limits).items():
        share = float(flags.double().mean())
        many = share > 0 if kind == "not finite" else share - usual[kind] >= limits.clips * (1 - usual[kind])
        if many and share > usual[kind]:
            cause = likely_cause(kind, signals or {})
            found.append(Alarm(kind, share, int(flags.int().argmax()), _seen(kind, flags, own, limits), cause))
    return found


def _beside(limits: Thresholds, teacher: Health) -> Thresholds:
    """Return the limits a teacher's clips call for; a low one of 0 never acts, nor does a high one of 1."""
    least = torch.finfo(torch.float32).tiny
    return replace(
        limits,
        contrast=max(limits.relative * float(teacher.contrast.mean()), least),
        movement=max(limits.relative * float(teacher.movement.mean()), least),
        clipped=min(max(limits.clipped, float(teacher.clipped.mean()) + limits.excess), 1.0),
        chroma=min(max(limits.chroma, float(teacher.chroma.mean()) + limits.excess), 1.0),
    )


def _collapsed(seen: Health, limits: Thresholds) -> dict[Kind, Bool[Tensor, " b"]]:
    """Return which clips are beyond the limits, by kind, each clip under the first that fits."""
    by_kind: dict[Kind, Tensor] = {
        "not finite": ~seen.finite,
        "single colour": seen.contrast < limits.contrast,
        "still": (seen.movement < limits.movement) & (seen.frames > 1),
        "oversaturated": (seen.clipped > limits.clipped) | (seen.chroma > limits.chroma),
    }
    taken = torch.zeros_like(seen.finite)
    for kind in KINDS:
        by_kind[kind] = by_kind[kind] & ~taken
        taken = taken | by_kind[kind]
    return by_kind


def _seen(kind: Kind, flags: Tensor, own: Health, limits: Thresholds) -> str:
    """Return what is wrong with the clips flagged, with the means that crossed a limit."""
    if kind == "not finite":
        return "which hold NaN or infinity"
    names = {"single colour": ("contrast",), "still": ("movement",), "oversaturated": ("clipped", "chroma")}[kind]
    return ", ".join(
        f"{name} {float(getattr(own, name)[flags].mean()):.2g} (limit {getattr(limits, name):.2g})" for name in names
    )
