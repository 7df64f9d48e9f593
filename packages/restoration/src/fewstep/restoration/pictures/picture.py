"""A picture apart from its file: colours, alpha, and what is needed to write it as it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3, "CMYK": 3}
DEPTHS = (8, 16)
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}  # by bits


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """A picture as files hold it, without a copy in floating point; ValueError for values that are no such picture.

    ``values``: "h w c", uint8 or uint16, colours (gray, or RGB also for CMYK) before alpha. The rest: see `Picture`.
    """

    values: npt.NDArray[Any]
    mode: str
    exif: bytes | None = None
    icc: bytes | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.values.shape, self.values.dtype
        known = self.mode in COLOURS and dtype in DTYPES.values()
        if not known or len(shape) != 3 or shape[2] != COLOURS[self.mode] + self.mode.endswith("A"):
            raise ValueError(f"mode {self.mode} with values of shape {shape} of {dtype}")

    @property
    def bits(self) -> int:
        """Return the bits of a channel."""
        return 8 * self.values.dtype.itemsize

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.values.shape[0], self.values.shape[1]

    def picture(self) -> Picture:
        """Return the same picture in floating point."""
        x = torch.from_numpy(self.values.astype(np.float32)).permute(2, 0, 1) / (2**self.bits - 1)
        alpha = x[-1:] if self.mode.endswith("A") else None
        colours = x[: COLOURS[self.mode]]
        return Picture(colours=colours, mode=self.mode, bits=self.bits, alpha=alpha, exif=self.exif, icc=self.icc)


def quantized(x: Float[Tensor, "c h w"], bits: int) -> npt.NDArray[Any]:
    """Return "h w c" of uint8 or uint16: values clamped to [0, 1], scaled and rounded."""
    steps: npt.NDArray[Any] = (x.clamp(0, 1) * (2**bits - 1)).round_().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(steps.astype(DTYPES[bits]))
