"""The watch over a run: looks at every preview's clips, says what it sees, and stops a run that stays collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.core.errors import TrainingError, check
from fewstep.video.watching.alarms import KINDS, Alarm, Thresholds, alarms

TEACHER = "teacher"  # what the label of a preview's row of teacher's clips begins with


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
        found = {
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


def shares(found: Sequence[Alarm]) -> dict[str, float]:
    """Return the share of clips in alarm by kind, 0 for those without one: numbers for trackers."""
    by_kind = {alarm.kind: alarm.share for alarm in found}
    return {f"collapse/{kind.replace(' ', '_')}": by_kind.get(kind, 0.0) for kind in KINDS}
