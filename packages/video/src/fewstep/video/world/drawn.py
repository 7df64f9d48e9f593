"""The drawn world by index: clips of it, and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.rng import Rng
from fewstep.video.world.captions import describe
from fewstep.video.world.config import HIGH, LOW, Quality, WorldConfig
from fewstep.video.world.rendering import draw, film, render
from fewstep.video.world.scenes import Motion, draw_scenes, trace

IMAGE_SEED = 2**32  # added to the seed: images show other scenes than clips do


@dataclass(frozen=True)
class Clips:
    """Clips with what is known of them; ``frames`` in [0, 1]."""

    frames: Float[Tensor, "b f 3 h w"]
    captions: list[str]
    motion: Motion


@dataclass(frozen=True)
class DrawnWorld:
    """A world: every clip and every image is a function of the config, the seed and its index."""

    config: WorldConfig = WorldConfig()
    seed: int = 0

    def clips(self, indices: Sequence[int], quality: Quality = LOW) -> Clips:
        """Return clips; another quality shows the same scenes."""
        scenes = draw_scenes(self.config, self.seed, indices)
        captions = [str(caption) for caption in describe(scenes)]
        return Clips(render(self.config, scenes, quality), captions, trace(self.config, scenes))

    def images(self, indices: Sequence[int], quality: Quality = HIGH) -> tuple[Float[Tensor, "b 3 h w"], list[str]]:
        """Return images in [0, 1] and captions without motion: one frame each of scenes no clip shows."""
        seed = self.seed + IMAGE_SEED
        scenes = draw_scenes(self.config, seed, indices)
        motion = trace(self.config, scenes)
        frame = Rng(seed, 0, tuple(indices), "world").integers("frame", self.config.frames)
        still = replace(self.config, frames=1)
        rows = torch.arange(len(frame))
        position, velocity = (each[rows, :, frame, None] for each in (motion.position, motion.velocity))
        drawn = draw(still, scenes, Motion(position, velocity, motion.present))
        filmed = film(drawn, quality, wrap=self.config.edges == "wrap")
        return filmed[:, 0], [str(caption) for caption in describe(scenes, motion=False)]
