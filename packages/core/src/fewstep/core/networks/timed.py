"""Networks whose noise level goes through a diffusers ``TimestepEmbedding``: extra scalars are added to its output."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.networks.backbone import ExtensibleBackbone
from fewstep.core.networks.embedding import ExtraInputs
from fewstep.core.tensors import compute_dtype

B = TypeVar("B", bound="TimedBackbone")


class TimedBackbone(ExtensibleBackbone):
    """A backbone with a time embedding ``linear_1, act, linear_2``; the network itself stays one that diffusers loads.

    Subclasses name the two modules; :meth:`adding_extras` is wrapped around their forward.
    """

    extra_inputs: ExtraInputs | None

    @property
    @abstractmethod
    def time_embedding(self) -> Any:
        """The ``TimestepEmbedding``."""

    @property
    @abstractmethod
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The sinusoids in front of it."""

    def with_extras(self: B, names: tuple[str, ...], seed: int) -> B:
        """Return a backbone around the same network with embeddings of ``names`` (``guidance``, ``end_time``)."""
        first, last = self.time_embedding.linear_1, self.time_embedding.linear_2
        out = copy.copy(self)
        out._modules = dict(self._modules)  # the copy gets a table of its own: what it adds is not seen by this one
        old = self.extra_inputs or ExtraInputs((), first.in_features, last.out_features, seed)
        like = next(self.network.parameters())
        # trained weights stay precise where a frozen network is kept in half precision
        out.extra_inputs = old.extended(names, seed).to(like.device, compute_dtype(like))
        out.extras = out.extra_inputs.names
        return out

    @contextmanager
    def adding_extras(self, cond: Cond) -> Iterator[None]:
        """Add the embeddings of this backbone's extra inputs to the time embedding, for what is inside."""
        if self.extra_inputs is None:
            yield
            return
        added = self.extra_inputs(cond, self.time_features, type(self).__name__)

        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            moved: Tensor = out + added.to(out.dtype)
            return moved

        # for this call only: a hook that stays would be copied with the module it closes over
        handle = self.time_embedding.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def fold_extras(self, values: dict[str, float]) -> None:
        """Put the embedding of constant extra inputs into the bias of the time embedding, and forget the inputs."""
        if self.extra_inputs is None:
            return
        like = next(self.extra_inputs.parameters())
        cond = {name: torch.tensor([values[name]], device=like.device) for name in self.extras}
        with torch.no_grad():
            bias = self.time_embedding.linear_2.bias
            bias.add_(self.extra_inputs(cond, self.time_features, type(self).__name__)[0].to(bias))
        self.extra_inputs, self.extras = None, ()


class UNetBackbone(TimedBackbone):
    """A diffusers U-Net, ``unet``, behind a denoiser; subclasses say what it is told."""

    unet: Any

    @property
    def network(self) -> nn.Module:
        """The diffusers U-Net."""
        unet: nn.Module = self.unet
        return unet

    @property
    def time_embedding(self) -> Any:
        """The U-Net's time embedding."""
        return self.unet.time_embedding

    @property
    def time_features(self) -> Callable[[Tensor], Tensor]:
        """The U-Net's sinusoids."""
        features: Callable[[Tensor], Tensor] = self.unet.time_proj
        return features

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return the middle block (without one, the last on the way down), or all blocks from input to output."""
        downs = tuple(f"unet.down_blocks.{i}" for i in range(len(self.unet.down_blocks)))
        ups = tuple(f"unet.up_blocks.{i}" for i in range(len(self.unet.up_blocks)))
        middle = ("unet.mid_block",) if self.unet.mid_block is not None else downs[-1:]
        return middle if where == "bottleneck" else (*dict.fromkeys((*downs, *middle, *ups)),)
