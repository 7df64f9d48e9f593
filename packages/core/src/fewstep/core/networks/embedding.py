"""Embeddings of scalars: network times, guidance scales, end times."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, nearest
from fewstep.core.networks.backbone import entry
from fewstep.core.rng import Rng

GUIDANCE_FREQUENCY = 10.0  # guidance scales lie in 1..20: periods from 0.6 to thousands of scale units
KNOWN_EXTRAS = ("end_time", "guidance")


def sinusoid(value: Float[Tensor, " b"], width: int, max_period: float = 1e4) -> Float[Tensor, "b w"]:
    """Return cosines and sines of ``value`` at ``width // 2`` frequencies, geometrically from 1 to 1/max_period."""
    half = width // 2
    powers = torch.arange(half, device=value.device, dtype=torch.float64) / half
    angles = value.double()[:, None] * torch.exp(-math.log(max_period) * powers)
    out = torch.cat([angles.cos(), angles.sin()], 1)
    return torch.nn.functional.pad(out, (0, width % 2))


class ScalarMLP(nn.Module):
    """Two layers on features of a scalar; the last one is zero, so that adding the result changes nothing at first."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(features, width), nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return "b width" of features "b features"."""
        hidden: Tensor = torch.nn.functional.silu(self.inner(features.to(self.inner.weight.dtype)))
        out: Tensor = self.outer(hidden)
        return out


class ExtraInputs(nn.Module):
    """Embeddings of extra scalar inputs, summed into a network's time embedding.

    ``end_time`` is in the network's own time units and goes through its own time features; ``guidance`` is the scale of
    ``uncond + guidance_scale (cond - uncond)``. Raises UserError for another name.
    """

    def __init__(self, names: tuple[str, ...], features: int, width: int, seed: int) -> None:
        super().__init__()
        for name in names:
            if name not in KNOWN_EXTRAS:
                raise UserError(f"no embedding for the extra input '{name}': {nearest(name, KNOWN_EXTRAS)}")
        self.names, self.features, self.width = tuple(names), features, width
        with Rng(seed, 0, ()).network_noise("extras"):
            self.embeddings = nn.ModuleDict({name: ScalarMLP(features, width) for name in names})

    def extended(self, names: tuple[str, ...], seed: int) -> ExtraInputs:
        """Return embeddings of these names as well, sharing the ones that exist."""
        new = tuple(name for name in names if name not in self.names)
        out = ExtraInputs(new, self.features, self.width, seed)
        out.names = self.names + new
        out.embeddings = nn.ModuleDict({**self.embeddings, **out.embeddings})
        return out

    def forward(self, cond: Cond, time_features: Callable[[Tensor], Tensor], who: str) -> Tensor:
        """Return the summed embeddings "b width"; UserError when the condition lacks one."""
        parts = []
        for name in self.names:
            value = entry(cond, name, who)
            plain = name == "guidance"
            features = sinusoid(GUIDANCE_FREQUENCY * value, self.features) if plain else time_features(value)
            parts.append(self.embeddings[name](features))
        return torch.stack(parts).sum(0)
