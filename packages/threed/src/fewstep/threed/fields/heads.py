"""Small networks that read signed distance, density and colour from a field's features."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SOFTPLUS_SHARPNESS = 100.0
COLOUR_MARGIN = 0.001  # colours may reach 0 and 1 without an infinite logit


class FeatureMLP(nn.Module):
    """Linear layers with a smooth activation between them; the last may start at zero."""

    def __init__(
        self, inputs: int, outputs: int, *, hidden: int = 64, layers: int = 2, zero_last: bool = False
    ) -> None:
        """``layers`` counts the hidden ones; a smooth activation keeps second derivatives alive."""
        super().__init__()
        widths = [inputs, *[hidden] * layers, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        if zero_last:
            last = cast(nn.Linear, self.layers[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b m"]:
        """Return the outputs at every point."""
        for layer in self.layers[:-1]:
            x = F.softplus(layer(x), beta=SOFTPLUS_SHARPNESS)
        return cast(Tensor, self.layers[-1](x))


class SDFHead(nn.Module):
    """Signed distance, negative inside: a correction to the sphere of ``radius``, zero at the start."""

    def __init__(self, features: int, *, radius: float = 0.5, hidden: int = 64, layers: int = 2) -> None:
        """Start as the sphere."""
        super().__init__()
        self.radius = radius
        self.mlp = FeatureMLP(features, 1, hidden=hidden, layers=layers, zero_last=True)

    def forward(self, features: Float[Tensor, "*b n"], points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """Return |p| - radius plus what the features say."""
        return cast(Tensor, self.mlp(features)[..., 0] + points.norm(dim=-1) - self.radius)


class DensityHead(nn.Module):
    """Density softplus(raw + height (1 - |p|/radius)): a blob at the start (DreamFusion, arXiv 2209.14988)."""

    def __init__(
        self, features: int, *, height: float = 10.0, radius: float = 0.5, hidden: int = 64, layers: int = 2
    ) -> None:
        """Start as the blob."""
        super().__init__()
        self.height, self.radius = height, radius
        self.mlp = FeatureMLP(features, 1, hidden=hidden, layers=layers, zero_last=True)

    def forward(self, features: Float[Tensor, "*b n"], points: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """Return densities, above zero."""
        blob = self.height * (1 - points.norm(dim=-1) / self.radius)
        return F.softplus(self.mlp(features)[..., 0] + blob)


class ColourHead(nn.Module):
    """Colours, a sigmoid stretched by a thousandth on either side."""

    def __init__(self, features: int, *, channels: int = 3, hidden: int = 64, layers: int = 2) -> None:
        """Start at the network's own random colours."""
        super().__init__()
        self.mlp = FeatureMLP(features, channels, hidden=hidden, layers=layers)

    def forward(self, features: Float[Tensor, "*b n"]) -> Float[Tensor, "*b c"]:
        """Return colours in [-0.001, 1.001]."""
        return torch.sigmoid(self.mlp(features)) * (1 + 2 * COLOUR_MARGIN) - COLOUR_MARGIN
