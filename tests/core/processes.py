"""One process of every kind, and draws that are the same on every run."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.process import EDM, VP, CosineVP, LocalOffset, Process, RectifiedFlow, ResidualShift, TrigFlow

PROCESSES: dict[str, Process] = {
    "vp": VP.scaled_linear(),
    "ddpm": VP.linear(),
    "cosine": CosineVP(),
    "edm": EDM(),
    "flow": RectifiedFlow(),
    "shifted": RectifiedFlow(shift=3.0),
    "trigflow": TrigFlow(),
    "offset": LocalOffset.linear(),
    "residual": ResidualShift(),
    "residual_4": ResidualShift(num_steps=4, min_noise=0.2, kappa=2.0),
}


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(value: float, n: int = 1) -> Tensor:
    return torch.full((n,), float(value), dtype=torch.float64)


def anchored(process: Process, *shape: int) -> dict[str, Tensor]:
    return {"anchor": randoms(*shape, seed=99)} if process.has_anchor else {}


def inner_times(process: Process, n: int, low: float = 0.02, high: float = 0.97) -> Tensor:
    """Times away from both ends and from the knots of tables."""
    t = process.unit_to_time(torch.linspace(low, high, n, dtype=torch.float64))
    return t.floor() + 0.37 if process.discrete else t
