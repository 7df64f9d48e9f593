"""A student that is no network: images that are optimised themselves, as score distillation does with scenes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng


class SampleSet(nn.Module):
    """``count`` images "c h w", of classes 0, 1, 2 ... in turn; they start as faint noise."""

    labels: Int[Tensor, " count"] | None

    def __init__(self, count: int, shape: tuple[int, ...], num_classes: int, seed: int) -> None:
        super().__init__()
        start = Rng.for_batch(seed, 0, count).fork("sample-set").normal("start", shape)
        self.images = nn.Parameter(0.1 * start)
        self.register_buffer("labels", torch.arange(count) % num_classes if num_classes else None)

    def forward(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Return the images at ``index``."""
        return self.images[index]

    def generate(self, batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
        """Return the images a step looks at, with their graph, and their classes; steps go round the set."""
        stride = rng.batch or len(rng.ids)
        places = [(rng.step * stride + sample) % len(self.images) for sample in rng.ids]
        index = torch.tensor(places, device=self.images.device)
        return self(index), {} if self.labels is None else {"label": self.labels[index]}
