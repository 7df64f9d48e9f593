"""Networks that wait in the CPU's memory and are on the device only while they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def offload(module: nn.Module) -> None:
    """Keep a frozen network on the CPU between its forwards; it runs where its first tensor argument is.

    A forward that others will differentiate through leaves it on the device, where its weights are needed again.
    """

    def fetch(part: nn.Module, args: tuple[Any, ...]) -> None:
        device = next(value.device for value in args if isinstance(value, Tensor))
        if next(part.parameters()).device != device:
            part.to(device)

    def leave(part: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not torch.is_grad_enabled():
            part.to("cpu")

    module.to("cpu")
    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(leave)
