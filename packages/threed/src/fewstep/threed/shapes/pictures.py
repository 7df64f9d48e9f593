"""Pictures of solids as training data: rendered when first asked for, then kept as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, ViewRanges, random_views
from fewstep.threed.shapes.prompts import Prompt
from fewstep.threed.shapes.rendering import render
from fewstep.threed.shapes.solids import Solid, build


class Pictures:
    """``views`` pictures of each of some prompts' solids, from cameras drawn once, over white.

    Number ``i`` shows prompt ``i // views``; it is a function of the seed and ``i`` alone.
    """

    def __init__(self, prompts: Sequence[Prompt], views: int, ranges: ViewRanges, size: int, seed: int = 0) -> None:
        check(len(prompts) > 0, "pictures of solids need a prompt")
        check(views >= 1, f"views must be at least 1, got {views}")
        self.prompts, self.views, self.ranges, self.size, self.seed = tuple(prompts), views, ranges, size, seed
        self._kept = torch.zeros(len(self), 3, size, size, dtype=torch.uint8)
        self._there = torch.zeros(len(self), dtype=torch.bool)
        self._solids: dict[int, Solid] = {}

    def __len__(self) -> int:
        return len(self.prompts) * self.views

    def cameras(self, index: Sequence[int]) -> Camera:
        """Return the cameras of pictures by number."""
        return random_views(Rng(self.seed, 0, tuple(index), "pictures"), self.ranges, self.size, self.size)

    def rgb(self, index: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Return pictures by number, in [0, 1]."""
        camera = self.cameras(index)
        for row, number in enumerate(index):
            if not self._there[number]:
                one = camera.select(row, row + 1)
                seen = render(
                    self._solid(number // self.views), one.world_to_camera, one.intrinsics, self.size, self.size
                )
                self._kept[number] = (seen.rgb[0] * 255).round().byte()
                self._there[number] = True
        return self._kept[list(index)].float() / 255

    def _solid(self, prompt: int) -> Solid:
        if prompt not in self._solids:
            self._solids[prompt] = build(self.prompts[prompt])
        return self._solids[prompt]
