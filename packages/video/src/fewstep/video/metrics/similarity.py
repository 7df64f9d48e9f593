"""Similarity of clips and prompts by a CLIP model the user gives: that of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.image.clip import ClipScore


@runtime_checkable
class PictureScore(Protocol):
    """What scores pictures under prompts; :class:`fewstep.core.image.clip.ClipScore` does."""

    protocol: str

    def score(self, pixels: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> float:
        """Return 100 times the mean of ``max(cosine, 0)`` over pictures in [-1, 1] and their prompts."""


class ClipSimilarity:
    """Mean over frames of ``max(cos, 0)`` of the frame's and the prompt's embedding (CLIPSIM, arXiv 2104.14806).

    ``model``: a folder with a CLIPModel in safetensors, or what scores pictures. ``frames``: how many of a clip are
    looked at, spread evenly. ``protocol`` says what the numbers are. Raises UserError for a folder without a model.
    """

    def __init__(self, model: str | PictureScore, *, frames: int = 8) -> None:
        check(frames >= 1, f"a similarity needs at least 1 frame of a clip, got {frames}")
        self.frames = frames
        self.pictures: PictureScore = ClipScore(model) if isinstance(model, str) else model
        self.protocol = f"mean over {frames} frames of a clip, a hundredth of: {self.pictures.protocol}"

    def score(self, clips: Float[Tensor, "n c f h w"], prompts: Sequence[str]) -> float:
        """Return the mean similarity, in [0, 1], of clips in [-1, 1]; UserError unless every clip has one prompt.

        It says nothing of motion: a still scores what its picture scores.
        """
        check(len(clips) == len(prompts) > 0, f"{len(clips)} clips with {len(prompts)} prompts: give one for each clip")
        chosen = spread(clips.shape[2], self.frames)
        pictures = clips[:, :, chosen].transpose(1, 2).flatten(0, 1)
        return self.pictures.score(pictures, [prompt for prompt in prompts for _ in range(len(chosen))]) / 100


def spread(frames: int, count: int) -> Int[Tensor, " k"]:
    """Return ``min(count, frames)`` indices of frames: the middles of equal segments of a clip."""
    count = min(count, frames)
    return ((torch.arange(count) + 0.5) * frames / count).long()
