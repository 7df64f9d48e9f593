"""Blocks of ResShift's U-Net: time-conditioned residual blocks, and attention within (shifted) windows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32


def norm(channels: int) -> nn.GroupNorm:
    """Return the normalisation of the convolutional blocks."""
    return nn.GroupNorm(GROUPS, channels)


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with weights and bias set to zero."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions around the time embedding; the last one is zero at first, so that the block is its shortcut.

    ``scale_shift``: the embedding scales and shifts what the second normalisation gives (FiLM) instead of being added.
    """

    def __init__(self, channels: int, out: int, embedding: int, *, dropout: float, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time_proj = nn.Linear(embedding, 2 * out if scale_shift else out)
        self.norm2, self.dropout = norm(out), nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = None if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        """Return the block's output at the same size."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        told = self.time_proj(functional.silu(embedding))[..., None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + told)
        kept = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = kept + self.conv2(self.dropout(functional.silu(hidden)))
        return out


class Downsample(nn.Module):
    """Half the size, by a convolution or by means of four pixels."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else None

    def forward(self, x: Float[Tensor, "b c h w"], embedding: Tensor) -> Float[Tensor, "b c h2 w2"]:
        """Return ``x`` at half its size; the embedding is not used."""
        out: Tensor = functional.avg_pool2d(x, 2) if self.conv is None else self.conv(x)
        return out


class Upsample(nn.Module):
    """Twice the size by repetition, followed by a convolution where it is ``learned``."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return ``x`` at twice its size."""
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


def windows(x: Float[Tensor, "b h w c"], side: int) -> Float[Tensor, "b n s c"]:
    """Return the ``side`` x ``side`` windows of ``x``, row by row, each flattened row by row."""
    b, h, w, c = x.shape
    parts = x.view(b, h // side, side, w // side, side, c).transpose(2, 3)
    return parts.reshape(b, (h // side) * (w // side), side * side, c)


def unwindows(parts: Float[Tensor, "b n s c"], side: int, height: int, width: int) -> Float[Tensor, "b h w c"]:
    """Return the picture of its windows; the inverse of :func:`windows`."""
    b, _, _, c = parts.shape
    grid = parts.view(b, height // side, width // side, side, side, c).transpose(2, 3)
    return grid.reshape(b, height, width, c)


def relative_index(side: int, device: torch.device) -> Int[Tensor, "s s"]:
    """Return, for every pair of positions of a window, the row of the bias table for their offset."""
    at = torch.arange(side, device=device)
    away = at[:, None] - at[None, :] + side - 1
    rows = away[:, None, :, None] * (2 * side - 1) + away[None, :, None, :]
    return rows.reshape(side * side, side * side)


def shifted_mask(
    height: int, width: int, side: int, shift: tuple[int, int], device: torch.device
) -> Bool[Tensor, "n s s"]:
    """Return which positions of a window may see each other after rolling by ``shift``: those that were neighbours.

    Rolling brings the first rows (columns) next to the last ones, in the last window; they stay apart.
    """

    def wrapped(length: int, by: int) -> Tensor:
        return torch.arange(length, device=device) >= length - by

    region = 2 * wrapped(height, shift[0])[:, None].long() + wrapped(width, shift[1])[None].long()
    parts = windows(region[None, ..., None], side)[0, ..., 0]
    return parts[:, :, None] == parts[:, None, :]


class WindowAttention(nn.Module):
    """Self-attention among the positions of a window, with a learned bias for each offset between two of them."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Float[Tensor, "b n s c"], mask: Bool[Tensor, "n s s"] | None) -> Float[Tensor, "b n s c"]:
        """Return attended windows; ``mask``: which positions may see each other (None: all)."""
        b, n, s, c = x.shape
        q, k, v = self.to_qkv(x).view(b, n, s, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias[relative_index(self.side, x.device)].permute(2, 0, 1).to(q.dtype)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None], float("-inf"))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        projected: Tensor = self.to_out(out.transpose(2, 3).reshape(b, n, s, c))
        return projected


class SwinBlock(nn.Module):
    """Attention within windows and two pointwise layers, both added to their input (arXiv 2103.14030).

    ``shifted``: windows are moved by half their side, along axes longer than one window.
    """

    def __init__(self, width: int, heads: int, side: int, *, mlp_ratio: float, dropout: float, shifted: bool) -> None:
        super().__init__()
        self.side, self.shift = side, side // 2 if shifted else 0
        self.norm1, self.attention = nn.LayerNorm(width), WindowAttention(width, heads, side)
        self.norm2, hidden = nn.LayerNorm(width), int(width * mlp_ratio)
        self.fc1, self.fc2, self.dropout = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Return ``x`` with what its windows told; both sides must be multiples of the window's."""
        x = x + self.dropout(self._attend(self.norm1(x)))
        out: Tensor = x + self.dropout(self.fc2(functional.gelu(self.fc1(self.norm2(x)))))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        down = self.shift if height > self.side else 0
        right = self.shift if width > self.side else 0
        if not (down or right):
            return unwindows(self.attention(windows(x, self.side), None), self.side, height, width)
        mask = shifted_mask(height, width, self.side, (down, right), x.device)
        parts = self.attention(windows(x.roll((-down, -right), (1, 2)), self.side), mask)
        return unwindows(parts, self.side, height, width).roll((down, right), (1, 2))


class SwinLayer(nn.Module):
    """``depth`` Swin blocks on positions embedded in ``width`` channels, every other one with shifted windows.

    What they give is projected back and added to the input; the projection is zero at first.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        heads: int,
        depth: int,
        side: int,
        mlp_ratio: float,
        dropout: float,
        patch_norm: bool,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, 1)
        self.norm = nn.LayerNorm(width) if patch_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, side, mlp_ratio=mlp_ratio, dropout=dropout, shifted=bool(i % 2))
            for i in range(depth)
        )
        self.unembed = zeroed(nn.Conv2d(width, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the input with the blocks' result added."""
        hidden = self.norm(self.embed(x).permute(0, 2, 3, 1))
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = x + self.unembed(hidden.permute(0, 3, 1, 2))
        return out
