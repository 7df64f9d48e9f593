"""The watch over a run: looks at every preview's clips, says what it sees, and stops a run that stays collapsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.domain import Seen
from fewstep.core.domain import Watch as Hook
from fewstep.core.errors import TrainingError, check
from fewstep.core.tensors import precise
from fewstep.video.metrics.motion import flicker, motion_energy
from fewstep.video.watching.alarms import KINDS, Alarm, Thresholds, alarms
from fewstep.video.watching.causes import LATENTS

TEACHER = "teacher"  # what the label of a preview's row of teacher's clips begins with


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is done about a collapse seen at a preview.

    ``stop``: end the run; ``patience``: after how many previews in a row; ``grace``: the step up to which alarms are
    only said. ``thresholds``: what a collapse is.
    """

    stop: bool = False
    patience: int = 2
    grace: int = 0
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        check(self.patience >= 1, f"domain.watch.patience must be at least 1, got {self.patience}")
        check(self.grace >= 0, f"domain.watch.grace must not be negative, got {self.grace}")


@dataclass
class Watch:
    """Alarms of one look after the other.

    ``stop``: whether the run is ended once every student row has been in alarm at ``patience`` looks in a row, at once
    for values that are not finite. Looks up to step ``grace`` only speak: an untrained student may be anything. Raises
    UserError for a patience under 1.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    stop: bool = False
    patience: int = 2
    grace: int = 0
    bad_looks: int = 0
    """Looks in a row, the last included, at which every student row was in alarm."""
    found: dict[str, list[Alarm]] = field(default_factory=dict)
    """The alarms of the last look, by the students' labels."""

    def __post_init__(self) -> None:
        check(self.patience >= 1, f"watching: patience must be at least 1, got {self.patience}")

    def look(
        self, step: int, rows: Sequence[tuple[str, Tensor]], signals: Mapping[str, float] | None = None
    ) -> list[str]:
        """Return one line per alarm in labelled rows of decoded clips "n c f h w", as a preview holds them.

        A row whose label begins with ``teacher`` is what the others are judged by. Raises TrainingError, naming the
        alarms, when the run must stop.
        """
        teacher = next((clips for label, clips in rows if label.startswith(TEACHER)), None)
        found = self.found = {
            label: alarms(clips, self.thresholds, teacher=teacher, signals=signals)
            for label, clips in rows
            if not label.startswith(TEACHER)
        }
        lines = [f"step {step}, {label}: {alarm.text()}" for label, each in found.items() for alarm in each]
        if step > self.grace and found:
            self.bad_looks = self.bad_looks + 1 if all(found.values()) else 0
            dead = all(any(alarm.kind == "not finite" for alarm in each) for each in found.values())
            if self.stop and (dead or self.bad_looks >= self.patience):
                raise TrainingError(f"collapse, the run is stopped ({lines[0]}); resume from an earlier checkpoint")
        return lines


def make_watch(config: WatchConfig, decode: Callable[[Tensor], Tensor]) -> Hook:
    """Return the hook of a domain (``Problem.watch``) whose rows of latents ``decode`` makes clips of.

    Its numbers, by row: ``watch/motion_ratio`` of the student's motion energy to the teacher's, ``watch/flicker``, and
    ``collapse/...``, the shares of clips in alarm.
    """
    watch = Watch(config.thresholds, config.stop, config.patience, config.grace)

    def look(step: int, rows: Sequence[tuple[str, Tensor]], signals: Mapping[str, float]) -> Seen:
        clips = [(label, decode(latents)) for label, latents in rows]
        students = [latents.flatten() for label, latents in rows if not label.startswith(TEACHER)]
        spread = {LATENTS: float(precise(torch.cat(students)).std())} if students else {}
        lines = watch.look(step, clips, {**signals, **spread})
        values = amounts(clips)
        for label, found in watch.found.items():
            values |= {f"{name}/{short(label)}": share for name, share in shares(found).items()}
        return Seen(lines, values)

    return look


def amounts(rows: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
    """Return flicker of labelled rows of clips, and motion energy over the teacher's, where that moves."""
    energy = {label: float(motion_energy(clips).mean()) for label, clips in rows}
    usual = next((energy[label] for label in energy if label.startswith(TEACHER)), 0.0)
    found = {f"watch/flicker/{short(label)}": float(flicker(clips).mean()) for label, clips in rows}
    for label in energy if usual > 0 else ():
        if not label.startswith(TEACHER):
            found[f"watch/motion_ratio/{short(label)}"] = energy[label] / usual
    return found


def short(label: str) -> str:
    """Return ``4 steps`` for ``student, 4 steps``, and ``teacher`` for a teacher's label."""
    return TEACHER if label.startswith(TEACHER) else label.rpartition(", ")[2]


def shares(found: Sequence[Alarm]) -> dict[str, float]:
    """Return the share of clips in alarm by kind, 0 for those without one: numbers for trackers."""
    by_kind = {alarm.kind: alarm.share for alarm in found}
    return {f"collapse/{kind.replace(' ', '_')}": by_kind.get(kind, 0.0) for kind in KINDS}
