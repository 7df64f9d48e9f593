"""What is said about a clip: where it lies, what is in it, why it cannot be read, what reading it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep.core.errors import UserError, check

MAX_PIXELS = 2**26  # of a frame, and of what it is resized to


class Unreadable(UserError):
    """A clip that cannot be read; the message is one line, ``name: reason``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class ClipInfo:
    """What a clip holds, as it is shown: ``width`` and ``height`` after ``rotation``, in degrees counterclockwise.

    ``frames``: how many a decoder will return, found by walking through the file rather than from its header.
    ``fps``: the average; 0 where the file does not say, as for a folder of images. ``seconds``: frames / fps, or 0.
    """

    width: int
    height: int
    frames: int
    fps: float
    seconds: float
    rotation: int
    has_video: bool
    codec: str


@dataclass(frozen=True)
class ClipSource:
    """A video file, a folder of images, or ``size`` bytes at ``offset`` of an archive (``member`` is their name)."""

    path: Path
    offset: int = 0
    size: int = -1
    member: str = ""

    @property
    def name(self) -> str:
        """The path, and the name inside an archive."""
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class Limits:
    """What decoding one clip may take: ``seconds`` of processor time, ``wait`` seconds by the clock, MiB of ``memory``.

    The clock's limit is for decoders that wait for what never comes; on a busy machine it must not be the first to
    strike. ``memory`` is the decoder's own, and once more for the frames it returns.
    """

    seconds: float = 60.0
    wait: float = 600.0
    memory: int = 2048

    def __post_init__(self) -> None:
        check(self.seconds > 0, f"limits.seconds must be positive, got {self.seconds:g}")
        check(self.wait > 0, f"limits.wait must be positive, got {self.wait:g}")
        check(self.memory >= 16, f"limits.memory must be at least 16 MiB, got {self.memory}")
