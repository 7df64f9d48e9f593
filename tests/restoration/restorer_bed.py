"""Stand-ins for a trained restorer, with what is known of them exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


def nearest(x: Tensor, scale: int) -> Tensor:
    return x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)


def bilinear(x: Tensor, scale: int) -> Tensor:
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def bicubic(x: Tensor, scale: int) -> Tensor:
    return functional.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)


def smoothed(x: Tensor, scale: int) -> Tensor:
    """A local network of radius 3, nonlinear, with zeros beyond the border of what it is given."""
    kernel = torch.tensor([1.0, -2.0, 3.0, 5.0, 3.0, -2.0, 1.0], dtype=x.dtype) / 9
    x = functional.conv2d(x.flatten(0, 1)[:, None], kernel.view(1, 1, 1, 7), padding=(0, 3))
    x = functional.conv2d(x, kernel.view(1, 1, 7, 1), padding=(3, 0)).tanh()
    return nearest(x.view(1, -1, *x.shape[2:]), scale)


def half_blind(x: Tensor, scale: int) -> Tensor:
    """A network on a coarse grid: means of cells of 4x4 pixels, counted from the first pixel it is given."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
    return nearest(functional.avg_pool2d(padded, 4), 4 * scale)[:, :, : height * scale, : width * scale]


@dataclass
class StandIn:
    """A function of tiles with the attributes of a restorer."""

    function: Callable[[Tensor, int], Tensor] = bicubic
    radius: int = 0
    grid: int = 1
    scales: tuple[int, ...] = (2, 3, 4, 8)
    noise: float = 0.0
    sides: list[tuple[int, int]] = field(default_factory=list)

    def multiple(self, scale: int) -> int:
        return self.grid

    def reach(self, scale: int) -> int:
        return self.radius

    def bytes_per_pixel(self, scale: int) -> float:
        return 1000.0 * scale**2

    def __call__(self, lq: Tensor, scale: int, *, top: int = 0, left: int = 0) -> Tensor:
        assert lq.shape[:2] == (1, 3)
        assert top % self.grid == left % self.grid == 0
        self.sides.append((lq.shape[2], lq.shape[3]))
        y = self.function(lq, scale)
        if self.noise:  # a function of the place in the whole picture
            rows = top * scale + torch.arange(y.shape[2], dtype=torch.float64)[:, None]
            columns = left * scale + torch.arange(y.shape[3], dtype=torch.float64)
            y = y + self.noise * torch.sin(12.9898 * rows + 78.233 * columns).float()
        return y
