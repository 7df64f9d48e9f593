"""What prepared data takes, in words: samples, captions, bytes, time."""

from __future__ import annotations

from dataclasses import dataclass

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
TIMES = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Cost:
    """What prepared data takes: samples of a ``kind``, different captions, bytes on the disk.

    ``seconds``: to prepare all of it here, where that was measured. ``refused``: names of the files that gave no
    sample, with the reasons; ``files``: how many there are in all. ``evaluations``: of the teacher's network, where it
    samples; guided ones count twice.
    """

    samples: int
    texts: int
    kind: str
    bytes: int
    seconds: float | None = None
    refused: tuple[str, ...] = ()
    files: int = 0
    evaluations: int = 0

    def __str__(self) -> str:
        """Return the cost in words."""
        what = f"{self.samples} {self.kind}, {self.texts} different captions"
        time = "" if self.seconds is None else f", about {in_time(self.seconds)} here"
        runs = f", {self.evaluations} evaluations of the network" if self.evaluations else ""
        return f"{what}: {in_units(self.bytes)} on the disk{runs}{time}"


def in_units(size: int) -> str:
    """Return a number of bytes as people write it."""
    return next((f"{size / least:.1f} {unit}" for least, unit in UNITS if size >= least), f"{size} bytes")


def in_time(seconds: float) -> str:
    """Return a time as people say it."""
    return next((f"{seconds / least:.3g} {unit}" for least, unit in TIMES if seconds >= least), "1 s")
