"""Previews of latents: strips of frames as a picture, and all clips playing side by side as .mp4 and .gif."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.core.image.rendering import render_rows
from fewstep.video.writing.clips import GIF_MAX_FPS, write_clip, write_pieces
from fewstep.video.writing.sheets import Sheet

FRAMES = 4  # of a clip in a strip
KEPT = 6  # results: those of a preview's rows
SIDE, GIF_SIDE = 1280, 640  # pixels of a video's longer side, about: a .gif is held in memory whole


class Remembered:
    """``decode`` that remembers its last results: the rows of a preview are drawn and watched, and decoded once."""

    def __init__(self, decode: Callable[[Tensor], Tensor]) -> None:
        self.decode = decode
        self._last: list[tuple[Tensor, Tensor]] = []

    def __call__(self, latents: Tensor) -> Tensor:
        """Return clips of latents; the same object again for the same object."""
        found = next((each for each in self._last if each[0] is latents), None) or (latents, self.decode(latents))
        self._last = [found, *(each for each in self._last if each[0] is not latents)][:KEPT]
        return found[1]


def write_previews(rows: Sequence[tuple[str, Float[Tensor, "_ c f h w"]]], stem: Path, fps: float) -> Path:
    """Write labelled rows of clips in [-1, 1] as ``stem.png``, ``stem.mp4`` and ``stem.gif``; returns the picture.

    Clips of one frame are no videos: of those there is the picture only. Raises UserError where nothing can be written.
    """
    path = render_rows([(label, strips(clips)) for label, clips in rows], stem)
    if max(clips.shape[2] for _, clips in rows) < 2:
        return path
    shown = [(label, to_bytes(clips)) for label, clips in rows]
    sheet = Sheet(shown, SIDE)
    write_pieces(path.with_suffix(".mp4"), sheet.draw(), sheet.size, fps)
    write_clip(path.with_suffix(".gif"), torch.cat(list(Sheet(shown, GIF_SIDE).draw())), min(fps, GIF_MAX_FPS))
    return path


def strips(clips: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n c h v"]:
    """Return some frames of each clip side by side, first and last among them."""
    frames = clips.shape[2]
    chosen = torch.linspace(0, frames - 1, min(FRAMES, frames)).round().long()
    return torch.cat(list(clips[:, :, chosen].unbind(2)), -1)


def to_bytes(clips: Float[Tensor, "n c f h w"]) -> UInt8[Tensor, "n f 3 h w"]:
    """Return clips in [-1, 1] as 8 bits a channel in colour, values outside cut off, those that are no number black."""
    x = clips.detach().float().cpu()
    levels = ((torch.where(x.isnan(), -1.0, x).clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.transpose(1, 2).expand(-1, -1, 3, -1, -1)
