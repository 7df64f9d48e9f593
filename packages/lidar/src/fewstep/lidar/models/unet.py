"""Encoder and U-Net on voxels, exactly LiDiff's at its widths (8,497,952; 24,174,515; 21,722,926 parameters)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.lidar.models.nearest import nearest_rows
from fewstep.lidar.sparse.layers import ConvNorm, ResidualBlock
from fewstep.lidar.sparse.sites import Sites

LEVELS = 4
HEAD = 20


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the networks; the defaults are LiDiff's.

    ``resolution``: edge of the finest voxels in metres. ``channels``: of the stem and the four levels below it, each of
    twice the stride. ``up_channels``: of the four levels on the way back. ``time_width``: numbers of the time
    embedding (even).
    """

    resolution: float = 0.05
    channels: tuple[int, ...] = (32, 32, 64, 128, 256)
    up_channels: tuple[int, ...] = (256, 128, 96, 96)
    time_width: int = 96

    def __post_init__(self) -> None:
        check(self.resolution > 0, f"network.resolution must be positive (metres), got {self.resolution:g}")
        check(len(self.channels) == LEVELS + 1, f"network.channels needs 5 widths, got {len(self.channels)}")
        check(len(self.up_channels) == LEVELS, f"network.up_channels needs 4 widths, got {len(self.up_channels)}")
        check(min(*self.channels, *self.up_channels) >= 1, "network.channels and up_channels must be at least 1")
        check(
            self.time_width >= 4 and self.time_width % 2 == 0,
            f"network.time_width must be even and at least 4, got {self.time_width}",
        )


class Scene(NamedTuple):
    """Features of encoded scans: ``sites`` on the coarsest grid, ``features`` "v c", and the number of clouds."""

    sites: Sites
    features: Tensor


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return linear, leaky ReLU of slope 0.1, linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, out))


class _Down(nn.Module):
    """A 2x2x2 convolution of stride 2, then two residual blocks."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels_in, channels_in, 8)
        self.blocks = nn.ModuleList(
            [ResidualBlock(channels_in, channels_out), ResidualBlock(channels_out, channels_out)]
        )

    def forward(self, x: Tensor, sites: Sites) -> tuple[Tensor, Sites]:
        coarse, pairs = sites.coarser
        x = self.reduce(x, pairs)
        for block in self.blocks:
            x = block(x, coarse.neighbours)
        return x, coarse


class _Up(nn.Module):
    """A transposed 2x2x2 convolution back to finer voxels, beside which the skip is put, then two residual blocks."""

    def __init__(self, channels_in: int, skip: int, channels_out: int) -> None:
        super().__init__()
        self.expand = ConvNorm(channels_in, channels_out, 8)
        self.blocks = nn.ModuleList(
            [ResidualBlock(channels_out + skip, channels_out), ResidualBlock(channels_out, channels_out)]
        )

    def forward(self, x: Tensor, skip: Tensor, fine: Sites) -> Tensor:
        _, pairs = fine.coarser
        x = torch.cat([self.expand(x, pairs.reverse()), skip], 1)
        for block in self.blocks:
            x = block(x, fine.neighbours)
        return x


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(3, width, 27), ConvNorm(width, width, 27)

    def forward(self, x: Tensor, sites: Sites) -> Tensor:
        out: Tensor = self.second(self.first(x, sites.neighbours), sites.neighbours)
        return out


class ScanEncoder(nn.Module):
    """Turns the voxels of partial scans into features on the grid of stride 16."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = config.channels
        self.stem = _Stem(widths[0])
        self.down = nn.ModuleList(_Down(a, b) for a, b in pairwise(widths))

    def forward(self, x: Float[Tensor, "v 3"], sites: Sites) -> Scene:
        """Return the features; ``x`` holds the mean coordinates of each voxel's points, in metres."""
        x = self.stem(x, sites)
        for stage in self.down:
            x, sites = stage(x, sites)
        return Scene(sites, x)


class _Gate(nn.Module):
    """Factors for a stage's features: an MLP of the nearest scan voxel's features and the time.

    All is computed per scan voxel, of which there are few, and then looked up. ``time_first``: order of the two parts
    (one stage of the released networks has it).
    """

    def __init__(self, config: NetworkConfig, width: int, hidden: int, *, time_first: bool) -> None:
        super().__init__()
        deep = config.channels[-1]
        self.scan = two_layers(deep, deep, deep)
        self.time = two_layers(config.time_width, config.time_width, deep)
        self.joint = two_layers(2 * deep, hidden, width)
        self.time_first = time_first

    def forward(self, x: Tensor, scene: Scene, nearest: Tensor, embedding: Tensor) -> Tensor:
        scan, time = self.scan(scene.features), self.time(embedding)[scene.sites.sample]
        factors = self.joint(torch.cat([time, scan] if self.time_first else [scan, time], 1))
        gated: Tensor = x * factors.index_select(0, nearest)
        return gated


class SparseUNet(nn.Module):
    """The U-Net of denoiser and refiner: ``outputs`` numbers per voxel, with or without gates for scan and time."""

    def __init__(self, config: NetworkConfig, outputs: int, *, gated: bool) -> None:
        super().__init__()
        widths, ups = config.channels, config.up_channels
        skips = widths[-2::-1]
        self.stem = _Stem(widths[0])
        self.down = nn.ModuleList(_Down(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_Up(a, skip, b) for a, skip, b in zip((widths[-1], *ups[:-1]), skips, ups, strict=True))
        self.head = two_layers(ups[-1], HEAD, outputs)
        if gated:
            deep, before = widths[-1], (widths[-1], *ups[:-1])
            self.down_gates = nn.ModuleList(_Gate(config, width, deep, time_first=False) for width in widths[:-1])
            self.up_gates = nn.ModuleList(
                _Gate(config, width, width, time_first=i == 0) for i, width in enumerate(before)
            )

    def forward(
        self,
        x: Float[Tensor, "v 3"],
        sites: Sites,
        scene: Scene | None = None,
        embedding: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "v o"]:
        """Return the outputs on the finest voxels; ``scene`` and ``embedding`` are what gates look at."""
        grids, skips, near = [sites], [], []
        x = self.stem(x, sites)
        for i, stage in enumerate(self.down):
            skips.append(x)
            if scene is not None:
                near.append(nearest_rows(grids[-1], scene.sites))
                x = self.down_gates[i](x, scene, near[-1], embedding)
            x, sites = stage(x, grids[-1])
            grids.append(sites)
        for i, stage in enumerate(self.up):
            if scene is not None:
                rows = near[LEVELS - i] if i else nearest_rows(grids[-1], scene.sites)
                x = self.up_gates[i](x, scene, rows, embedding)
            x = stage(x, skips[-1 - i], grids[LEVELS - 1 - i])
        out: Tensor = self.head(x)
        return out
