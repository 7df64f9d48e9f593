"""Networks whose first layer is given more channels, the new weights zero: what they predicted, they predict still."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewstep.core.errors import check


def widened(layer: nn.Module, ratio: tuple[int, int]) -> nn.Module:
    """Return a convolution or linear layer whose inputs grew from ``ratio[0]`` channels to ``ratio[1]``.

    New weights are zero. A linear layer on patches has several inputs per channel, a channel's side by side. Raises
    UserError for another kind of layer, or one whose inputs are no multiple of the channels.
    """
    old, new = ratio
    check(
        isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear) and getattr(layer, "groups", 1) == 1,
        f"a {type(layer).__name__} cannot be given more input channels",
    )
    known: Any = layer
    weight = known.weight.detach()
    each, rest = divmod(weight.shape[1], old)
    check(rest == 0 and new >= old, f"a layer of {weight.shape[1]} inputs cannot go from {old} channels to {new}")
    added = weight.new_zeros(weight.shape[0], each * (new - old), *weight.shape[2:])
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(each * new, layer.out_features, device="meta")
    else:
        settings = {"stride": known.stride, "padding": known.padding, "dilation": known.dilation}
        settings |= {"padding_mode": known.padding_mode, "device": "meta"}
        made = type(layer)(new, known.out_channels, known.kernel_size, **settings)
    made.weight, made.bias = nn.Parameter(torch.cat([weight, added], 1), known.weight.requires_grad), known.bias
    made.train(layer.training)
    return made  # type: ignore[no-any-return]


def widen_input(network: Any, path: str, channels: int, base: int) -> Any:
    """Return a diffusers model, its layer ``path`` widened from ``base`` channels to ``channels`` unless it is already.

    Its config says so too: what it saves, diffusers loads. Raises UserError for a model of another number of channels.
    """
    found = int(network.config.in_channels)
    if found == channels:
        return network
    check(
        found == base,
        f"{type(network).__name__}: its first layer takes {found} channels: neither {base} nor {channels}",
    )
    network.set_submodule(path, widened(network.get_submodule(path), (base, channels)))
    network.register_to_config(in_channels=channels)
    return network
