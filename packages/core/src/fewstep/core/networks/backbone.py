"""What core asks of a backbone beyond its forward: extra inputs, adapters, features, files.

Every :class:`~fewstep.core.denoiser.Backbone` can be copied, frozen and trained; the classes here say the rest. What
subclasses :class:`ExtensibleBackbone` gets students with extra inputs, LoRA roles and feature discriminators.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Backbone, Cond
from fewstep.core.errors import UserError, check


class ExtensibleBackbone(Backbone):
    """A backbone that can be given extra inputs, and knows where adapters and feature taps belong.

    ``lora_targets``: names (or suffixes) of the layers that get LoRA factors when the user names none.
    ``extras``: the condition entries it understands besides its own; ``extra_inputs`` embeds them. ``num_labels``:
    number of values cond["label"] may take, the null class included; 0 for networks without labels.
    """

    lora_targets: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    num_labels: int = 0
    extra_inputs: nn.Module | None  # no default here: a class attribute would hide the registered module

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module adapters are injected into: the model as its own library knows it."""

    @abstractmethod
    def with_extras(self, names: tuple[str, ...], seed: int) -> ExtensibleBackbone:
        """Return a backbone around the *same* network that understands ``names`` too, by new zero-initialised layers.

        Outputs are unchanged until those layers are trained. Raises UserError for an extra it has no embedding for.
        """

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Return module names whose outputs are features: ``bottleneck``, or ``blocks`` for all of them."""
        raise UserError(f"{type(self).__name__} names no feature taps: list module names")

    def blocks(self) -> tuple[str, ...]:
        """Return the paths of the blocks within :attr:`network`, in the order they run: the units of sharding."""
        return listed_blocks(self.network)

    def kept(self) -> tuple[str, ...]:
        """Return the paths of parts within :attr:`network` whose activations its own checkpointing would keep."""
        return ()

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights and configuration into a folder as safetensors and JSON."""


def listed_blocks(network: nn.Module) -> tuple[str, ...]:
    """Return the paths of the entries of a network's outermost lists of layers, those without parameters left out.

    An entry may be None, as diffusers' middle blocks have in the place of attention that is switched off.
    """
    found: list[str] = []
    outer: list[str] = []
    for path, part in network.named_modules():
        if isinstance(part, nn.ModuleList) and not any(path.startswith(f"{each}.") for each in outer):
            outer.append(path)
            blocks: list[nn.Module | None] = list(part)
            found += [f"{path}.{i}" for i, block in enumerate(blocks) if block is not None and _has_weights(block)]
    return tuple(found)


def _has_weights(block: nn.Module) -> bool:
    return next(block.parameters(), None) is not None


def entry(cond: Cond, name: str, who: str) -> Tensor:
    """Return ``cond[name]``; UserError naming the network and what the condition has."""
    if name not in cond:
        raise UserError(f"{who} needs cond['{name}'] and got {sorted(cond) or 'an empty condition'}")
    return cond[name]


def join_channels(x: Tensor, cond: Cond, names: tuple[str, ...], who: str) -> Tensor:
    """Return ``x`` with the named entries appended on axis 1; UserError when their other axes differ."""
    parts = [x]
    for name in names:
        value = entry(cond, name, who).to(x.dtype)
        check(
            value.shape[0] == x.shape[0] and value.shape[2:] == x.shape[2:],
            f"cond['{name}'] is {tuple(value.shape)} and cannot join an input of {tuple(x.shape)}: resize it first",
        )
        parts.append(value)
    return torch.cat(parts, 1) if names else x


def null_label(cond: Cond, null_class: int | None, who: str) -> Cond:
    """Return the condition with every label replaced by the null class; UserError when there is none."""
    if null_class is None:
        raise UserError(f"{who} has no unconditional class: guidance is not available, use guidance_scale 1")
    return dict(cond) | {"label": torch.full_like(entry(cond, "label", who), null_class)}
