"""A discriminator's head that the noise level reaches before anything else, and that says nothing at first."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.nn.utils.parametrizations import spectral_norm

from fewstep.core.networks.embedding import sinusoid

TIME_FEATURES = 160
TIME_SCALE = 100.0  # of the clock's fraction: the fastest of the sinusoids turns 16 times over the whole clock
NORM_GROUPS, LINE_GROUPS = 32, 4
KERNEL = 9


def _groups(channels: int, most: int) -> int:
    """Return a number of groups of at least four channels: a vector's own value alone would be normalised away."""
    return math.gcd(channels, min(most, max(1, channels // 4)))


class _Line(nn.Module):
    """Convolution along the line of positions, closed to a circle, with spectral norm; then group norm, leaky ReLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.conv = spectral_norm(nn.Conv1d(channels, channels, kernel))
        self.norm = nn.GroupNorm(_groups(channels, LINE_GROUPS), channels)

    def forward(self, h: Tensor) -> Tensor:
        length = h.shape[2]
        # torch's circular padding refuses lines shorter than its width
        around = torch.arange(-self.reach, length + self.reach, device=h.device) % length
        wrapped = h[:, :, around] if self.reach else h
        out: Tensor = nn.functional.leaky_relu(self.norm(self.conv(wrapped)), 0.2)
        return out


class TimeAwareHead(nn.Module):
    """TAD-SR's head (arXiv 2408.07476): features scaled and shifted by the noise level, ``width`` logits a position.

    ``maps``: features are "b c h w"; otherwise tokens "b n c" or vectors "b c". The first convolution starts at zero:
    logits then depend on neither features nor time, and no gradient reaches the features.
    """

    def __init__(self, channels: int, maps: bool, width: int) -> None:
        super().__init__()
        self.maps = maps
        self.norm = nn.GroupNorm(_groups(channels, NORM_GROUPS), channels)
        self.film = nn.Linear(TIME_FEATURES, 2 * channels)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1) if maps else nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)  # type: ignore[arg-type]
        self.first, self.second = _Line(channels, 1), _Line(channels, KERNEL)
        self.out = spectral_norm(nn.Conv1d(channels, width, 1))

    def forward(
        self, x: Float[Tensor, "b ..."], unit_time: Float[Tensor, " b"], label: Tensor | None
    ) -> Float[Tensor, "b p"]:
        """Return logits of features at a fraction of the natural clock; the label has no part in them."""
        x = x.to(self.film.weight.dtype)
        if not self.maps:
            x = x[:, :, None] if x.ndim == 2 else x.transpose(1, 2)
        # torch 2.13 crashes in group norm's backward on the CPU for channels-last input that needs no gradient
        x = x.contiguous()
        scale, shift = self.film(silu(sinusoid(TIME_SCALE * unit_time, TIME_FEATURES)).to(x)).chunk(2, 1)
        place = (..., *[None] * (x.ndim - 2))
        h = silu(self.norm(x) * (1 + scale[place]) + shift[place])
        h = self.first(self.gate(h).flatten(2))
        h = (h + self.second(h)) / math.sqrt(2)
        logits: Tensor = self.out(h).flatten(1)
        return logits
