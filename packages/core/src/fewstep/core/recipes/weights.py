"""Moving weights between two roles of the same shape: targets that follow a student, students that become teachers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fewstep.core.errors import check


def _pairs(destination: nn.Module, source: nn.Module) -> list[tuple[Tensor, Tensor]]:
    pairs: list[tuple[Tensor, Tensor]] = []
    for name in ("parameters", "buffers"):
        into, out_of = (list(getattr(module, name)()) for module in (destination, source))
        check(
            [each.shape for each in into] == [each.shape for each in out_of],
            "roles that exchange weights must have the same shapes: make both full copies, or adapters of one rank",
        )
        pairs += zip(into, out_of, strict=True)
    return pairs


@torch.no_grad()
def copy_weights(destination: nn.Module, source: nn.Module) -> None:
    """Copy parameters and buffers, in order. Raises UserError when the shapes differ."""
    for into, out_of in _pairs(destination, source):
        into.copy_(out_of)


@torch.no_grad()
def average_weights(destination: nn.Module, source: nn.Module, decay: float) -> None:
    """Move parameters to ``decay * destination + (1 - decay) * source``; buffers are copied."""
    count = len(list(destination.parameters()))
    for i, (into, out_of) in enumerate(_pairs(destination, source)):
        if i < count:
            into.lerp_(out_of.to(into), 1 - decay)
        else:
            into.copy_(out_of)


@torch.no_grad()
def set_parameters(destination: nn.Module, values: Iterable[Tensor]) -> None:
    """Set the parameters, in order, to ``values``. Raises UserError when the shapes differ."""
    into, given = list(destination.parameters()), list(values)
    check([p.shape for p in into] == [v.shape for v in given], "weights to be promoted do not fit the role")
    for parameter, value in zip(into, given, strict=True):
        parameter.copy_(value)
