"""Damaged files: skipped, named once in the log, counted, and too many once there are too many."""

from __future__ import annotations

import logging
from collections.abc import KeysView

from fewstep.core.errors import TrainingError

log = logging.getLogger("fewstep.data")


class Damaged(Exception):
    """A sample that cannot be read; it has been counted, and another one takes its place."""


class BadFiles:
    """The files of ``where`` that turned out unreadable, by index; more than ``max_bad_share`` of ``total`` stop.

    ``refused``: of each, its name and the reason, in one line. ``setting``: what a person changes to allow more.
    ``kind``: the word for the files.
    """

    def __init__(
        self, where: str, total: int, max_bad_share: float, setting: str = "max_bad_share", kind: str = "images"
    ) -> None:
        self.where, self.total, self.max_bad_share = where, total, max_bad_share
        self.setting, self.kind = setting, kind
        self.refused: dict[int, str] = {}

    @property
    def indices(self) -> KeysView[int]:
        """Which files they are."""
        return self.refused.keys()

    def add(self, index: int, name: str, error: Exception) -> None:
        """Count a file, once; TrainingError above the ceiling."""
        if index in self.refused:
            return
        # Pillow repeats the path, which the message already starts with
        reason = (str(error) or type(error).__name__).splitlines()[0].removeprefix(f"{name}: ").replace(name, "it")
        self.refused[index] = f"{name}: {reason}"
        log.warning("%s: skipped, cannot be read (%s)", name, reason)
        if len(self.refused) / self.total > self.max_bad_share:
            raise TrainingError(
                f"{self.where}: {len(self.refused)} of {self.total} {self.kind} cannot be read, more than "
                f"{self.setting}={self.max_bad_share:g}; the last one was {name} ({reason})"
            )
