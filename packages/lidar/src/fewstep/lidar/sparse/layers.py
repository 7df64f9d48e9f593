"""Layers on voxels: convolutions of 3x3x3, 2x2x2 down and up, and batch norm over voxels."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.lidar.sparse.backend import active_backend
from fewstep.lidar.sparse.sites import Pairs


class SparseConv(nn.Module):
    """A kernel of ``elements`` (27 or 8) matrices "ci co", without bias; which voxels it connects is an argument.

    The weight is that of a linear layer over all elements side by side, "co (k ci)", so that LoRA factors apply to it.
    Initialised like torch's convolutions, for ``elements * ci`` inputs.
    """

    def __init__(self, channels_in: int, channels_out: int, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.linear = nn.Linear(elements * channels_in, channels_out, bias=False)
        nn.init.kaiming_uniform_(self.linear.weight, a=math.sqrt(5))

    def kernel(self) -> Float[Tensor, "k ci co"]:
        """Return the kernel, with the factors of the adapters that act."""
        weight = _effective_weight(self.linear)
        return weight.view(len(weight), self.elements, -1).permute(1, 2, 0).contiguous()

    def forward(self, x: Float[Tensor, "v ci"], pairs: Pairs) -> Float[Tensor, "w co"]:
        """Return the convolved features."""
        kernel = self.kernel()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, kernel = x.to(dtype), kernel.to(dtype)
        return active_backend().convolve(x, kernel.to(x.dtype), pairs)


def _effective_weight(linear: Any) -> Tensor:
    weight: Tensor = linear.weight
    active = getattr(linear, "active_adapters", None)  # PEFT's name for the factors that act
    if active is None:
        return weight
    for name in active:
        if name in linear.lora_A:
            weight = weight + linear.get_delta_weight(name).to(weight.dtype)
    return weight


class VoxelNorm(nn.BatchNorm1d):
    """Batch norm over the voxels of a batch; a single voxel has no statistics and is normalised by the running ones."""

    def forward(self, x: Float[Tensor, "v c"]) -> Float[Tensor, "v c"]:
        """Return the normalised features."""
        if self.training and len(x) < 2:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class ConvNorm(nn.Module):
    """A convolution followed by batch norm, and ReLU unless told otherwise."""

    def __init__(self, channels_in: int, channels_out: int, elements: int, *, relu: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = SparseConv(channels_in, channels_out, elements), VoxelNorm(channels_out), relu

    def forward(self, x: Float[Tensor, "v ci"], pairs: Pairs) -> Float[Tensor, "w co"]:
        """Return the features on the voxels the pairs lead to."""
        out: Tensor = self.norm(self.conv(x, pairs))
        return torch.relu(out) if self.relu else out


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut, which is a 1x1x1 convolution with norm where channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels_in, channels_out, 27)
        self.second = ConvNorm(channels_out, channels_out, 27, relu=False)
        same = channels_in == channels_out
        self.shortcut = None if same else nn.Linear(channels_in, channels_out, bias=False)
        self.shortcut_norm = None if same else VoxelNorm(channels_out)

    def forward(self, x: Float[Tensor, "v ci"], pairs: Pairs) -> Float[Tensor, "v co"]:
        """Return the features on the same voxels."""
        beside = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            beside = self.shortcut_norm(self.shortcut(x))
        return torch.relu(self.second(self.first(x, pairs), pairs) + beside)
