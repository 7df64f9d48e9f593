"""A process of a run on the meta device: what it would do on a GPU, with shapes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.core.planning.kernels import GpuKernels
from fewstep.core.training.settings import Precision
from fewstep.core.training.world import World, buckets

T = TypeVar("T")


class ShapesOnly(World):
    """One of ``size`` processes, none of the others being there: sums are their own share."""

    def __init__(self, kernels: GpuKernels, size: int = 1) -> None:
        self.kernels = kernels
        self.accelerator = None
        self.device = torch.device("meta")
        self.rank, self.size, self.main = 0, size, True
        self.shards, self.reshard, self.zero_stage = False, True, 0

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Return the context forwards run in."""
        if precision == "fp32":
            return nullcontext()
        return self.kernels.autocast(torch.bfloat16 if precision == "bf16" else torch.float16)

    def total(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Join gradients as the messages to other processes do."""
        for bucket in buckets(list(gradients)) if self.size > 1 else ():
            torch.cat([gradient.reshape(-1) for gradient in bucket])

    def shard(self, networks: Mapping[nn.Module, Sequence[str]]) -> None:
        """Leave networks whole: what sharding saves is reckoned afterwards."""
