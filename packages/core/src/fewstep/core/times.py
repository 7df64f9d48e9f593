"""Laws noise levels are drawn from during training, for any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.errors import check
from fewstep.core.process import Process
from fewstep.core.rng import Rng


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """A law of ``t``.

    ``uniform``: on the process's natural clock between the fractions ``low`` and ``high`` (an index range for tables,
    the Karras index for EDM). ``lognormal``: ``ln tau ~ N(mean, std^2)`` (EDM training; sCM's arctan law under
    TrigFlow). ``logit_normal``: the natural clock's fraction is ``sigmoid(N(mean, std^2))`` (SD3, LADD), then stretched
    to [low, high]. ``low_end``/``high_end``: when ``anneal_steps > 0``, the range moves linearly from (low, high) to
    these over so many steps, from step ``anneal_start`` on; ``sqrt``: fast at first (HiFA, arXiv 2305.18766). One step
    is a drop. Where ``low`` equals ``high`` that level is taken. ``shared``: one draw for the whole global batch.
    """

    law: Literal["uniform", "lognormal", "logit_normal"] = "uniform"
    low: float = 0.02
    high: float = 0.98
    mean: float = -1.2
    std: float = 1.2
    low_end: float | None = None
    high_end: float | None = None
    anneal_steps: int = 0
    anneal_start: int = 0
    anneal: Literal["linear", "sqrt"] = "linear"
    shared: bool = False

    def __post_init__(self) -> None:
        for low, high in ((self.low, self.high), self.bounds(self.anneal_start + self.anneal_steps)):
            check(0 <= low <= high <= 1, f"time range needs 0 <= low <= high <= 1, got [{low:g}, {high:g}]")
        check(self.anneal_start >= 0, f"time law: anneal_start must not be negative, got {self.anneal_start}")
        check(
            self.anneal_steps > 0 or (self.anneal_start == 0 and self.anneal == "linear"),
            "time law: anneal_start and anneal say how a range moves: give anneal_steps too",
        )
        check(self.std > 0, f"time law: std must be positive, got {self.std:g}")

    def bounds(self, step: int) -> tuple[float, float]:
        """Return the range of fractions in force at ``step``."""
        gone = step - self.anneal_start
        share = min(max(gone / self.anneal_steps, 0.0), 1.0) if self.anneal_steps > 0 else 0.0
        share = share**0.5 if self.anneal == "sqrt" else share
        low_end = self.low if self.low_end is None else self.low_end
        high_end = self.high if self.high_end is None else self.high_end
        return self.low + share * (low_end - self.low), self.high + share * (high_end - self.high)

    def draw(self, process: Process, rng: Rng, stream: str, step: int = 0) -> Float[Tensor, " b"]:
        """Return one ``t`` per sample of ``rng``, at levels the process's networks were trained at, float64."""
        low, high = self.bounds(step)
        if self.law == "uniform":
            u = self._uniform(rng, stream)
            return process.round(process.unit_to_time(low + u * (high - low)))
        normal = rng.normal(stream, (), torch.float64)
        if self.shared:
            normal = torch.special.ndtri(self._uniform(rng, stream).clamp(1e-12, 1 - 1e-12))
        level = self.mean + self.std * normal
        if self.law == "lognormal":
            return process.round(process.time_from_tau(level.exp()))
        return process.round(process.unit_to_time(low + torch.sigmoid(level) * (high - low)))

    def _uniform(self, rng: Rng, stream: str) -> Tensor:
        if self.shared:
            return torch.full((len(rng.ids),), rng.shared_uniform(stream), dtype=torch.float64, device=rng.device)
        return rng.uniform(stream)
