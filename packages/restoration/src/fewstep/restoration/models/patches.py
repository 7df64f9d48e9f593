"""A discriminator of pictures, patch by patch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.errors import check
from fewstep.core.rng import Rng

GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """A :class:`PatchDiscriminator`: ``width`` channels, doubled at each further one of ``layers`` halvings."""

    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        check(
            self.width % GROUPS == 0 and GROUPS <= self.width <= 512,
            f"recipe.discriminator.width must be a multiple of {GROUPS}, at most 512, got {self.width}",
        )
        check(1 <= self.layers <= 6, f"recipe.discriminator.layers must be 1 to 6, got {self.layers}")


class PatchDiscriminator(nn.Module):
    """A logit for every patch of a picture of any size (PatchGAN, arXiv 1611.07004); positive for real ones.

    4x4 convolutions that halve, leaky ReLU, group norm: statistics of one picture only, so that a logit depends neither
    on the batch nor on what was seen before.
    """

    def __init__(self, config: PatchConfig, seed: int = 0) -> None:
        super().__init__()
        self.least = 2**config.layers
        widths = [min(config.width * 2**i, 8 * config.width) for i in range(config.layers)]
        with Rng(seed, 0, ()).network_noise("patches"):
            blocks: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
            for before, after in itertools.pairwise(widths):
                blocks += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]
            self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """Return the logits; smaller pictures than one patch are enlarged by their edges."""
        lack = [max(self.least - side, 0) for side in pixels.shape[-2:]]
        if any(lack):
            pixels = functional.pad(pixels, (0, lack[1], 0, lack[0]), mode="replicate")
        logits: Tensor = self.layers(pixels)
        return logits.flatten(1)
