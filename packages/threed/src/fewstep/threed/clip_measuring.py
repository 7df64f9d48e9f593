"""Whether assets look like their prompts, by a CLIP model the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.image.clip import ClipScore
from fewstep.core.models.files import download
from fewstep.threed.measuring import unseen_views, view_azimuths
from fewstep.threed.metrics.janus import told_facing
from fewstep.threed.metrics.prompts import Embedder, seen_scores
from fewstep.threed.views import Scene

FRONT, BACK = "a photo of the front view of ", "a photo of the back view of "
Row = dict[str, float]


def open_clip(name: str, key: str = "--clip") -> ClipScore:
    """Return the CLIP model of a folder or a hub id; UserError, which names ``key``, for anything else."""
    given = Path(name).expanduser()
    return ClipScore(str(given if given.exists() else download(name, what=key)), key)


class PromptMeasure:
    """Looks at assets one by one; then scores each among the prompts of all of them and ``candidates``.

    ``size`` of the pictures in pixels.
    """

    def __init__(self, clip: Embedder, views: int, size: int, candidates: Sequence[str] = ()) -> None:
        self.clip, self.views, self.size, self.candidates = clip, views, size, list(candidates)
        self.seen: list[Tensor] = []
        self.prompts: list[str] = []

    @torch.no_grad()
    def look(self, scene: Scene, prompt: str) -> None:
        """Take an asset in; "" where its prompt is not known."""
        ring = unseen_views(self.views, self.size)
        shown = [scene.views(ring.select(i, i + 1)).rgb.cpu().clamp(0, 1) for i in range(len(ring))]
        self.seen.append(self.clip.embed_pictures(2 * torch.cat(shown) - 1))
        self.prompts.append(prompt)

    def rows(self) -> tuple[list[Row], list[str]]:
        """Return the numbers of every asset, none where its prompt is not known, and how they came about."""
        rows: list[Row] = [{} for _ in self.prompts]
        asked = [i for i, prompt in enumerate(self.prompts) if prompt]
        said = ["clip: left out where no prompt is known; give --prompt"] if len(asked) < len(rows) else []
        if not asked:
            return rows, said
        prompts = [self.prompts[i] for i in asked]
        known = list(dict.fromkeys([*prompts, *self.candidates]))
        found = seen_scores(self.clip, torch.stack([self.seen[i] for i in asked]), prompts, known)
        for i, score, precision in zip(asked, found.clip_score.tolist(), found.r_precision.tolist(), strict=True):
            rows[i]["clip_score"] = score
            if len(known) > 1:
                rows[i]["r_precision"] = precision
        said.append(f"{found.protocol}; pictures of {self.size} pixels")
        if len(known) == 1:
            said.append("R-precision is left out: one prompt to choose from says nothing; give more, or --candidates")
        return rows, said + self._facing(asked, rows)

    def _facing(self, asked: list[int], rows: list[Row]) -> list[str]:
        """Add where the front of each asset is, by words; return why not."""
        azimuth = view_azimuths(self.views)
        for i in asked:
            front, back = self.clip.embed_prompts([FRONT + self.prompts[i], BACK + self.prompts[i]])
            try:
                rows[i]["clip_facing"] = float(told_facing(self.seen[i], azimuth, front, back))
            except UserError as error:
                return [f"clip_facing: {error}"]
        return []
