"""Clips longer than a network makes: windows that slide, each given the last frames of the one before.

Frames are counted as clips are: pixel frames, or latent ones where one latent frame stands for one frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check

Sampler = Callable[[int, Tensor | None], Tensor]
"""Makes window number i, "b c f h w", from its first frames "b c g h w" (None: nothing is given)."""


@dataclass(frozen=True)
class Windows:
    """Windows of ``length`` frames, neighbours sharing ``overlap`` of them."""

    length: int
    overlap: int = 1

    def __post_init__(self) -> None:
        check(
            1 <= self.overlap < self.length,
            f"an overlap of {self.overlap} frames: windows of {self.length} share from 1 to {self.length - 1}",
        )

    @property
    def stride(self) -> int:
        """Return how many frames a further window adds."""
        return self.length - self.overlap

    def total(self, count: int) -> int:
        """Return the frames of ``count`` windows together."""
        return self.overlap + count * self.stride

    def count(self, frames: int) -> int:
        """Return how many windows it takes for at least so many frames; UserError for none."""
        check(frames >= 1, f"{frames} frames: ask for at least one")
        return max(1, -(-(frames - self.overlap) // self.stride))

    def spans(self, count: int) -> tuple[tuple[int, int], ...]:
        """Return the first frame of each window and the one after its last."""
        return tuple((i * self.stride, i * self.stride + self.length) for i in range(count))


def windows_of(frames: int, given_latents: int, compression: int) -> Windows:
    """Return the windows, in pixel frames, of a network that makes ``frames`` and is given so many latent frames.

    The first latent frame stands for one frame, the others for ``compression``.
    """
    return Windows(frames, (given_latents - 1) * compression + 1)


def sample_windows(
    sample: Sampler, windows: Windows, frames: int, first: Float[Tensor, "b c g h w"] | None = None
) -> Float[Tensor, "b c f h w"]:
    """Return a clip of exactly ``frames`` frames made window by window.

    ``first``: the frames it starts with, at most a window's length. Given frames are kept bit for bit, whatever the
    sampler makes in their place. Raises UserError for windows of another length.
    """
    made: list[Tensor] = []
    given = first
    check(
        first is None or 1 <= first.shape[2] <= windows.length,
        f"{0 if first is None else first.shape[2]} frames to start from: windows have {windows.length}",
    )
    for index in range(windows.count(frames)):
        window = sample(index, given)
        check(
            window.shape[2] == windows.length,
            f"window {index} has {window.shape[2]} frames and not {windows.length}: check the overlap and the network",
        )
        if given is not None:
            window = torch.cat([given, window[:, :, given.shape[2] :].to(given)], 2)  # in the given frames' dtype
        made.append(window if index == 0 else window[:, :, windows.overlap :])
        given = window[:, :, windows.length - windows.overlap :]
    return torch.cat(made, 2)[:, :, :frames]
