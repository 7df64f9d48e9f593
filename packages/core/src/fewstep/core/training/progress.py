"""What a person sees while a run goes on: a bar with the time left on a terminal, a plain line per report elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """What progress is written to: ``sys.stderr``, a file, a text buffer."""

    def write(self, text: str, /) -> int:
        """Take text."""

    def flush(self) -> None:
        """Show it now."""

    def isatty(self) -> bool:
        """Return whether a person looks at it."""


def clock(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def brief(values: Mapping[str, float]) -> str:
    """Return losses and metrics as ``name value`` pairs."""
    shown = {name.removeprefix("loss/"): v for name, v in values.items() if name.startswith(("loss/", "eval/"))}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


class Progress:
    """Progress from ``start`` to ``steps``; quiet when ``stream`` is None (processes other than the main one)."""

    def __init__(self, name: str, start: int, steps: int, stream: Stream | None) -> None:
        self.name, self.start, self.steps, self.stream = name, start, steps, stream
        self._since = time.monotonic()
        self._bar: Any = None
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=start, desc=name, file=stream, dynamic_ncols=True, leave=True)

    def step(self) -> None:
        """Count a step."""
        if self._bar is not None:
            self._bar.update(1)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers."""
        if self._bar is not None:
            self._bar.set_postfix_str(brief(values))
        elif self.stream is not None:
            done, seconds = step - self.start, time.monotonic() - self._since
            left = clock(seconds / done * (self.steps - step)) if done else "?"
            self._write(
                f"{self.name}: step {step}/{self.steps}  {brief(values)}  {done / seconds:.2f} it/s  ETA {left}"
            )

    def say(self, message: str) -> None:
        """Show a sentence."""
        self._write(f"{self.name}: {message}")

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        elif self.stream is not None:
            self.stream.write(line + "\n")
            self.stream.flush()

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()
