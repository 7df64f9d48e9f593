"""A picture apart from its file: colours, alpha, and what is needed to write it as it came."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "CMYK": 3}
DEPTHS = (8, 16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An upright picture; ValueError when its parts contradict each other.

    ``colours``: float32 in [0, 1], not multiplied by alpha, one channel for gray and three for all else.
    ``alpha``: 1 is opaque, there exactly for the modes LA and RGBA.
    ``mode`` and ``bits``: how it is written, in Pillow's names and per channel.
    ``exif``: without an orientation, which is already applied. ``icc``: the profile the colours are in.
    """

    colours: Float[Tensor, "c h w"]
    mode: str
    bits: int = 8
    alpha: Float[Tensor, "1 h w"] | None = None
    exif: bytes | None = None
    icc: bytes | None = None

    def __post_init__(self) -> None:
        if self.mode not in COLOURS or self.bits not in DEPTHS:
            raise ValueError(f"mode {self.mode} of {self.bits} bits, valid are {', '.join(COLOURS)} of {DEPTHS} bits")
        if self.colours.ndim != 3 or len(self.colours) != COLOURS[self.mode]:
            raise ValueError(f"mode {self.mode} with colours of shape {tuple(self.colours.shape)}")
        if (self.alpha is not None) != self.mode.endswith("A"):
            raise ValueError(f"mode {self.mode} {'without' if self.alpha is None else 'with'} alpha")
        if self.alpha is not None and self.alpha.shape != (1, *self.size):
            raise ValueError(f"alpha of shape {tuple(self.alpha.shape)} for colours of {self.size}")

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.colours.shape[1], self.colours.shape[2]
