"""What exact denoisers have in common: predictions of any kind, densities, Jacobians, flow maps, samples."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.prediction import Clean, Kind, Prediction, compose
from fewstep.core.process import Process
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to, precise


class Level(NamedTuple):
    """A noise level per sample, and the state without its anchor: ``core = alpha x0 + sigma eps``."""

    core: Tensor
    alpha: Tensor
    sigma: Tensor


class ExactDenoiser(Denoiser):
    """The posterior mean of a known data law under any process, anchors included, exposed as a prediction ``kind``.

    Everything is differentiable in ``x_t``; maths is done in the dtype of ``x_t``, float32 at least. ``cond`` may carry
    ``"anchor"`` and what the law itself is conditioned on.
    """

    def __init__(self, process: Process, kind: Kind = Kind.X0) -> None:
        self.process, self.kind = process, kind

    @abstractmethod
    def exact_clean(self, level: Level, cond: Cond) -> Clean:
        """Return ``E[x0 | x_t]`` and ``E[eps | x_t]``; both are finite where alpha or sigma vanishes."""

    @abstractmethod
    def exact_score(self, level: Level, cond: Cond) -> Tensor:
        """Return the gradient of the log-density of ``x_t``; finite where alpha or sigma vanishes."""

    @abstractmethod
    def log_density(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """Return the log-density of ``x_t``, normalised, "b"."""

    @abstractmethod
    def score_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return the derivative of the score with respect to the flattened ``x_t``."""

    @abstractmethod
    def x0_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return the derivative of ``x0`` with respect to the flattened ``x_t``: ``alpha/sigma^2 Cov[x0 | x_t]``."""

    @abstractmethod
    def flow_map(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], s: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        """Return where the probability-flow ODE carries ``x_t`` from time ``t`` to time ``s``, earlier or later."""

    @abstractmethod
    def sample(
        self, rng: Rng, cond: Cond | None = None, *, stream: str = "data", dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b *d"]:
        """Return one sample of the data law per sample of ``rng``."""

    def level(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Level:
        """Return the noise level at ``t``, broadcast to ``x_t``, and ``x_t`` without its anchor."""
        return self.level_of(self.process.offset(x_t, t, (cond or {}).get("anchor")), t)

    def level_of(self, core: Tensor, t: Tensor) -> Level:
        """Return the noise level at ``t`` for a state without its anchor."""
        c = self.process.coefficients(t)
        return Level(precise(core), expand_to(c.alpha, core), expand_to(c.sigma, core))

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the exact prediction as this denoiser's kind."""
        level = self.level(x_t, t, cond)
        if self.kind is Kind.SCORE:
            return Prediction(self.exact_score(level, cond), Kind.SCORE)
        value = compose(self.exact_clean(level, cond), self.kind, t, self.process, cond.get("anchor"))
        return Prediction(value, self.kind)

    def null(self, cond: Cond) -> Cond:
        """Return ``cond``: a law without classes is its own unconditional counterpart."""
        return cond


def log_ratio(
    q: ExactDenoiser, p: ExactDenoiser, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
) -> Float[Tensor, " b"]:
    """Return ``log q_t(x_t) - log p_t(x_t)`` of two data laws, attached to ``x_t``."""
    return q.log_density(x_t, t, cond) - p.log_density(x_t, t, cond)
