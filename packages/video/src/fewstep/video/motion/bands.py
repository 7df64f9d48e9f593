"""Low and high frequencies of a clip in time and space; the two add up to the clip.

The filter is a Butterworth low-pass ``M = 1 / (1 + (d^2)^n)``, ``d^2 = (2 f_t / c_t)^2 + (2 f_h / c_s)^2 + (2 f_w /
c_s)^2`` at frequencies ``f`` in cycles per sample, so that a cutoff of 1 is the Nyquist frequency (FreeInit, arXiv
2312.07537; MCM, 2406.06890).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.tensors import precise

AXES = (2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class BandConfig:
    """Where the low band ends.

    ``cutoff_time``, ``cutoff_space``: as fractions of the Nyquist frequency. ``order``: of the Butterworth filter.
    ``official``: the mask as published, centred half a bin off the zero frequency on odd sizes: there it weakens the
    mean of a clip, to 0.86 of it on 5 frames and to nothing on a single one.
    """

    cutoff_time: float = 0.25
    cutoff_space: float = 0.25
    order: int = 4
    official: bool = False

    def __post_init__(self) -> None:
        for name in ("cutoff_time", "cutoff_space"):
            value = getattr(self, name)
            check(value > 0, f"{name} must be positive, got {value:g}")
        check(self.order >= 1, f"order must be at least 1, got {self.order}")


def low_pass_mask(sizes: tuple[int, int, int], config: BandConfig = BandConfig()) -> Float[Tensor, "f h w"]:
    """Return the gain of every frequency of a clip of ``sizes`` (frames, height, width), in FFT order, float64."""
    cutoffs = (config.cutoff_time, config.cutoff_space, config.cutoff_space)
    square = torch.zeros((), dtype=torch.float64)
    for axis, (size, cutoff) in enumerate(zip(sizes, cutoffs, strict=True)):
        index = torch.arange(size, dtype=torch.float64)
        if config.official:
            centred = torch.fft.ifftshift(2 * index / size - 1)
        else:
            centred = 2 * torch.fft.fftfreq(size, dtype=torch.float64)
        shape = [1, 1, 1]
        shape[axis] = size
        square = square + (centred / cutoff).square().reshape(shape)
    return 1 / (1 + square**config.order)


@lru_cache(maxsize=16)
def _half_mask(sizes: tuple[int, int, int], config: BandConfig) -> Tensor:
    """The even part of the mask, all that the real part of the filtered clip sees, on the half of the real FFT."""
    mask = low_pass_mask(sizes, config)
    mirrored = mask.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))  # the gain at minus each frequency
    return ((mask + mirrored) / 2)[..., : sizes[2] // 2 + 1]


def low_band(clip: Float[Tensor, "b c f h w"], config: BandConfig = BandConfig()) -> Float[Tensor, "b c f h w"]:
    """Return the low frequencies of a clip, float32 at least."""
    clip = precise(clip)
    frames, height, width = clip.shape[2:]
    mask = _half_mask((frames, height, width), config).to(clip)
    found: Tensor = torch.fft.irfftn(torch.fft.rfftn(clip, dim=AXES) * mask, s=(frames, height, width), dim=AXES)
    return found


def high_band(clip: Float[Tensor, "b c f h w"], config: BandConfig = BandConfig()) -> Float[Tensor, "b c f h w"]:
    """Return what :func:`low_band` leaves, float32 at least."""
    return precise(clip) - low_band(clip, config)
