"""Networks that do not move: no gradients to their parameters, no statistics, no dropout, whoever calls ``train()``."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class _StayInEval:
    """Stands in for a module's ``train``; an object and no closure: deep copies must refer to the copied module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return self.module


def freeze(module: M) -> M:
    """Return ``module`` with ``requires_grad`` off everywhere, in eval mode for good.

    Gradients still flow through it to its inputs. BatchNorm uses its running statistics and dropout is off even after
    ``train()`` on it, on a part of it or on a module that contains it. :func:`thaw` undoes it.
    """
    module.requires_grad_(False)
    thaw_modes(module)
    module.eval()
    for part in module.modules():
        part.__dict__["train"] = _StayInEval(part)
    return module


def thaw_modes(module: M) -> M:
    """Return ``module`` obeying ``train()`` and ``eval()`` again."""
    for part in module.modules():
        part.__dict__.pop("train", None)
    return module


def thaw(module: M) -> M:
    """Return ``module`` in train mode, every parameter trainable."""
    thaw_modes(module).requires_grad_(True)
    module.train()
    return module


def trainable_copy(module: M) -> M:
    """Return a deep copy whose floating-point parameters all train, whatever the state of the original.

    What is in half precision becomes float32: small updates would be lost in it.
    """
    return thaw(upcast(copy.deepcopy(module)))


def upcast(module: M) -> M:
    """Return ``module`` with everything it keeps in half precision in float32."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    return module
