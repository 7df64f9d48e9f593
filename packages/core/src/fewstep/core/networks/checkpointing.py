"""Activation checkpointing of networks: their own, and part by part where theirs does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fewstep.core.errors import UserError


class CheckpointedBlock(nn.Module):
    """Mixed into a block's class: activations inside are recomputed in the backward pass.

    The attributes are those that diffusers' own blocks have.
    """

    gradient_checkpointing: bool
    _gradient_checkpointing_func: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the block returns."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(partial(super().forward, **kwargs), *args)
        return super().forward(*args, **kwargs)


@cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (CheckpointedBlock, kind), {})


def enable_checkpointing(network: nn.Module, blocks: Sequence[str], who: str, left_out: Sequence[str] = ()) -> None:
    """Let a network recompute activations: as it knows itself, else in each of its ``blocks`` (paths).

    ``left_out``: the paths of parts whose activations its own way would keep; they are recomputed, too. Raises
    UserError, naming ``who``, for a network that has no such mode.
    """
    enable = getattr(network, "enable_gradient_checkpointing", None)
    if enable is None:
        raise UserError(f"roles.checkpointing: the network of role '{who}' ({type(network).__name__}) has no such mode")
    # diffusers' UNet3DConditionModel has the switch, and blocks that do not look at it
    own = getattr(network, "_supports_gradient_checkpointing", True)
    if own:
        enable()
    for path in left_out if own else blocks:
        block = network.get_submodule(path)
        if not isinstance(block, CheckpointedBlock):
            block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]
        block.gradient_checkpointing = True  # type: ignore[assignment]
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
