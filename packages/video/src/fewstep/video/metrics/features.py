"""Feature spaces of clips and of frames that need no download: pooled responses of fixed filters.

A space is :class:`fewstep.core.metrics.measure.FeatureSpace`: a name, a protocol and a function from clips
"n c f h w" in [-1, 1] to features "n d". Anybody's network is one; the name travels with every number made in it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.errors import check
from fewstep.core.metrics.measure import FeatureSpace
from fewstep.core.rng import Rng

NAME = "fewstep-filters-1"  # a new number for every change that moves a feature
SEED = 20311
SIDE = 64
WIDTHS = (16, 32)  # channels of the two layers, half of them for motion
PIECE = 4  # clips at a time
NOT_I3D = "no trained weights, not I3D: compare inside fewstep only"


class FixedFilters(nn.Module):
    """Two layers of fixed random filters over space and time; features are mean and deviation of every response.

    The first half of each layer's channels sees appearance: its first filters do not look at other frames. The second
    half sees motion: its first filters sum to zero over time, so a still leaves it silent, and nothing of the first
    half reaches it. Filters come from a counter-based generator, the same on every machine.
    """

    def __init__(self, seed: int = SEED) -> None:
        super().__init__()
        first, second = WIDTHS
        rng = Rng(seed, 0, tuple(range(max(WIDTHS))), scope=NAME)
        looks, moves = rng.normal("first", (3, 3, 5, 5))[:first].chunk(2)
        looks = looks * torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1)
        moves = moves - moves.mean(2, keepdim=True)
        self.register_buffer("first", _unit(torch.cat([looks, moves])))
        self.register_buffer("second", _unit(rng.normal("second", (first // 2, 3, 3, 3))[:second]))
        self.first: Tensor
        self.second: Tensor

    def forward(self, x: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, "n 96"]:
        """Return the features of clips of any length and size: appearance of both layers, then motion of both."""
        one = functional.relu(functional.conv3d(_padded(x, 2), self.first.to(x.dtype), stride=(1, 2, 2)))
        two = functional.relu(functional.conv3d(_padded(one, 1), self.second.to(x.dtype), stride=(1, 2, 2), groups=2))
        looks, moves = zip(one.chunk(2, 1), two.chunk(2, 1), strict=True)
        return torch.cat([pooled for half in (looks, moves) for x in half for pooled in _pool(x)], 1)


def clip_space() -> FeatureSpace:
    """Return the space of clips: :class:`FixedFilters` of the clip, scaled to 64x64, in pieces of a few clips."""
    model = FixedFilters().eval()
    size = 2 * sum(WIDTHS)
    protocol = (
        f"{size} pooled responses of fixed seeded 3-D filters, half blind to appearance at rest, of whole clips scaled "
        f"to {SIDE}x{SIDE} ({NOT_I3D})"
    )
    return FeatureSpace(f"{NAME}-clips", protocol, lambda clips: _extract(model, clips))


def frame_space() -> FeatureSpace:
    """Return the space of pictures "n c h w" in [-1, 1]: what :class:`FixedFilters` sees in them at rest."""
    model = FixedFilters().eval()
    size = sum(WIDTHS)
    protocol = f"{size} pooled responses of fixed seeded filters, of pictures scaled to {SIDE}x{SIDE} ({NOT_I3D})"
    return FeatureSpace(f"{NAME}-frames", protocol, lambda x: _extract(model, x.unsqueeze(2))[:, :size])


def scaled(clips: Float[Tensor, "n c f h w"], side: int, *, antialias: bool) -> Float[Tensor, "n 3 f s s"]:
    """Return clips with every frame made a square (bilinear) and one channel made three; UserError for latents."""
    n, channels, frames = clips.shape[:3]
    check(
        channels in (1, 3), f"features are of clips with 1 or 3 channels, these have {channels}: decode latents first"
    )
    pictures = clips.transpose(1, 2).flatten(0, 1).float().clamp(-1, 1)
    if pictures.shape[-2:] != (side, side):
        pictures = functional.interpolate(pictures, (side, side), mode="bilinear", antialias=antialias)
    return pictures.expand(-1, 3, -1, -1).reshape(n, frames, 3, side, side).transpose(1, 2)


@torch.no_grad()
def _extract(model: nn.Module, clips: Tensor) -> Tensor:
    return torch.cat([model(scaled(piece, SIDE, antialias=True).cpu()) for piece in torch.split(clips, PIECE)])


def _unit(filters: Tensor) -> Tensor:
    lengths = filters.square().sum((1, 2, 3, 4), keepdim=True).sqrt()
    return filters / lengths


def _padded(x: Tensor, side: int) -> Tensor:
    """Return clips with their border repeated: a frame before and after, ``side`` pixels around."""
    return functional.pad(x, (side, side, side, side, 1, 1), mode="replicate")


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.flatten(2)
    return flat.mean(2), flat.std(2, correction=0)
