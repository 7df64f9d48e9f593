"""A discriminator of single frames: heads on the features of an image network, told the caption.

The heads follow the description of MCM (arXiv 2406.06890). The image network is a small convolutional one that learns
with them, or any frozen :class:`FrameBackbone`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from fewstep.core.errors import UserError, check
from fewstep.core.networks.freezing import freeze
from fewstep.core.rng import Rng

KERNEL = 9  # of the residual block
VIRTUAL_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class FrameDiscriminatorConfig:
    """The small discriminator.

    ``channels``: of a frame. ``widths``: of the convolutions, each of which halves the frame; there is a head on every
    one. ``head_width``: of a head's last layer. ``norm``: statistics of a frame's own (``group``), or of at most 8
    frames together (``virtual_batch``, as in MCM: losses then depend on how a batch is cut into micro-batches).
    ``caption``: size of the caption's embedding, 0 for a discriminator that is not told.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    head_width: int = 64
    norm: Literal["group", "virtual_batch"] = "group"
    caption: int = 0

    def __post_init__(self) -> None:
        check(len(self.widths) > 0, "discriminator.widths is empty: give the width of one convolution at least")
        check(all(w >= 1 for w in (*self.widths, self.channels, self.head_width)), "discriminator widths start at 1")
        check(self.caption >= 0, f"discriminator.caption must not be negative, got {self.caption}")


class FrameBackbone(nn.Module, ABC):
    """An image network: frames "n c h w" in [-1, 1] to features "n k p", ``channels`` holds each one's ``k``."""

    channels: tuple[int, ...]
    side: int = 0
    """Pixels a side of the squares that frames are made before they are looked at; 0: they are left as they are."""

    @abstractmethod
    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return the features, "n k p" each, p the places of one frame."""


class ConvFrameBackbone(FrameBackbone):
    """Strided convolutions, features after each."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(widths)
        pairs = itertools.pairwise((inputs, *widths))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Return the features of every layer."""
        x, found = frames, []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = leaky_relu(norm(layer(x)), 0.2)
            found.append(x.flatten(2))
        return found


class VirtualBatchNorm(nn.Module):
    """Batch normalisation over groups of at most ``size`` samples, with a scale and shift; no running statistics.

    Any number of samples is cut into ``ceil(n / size)`` groups that differ by one sample at most.
    """

    def __init__(self, channels: int, size: int = VIRTUAL_BATCH) -> None:
        super().__init__()
        self.size = size
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n k p"]) -> Float[Tensor, "n k p"]:
        """Return the normalised features."""
        groups = torch.tensor_split(x, -(-len(x) // self.size))
        found = []
        for group in groups:
            variance, mean = torch.var_mean(group, (0, 2), correction=0, keepdim=True)
            found.append((group - mean) * (variance + 1e-5).rsqrt())
        return torch.cat(found) * self.weight[:, None] + self.bias[:, None]


class FrameHead(nn.Module):
    """A layer, a residual convolution along the places, and logits "n p", projected on a caption where there is one."""

    def __init__(self, channels: int, config: FrameDiscriminatorConfig) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.GroupNorm(1, channels) if config.norm == "group" else VirtualBatchNorm(channels)

        self.first, self.first_norm = spectral_norm(nn.Conv1d(channels, channels, 1)), norm()
        around = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, padding_mode="circular")
        self.second, self.second_norm = spectral_norm(around), norm()
        self.out = spectral_norm(nn.Conv1d(channels, config.head_width if config.caption else 1, 1))
        self.caption = nn.Linear(config.caption, config.head_width) if config.caption else None

    def forward(self, x: Float[Tensor, "n k p"], caption: Float[Tensor, "n e"] | None) -> Float[Tensor, "n p"]:
        """Return the logit of every place; UserError where a caption is missing, and for fewer than 4 places."""
        check(
            x.shape[2] >= KERNEL // 2,
            f"the frames are too small for the discriminator: {x.shape[2]} places of its last features, at least "
            f"{KERNEL // 2} needed: give discriminator.widths fewer entries",
        )
        x = leaky_relu(self.first_norm(self.first(x)), 0.2)
        x = (leaky_relu(self.second_norm(self.second(x)), 0.2) + x) / 2**0.5
        out: Tensor = self.out(x)
        if self.caption is None:
            return out.squeeze(1)
        if caption is None:
            raise UserError("the frame discriminator is told captions and the batch has none: set its caption to 0")
        projected: Tensor = self.caption(caption)
        return (out * projected[:, :, None]).sum(1) / math.sqrt(out.shape[1])


class FrameDiscriminator(nn.Module):
    """Tells generated frames from pictures; positive logits are for "real".

    ``frozen``: the backbone's weights never change and are no parameters of this module; gradients flow through it to
    the frames.
    """

    def __init__(self, backbone: FrameBackbone, config: FrameDiscriminatorConfig, *, frozen: bool, seed: int) -> None:
        super().__init__()
        with Rng(seed, 0, ()).network_noise("frame_heads"):
            self.heads = nn.ModuleList(FrameHead(channels, config) for channels in backbone.channels)
        if frozen:
            freeze(backbone)
        self.trunk = None if frozen else backbone
        self._held = (backbone,)  # a tuple is not registered: whoever made a frozen backbone moves it

    @property
    def told(self) -> int:
        """Numbers in the embedding of a caption it is told; 0: it is told none."""
        head = self.heads[0]
        assert isinstance(head, FrameHead)
        return 0 if head.caption is None else head.caption.in_features

    @property
    def side(self) -> int:
        """The backbone's, see there."""
        return self._held[0].side

    def features(self, frames: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """Return the backbone's features, "n k p" each."""
        found: list[Tensor] = self._held[0](frames)
        return found

    def head_logits(self, features: Sequence[Tensor], caption: Float[Tensor, "n e"] | None) -> Float[Tensor, "n p"]:
        """Return the logits of all places of all heads."""
        return torch.cat([head(x, caption) for head, x in zip(self.heads, features, strict=True)], 1)

    def forward(
        self, frames: Float[Tensor, "n c h w"], caption: Float[Tensor, "n e"] | None = None
    ) -> Float[Tensor, "n p"]:
        """Return the logits of frames in [-1, 1]."""
        return self.head_logits(self.features(frames), caption)


def conv_discriminator(config: FrameDiscriminatorConfig, seed: int) -> FrameDiscriminator:
    """Return the small discriminator that learns as a whole."""
    with Rng(seed, 0, ()).network_noise("frame_backbone"):
        backbone = ConvFrameBackbone(config.channels, config.widths)
    return FrameDiscriminator(backbone, config, frozen=False, seed=seed)


def feature_penalty(
    logits: Float[Tensor, "n p"], features: Sequence[Tensor], slope: float = 1.0
) -> Float[Tensor, " n"]:
    """Return ``(|d sum_p logit_p / d features| - slope)^2``, the norm over all features of a frame together.

    MCM's gradient penalty (arXiv 2406.06890): the features are those of pictures between a real and a generated one,
    detached, and required grad before the logits were computed.
    """
    gradients = torch.autograd.grad(logits.sum(), list(features), create_graph=True)
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    return (square.clamp_min(1e-24).sqrt() - slope).square()
