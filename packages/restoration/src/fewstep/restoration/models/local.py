"""A small U-Net without norms or attention over the picture: a result depends on what lies within its reach, only.

So tiles with a halo of that reach give, to rounding, what the whole picture gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.core.denoiser import Cond
from fewstep.core.errors import check
from fewstep.core.networks.backbone import join_channels
from fewstep.core.networks.embedding import ExtraInputs
from fewstep.core.networks.timed import TimedBackbone
from fewstep.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A :class:`LocalUNet`.

    ``widths``: channels per resolution, each half of the one before. ``blocks``: residual blocks per resolution, on the
    way down and again on the way up. ``time_width``: of the embedded noise level.
    """

    widths: tuple[int, ...] = (40, 80)
    blocks: int = 2
    time_width: int = 64

    def __post_init__(self) -> None:
        check(1 <= len(self.widths) <= 6, f"domain.network.local.widths needs 1 to 6 entries, got {len(self.widths)}")
        check(all(1 <= w <= 2048 for w in self.widths), f"domain.network.local.widths must be 1 to 2048: {self.widths}")
        check(1 <= self.blocks <= 16, f"domain.network.local.blocks must be 1 to 16, got {self.blocks}")
        check(
            2 <= self.time_width <= 2048 and self.time_width % 2 == 0,
            f"domain.network.local.time_width must be even and 2 to 2048, got {self.time_width}",
        )


def unit_length(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return ``x`` divided, position by position, by its root mean square over channels."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


def silence(layer: nn.Module) -> None:
    """Set a layer's weights to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, scaled and shifted by the noise level in between; the identity at first.

    What is added depends on the direction of the channels at a position and not on their length.
    """

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(time_width, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        silence(self.second)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return "b c h w" of "b c h w" and the embedded noise level "b d"."""
        scale, shift = self.film(time)[:, :, None, None].chunk(2, 1)
        h = self.first(F.silu(unit_length(x)))
        h = F.silu(torch.addcmul(h + shift, h, scale))
        out: Tensor = x + self.second(h)
        return out


class LocalUNet(TimedBackbone):
    """Convolutions at several resolutions; the condition's ``anchor`` joins the input as further channels.

    Samples are "b c h w" with sides that are multiples of :attr:`multiple`. ``channels``: of a sample.
    """

    def __init__(self, channels: int, config: LocalConfig, seed: int = 0) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        super().__init__()
        self.channels, self.config = channels, config
        widths, width = config.widths, config.time_width
        self.extra_inputs: ExtraInputs | None = None
        with Rng(seed, 0, ()).network_noise("init"):
            self.sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
            self.embedding = TimestepEmbedding(width, width)
            self.head = nn.Conv2d(2 * channels, widths[0], 3, padding=1)
            stages = range(len(widths))
            self.encoder = nn.ModuleList([self._blocks(widths[i]) for i in stages])
            self.down = nn.ModuleList([nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in stages[:-1]])
            self.middle = Block(widths[-1], width)
            self.up = nn.ModuleList([nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in stages[:-1]])
            self.decoder = nn.ModuleList([self._blocks(widths[i]) for i in stages])
            self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)
        silence(self.tail)

    def _blocks(self, width: int) -> nn.ModuleList:
        return nn.ModuleList([Block(width, self.config.time_width) for _ in range(self.config.blocks)])

    @property
    def network(self) -> nn.Module:
        """This module: there is no other library's model in it."""
        return self

    @property
    def time_embedding(self) -> Any:
        """The embedding of the noise level."""
        return self.embedding

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The sinusoids of the noise level."""
        features: Callable[[Tensor], Tensor] = self.sinusoids
        return features

    @property
    def multiple(self) -> int:
        """What sides of samples must be multiples of."""
        return int(2 ** (len(self.config.widths) - 1))

    @property
    def reach(self) -> int:
        """How far, in positions of a sample, a result depends on its input: an upper bound."""
        per_stage = [4 * self.config.blocks * 2**i for i in range(len(self.config.widths))]
        last = self.multiple
        return int(2 + sum(per_stage) + 2 * last + 2 * (last - 1))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return "b c h w"; UserError when the condition lacks ``anchor``, or one of another size."""
        x = join_channels(x, cond, ("anchor",), type(self).__name__)
        sides = x.shape[2:]
        check(
            all(side % self.multiple == 0 for side in sides),
            f"{type(self).__name__}: sides {tuple(sides)} must be multiples of {self.multiple}",
        )
        with self.adding_extras(cond):
            level = F.silu(self.embedding(self.sinusoids(time).to(x.dtype)))
        h = self.head(x.contiguous(memory_format=torch.channels_last))
        kept = []
        for i, blocks in enumerate(self.encoder):
            if i > 0:
                h = self.down[i - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, level)
            kept.append(h)
        h = self.middle(h, level)
        for i in reversed(range(len(self.decoder))):
            if i < len(self.down):
                h = F.pixel_shuffle(self.up[i](h), 2)
            h = h + kept[i] if i < len(self.down) else h
            for block in self.decoder[i]:  # type: ignore[attr-defined]
                h = block(h, level)
        out: Tensor = self.tail(F.silu(unit_length(h)))
        return out.contiguous()

    def save(self, folder: Path) -> None:
        """Write weights and configuration as ``model.safetensors`` and ``model.json``."""
        from fewstep.restoration.models.files import save_network

        save_network(self, folder)

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the middle block; or the last block of every resolution on the way down, and the middle block."""
        downs = tuple(f"encoder.{i}.{self.config.blocks - 1}" for i in range(len(self.config.widths)))
        return ("middle",) if where == "bottleneck" else (*downs, "middle")
