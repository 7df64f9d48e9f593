"""Damaged files: skipped, named once in the log, counted, and too many once there are too many."""

from __future__ import annotations

import logging

from fewstep.core.errors import TrainingError

log = logging.getLogger("fewstep.data")


class Damaged(Exception):
    """A sample that cannot be read; it has been counted, and another one takes its place."""


class BadFiles:
    """The samples of ``where`` that turned out unreadable, by index; more than ``max_bad_share`` of ``total`` stop.

    ``setting``: what a person changes to allow more.
    """

    def __init__(self, where: str, total: int, max_bad_share: float, setting: str = "max_bad_share") -> None:
        self.where, self.total, self.max_bad_share, self.setting = where, total, max_bad_share, setting
        self.indices: set[int] = set()

    def add(self, index: int, name: str, error: Exception) -> None:
        """Count a sample, once; TrainingError above the ceiling."""
        if index in self.indices:
            return
        self.indices.add(index)
        # Pillow repeats the path, which the message already starts with
        reason = (str(error) or type(error).__name__).splitlines()[0].replace(name, "it")
        log.warning("%s: skipped, cannot be read (%s)", name, reason)
        if len(self.indices) / self.total > self.max_bad_share:
            raise TrainingError(
                f"{self.where}: {len(self.indices)} of {self.total} images cannot be read, more than "
                f"{self.setting}={self.max_bad_share:g}; the last one was {name} ({reason})"
            )
