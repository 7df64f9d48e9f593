"""How ResShift's network sees a noisy sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import Process
from fewstep.core.tensors import expand_to


@dataclass(frozen=True)
class ResShiftScaling:
    """The network sees a scaled ``x_t`` and the index, and outputs ``x0`` (arXiv 2307.12348).

    ``latent``: ``x_t / sqrt(kappa^2 eta + 1)``, of unit variance where the latents have it; ``pixel``:
    ``x_t / (3 kappa sqrt(eta) + 1)``, within about [-1, 1] where the pixels are.
    """

    space: Literal["latent", "pixel"] = "latent"

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return the scaled ``x`` and ``process.time_input(t)``."""
        sigma = process.coefficients(t).sigma  # kappa sqrt(eta)
        size = (sigma**2 + 1).sqrt() if self.space == "latent" else 3 * sigma + 1
        return x / expand_to(size, x), process.time_input(t)

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return the raw output as ``x0``."""
        return Prediction(raw, Kind.X0)
