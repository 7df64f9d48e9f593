"""Clips of videos for runs without preparation: read, cut and encoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.core.data.damage import Damaged
from fewstep.core.data.epochs import epochs_of
from fewstep.core.errors import TrainingError
from fewstep.core.rng import Rng
from fewstep.video.reading.dataset import Clips
from fewstep.video.reading.layouts import list_clips
from fewstep.video.reading.sampling import ClipConfig


class EncodedClips:
    """The ``latents`` of :class:`fewstep.core.data.source.TextSource` for videos.

    ``encode``: "1 3 f h w" in [-1, 1] to a latent, such as a codec's. Where a clip lies is a function of (seed, epoch,
    index): every epoch shows other parts of a video, and a resumed run the same ones. Clips are encoded one at a time:
    a sample's bits do not depend on its company.
    """

    def __init__(self, clips: Clips, encode: Callable[[Tensor], Tensor]) -> None:
        self.clips, self.encode = clips, encode

    def latents(self, samples: Sequence[int], rng: Rng) -> tuple[list[int], Float[Tensor, "b *d"]]:
        """Return which samples were read, after damaged ones were replaced, and latents "b *d", float32.

        TrainingError when no clip can be read, or too many cannot.
        """
        shown, latents = [], []
        for sample, epoch in zip(samples, epochs_of(rng, len(self.clips)), strict=True):
            index, frames = readable(self.clips, sample, rng.seed, epoch)
            shown.append(index)
            latents.append(self.encode(to_pixels(frames)[None]).float())
        return shown, torch.cat(latents)


def open_clips(
    path: str | Path, config: ClipConfig, *, column: str = "", reader: str = "auto", max_bad_share: float = 0.01
) -> Clips:
    """Return the captioned videos that a path means (:func:`.reading.layouts.list_clips`), cut as ``config`` says."""
    found = list_clips(path, column, max_bad_share)
    return Clips(str(path), found, config, reader=reader, max_bad_share=max_bad_share)


def readable(clips: Clips, index: int, seed: int, epoch: int) -> tuple[int, UInt8[Tensor, "f 3 h w"]]:
    """Return a clip and which one it is: a damaged one's place is taken by the next that can be read."""
    for step in range(len(clips)):
        at = (index + step) % len(clips)
        try:
            return at, clips.clip(at, seed, epoch)
        except Damaged:
            continue
    raise TrainingError(f"{clips.bad.where}: none of the {len(clips)} videos can be read")


def to_pixels(frames: UInt8[Tensor, "f 3 h w"]) -> Float[Tensor, "3 f h w"]:
    """Return frames as a clip in [-1, 1]."""
    return frames.transpose(0, 1).float().mul_(2 / 255).sub_(1)
