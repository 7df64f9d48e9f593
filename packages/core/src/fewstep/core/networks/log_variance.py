"""A learned log-variance per noise level: the adaptive weight of EDM2 and sCM."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogVariance(nn.Module):
    """``u(t)``: one linear layer on fixed features ``cos(k t), sin(k t)`` of an angle (arXiv 2410.11081, appendix D).

    Xavier weights from ``seed``, bias 0. Low frequencies only: the weight should vary slowly with the noise level.
    """

    def __init__(self, seed: int, frequencies: int = 8) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.linear = nn.Linear(2 * frequencies, 1)
        nn.init.xavier_uniform_(self.linear.weight, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return ``u`` at angles ``t`` in [0, pi/2]."""
        k = torch.arange(1, self.frequencies + 1, device=t.device, dtype=t.dtype)
        angles = t[:, None] * k
        features = torch.cat([angles.cos(), angles.sin()], 1).to(self.linear.weight.dtype)
        value: Tensor = self.linear(features)[:, 0]
        return value
