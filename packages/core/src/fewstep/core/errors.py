"""The one error type for mistakes a user can make and mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user gave is wrong; the message names it and says what to do, on one line.

    The command line prints the message without a traceback and exits with status 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on (non-finite loss, too many bad samples, disk full); the message names the cause.

    The command line prints the message without a traceback and exits with status 3.
    """


def check(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'? "``-style advice for a misspelt ``name``, or the valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid: " + ", ".join(names)
