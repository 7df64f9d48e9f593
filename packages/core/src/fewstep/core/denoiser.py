"""A denoiser: a network read through a process, asked for ``x0``, ``eps`` or ``score`` whatever it was trained to give.

Conditions are mappings from names to tensors whose first axis is the batch. One name is reserved: ``"anchor"``, the
``y`` of processes that have one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.prediction import Clean, Kind, Prediction, compose, convert, decompose
from fewstep.core.process import EDM, Process, TrigFlow
from fewstep.core.tensors import expand_to, precise

Cond = Mapping[str, Tensor]


def batch_of(cond: Cond, start: int, stop: int) -> Cond:
    """Return rows ``start:stop`` of every tensor of a condition."""
    return {name: value[start:stop] for name, value in cond.items()}


def concat(conds: list[Cond]) -> Cond:
    """Return conditions joined along the batch; all must have the same names."""
    return {name: torch.cat([c[name] for c in conds]) for name in conds[0]} if conds else {}


class Denoiser(ABC):
    """Something that predicts at ``(x_t, t, cond)`` under a process; every view of the prediction follows from that.

    ``x_t``: "b *d"; ``t``: "b", the process's own clock; results: "b *d", float32 at least.
    """

    process: Process

    @abstractmethod
    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the raw prediction with its meaning."""

    def null(self, cond: Cond) -> Cond:
        """Return the unconditional counterpart of ``cond``; UserError when the network was not trained with one."""
        raise UserError(
            f"{type(self).__name__} has no unconditional prediction: guidance needs one, set guidance_scale to 1"
        )

    def view(self, kind: Kind, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the prediction as ``kind``."""
        return convert(self.predict(x_t, t, cond), kind, x_t, t, self.process, cond.get("anchor"))

    def clean(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Clean:
        """Return predicted ``x0`` and ``eps`` from one evaluation."""
        return decompose(self.predict(x_t, t, cond), x_t, t, self.process, cond.get("anchor"))

    def x0(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the predicted clean sample (the posterior mean ``E[x0 | x_t]`` of an exact denoiser)."""
        return self.view(Kind.X0, x_t, t, cond)

    def eps(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the predicted noise."""
        return self.view(Kind.EPS, x_t, t, cond)

    def score(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return the predicted score ``-eps / sigma``."""
        return self.view(Kind.SCORE, x_t, t, cond)

    def velocity(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Float[Tensor, "b *d"]:
        """Return ``dx_t/dt`` of the probability-flow ODE in the process's clock."""
        return self.view(Kind.VELOCITY, x_t, t, cond)


class Backbone(nn.Module, ABC):
    """A network behind a denoiser: plain tensors in and out, no process inside.

    ``extras`` lists the additional inputs it understands as condition names, e.g. ``guidance`` or ``end_time``.
    """

    @abstractmethod
    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the raw output, shaped like ``x``; ``time`` is the network's own time input, "b"."""

    def null(self, cond: Cond) -> Cond:
        """Return the condition of the unconditional prediction."""
        raise UserError(f"{type(self).__name__} was not made with an unconditional class: guidance is not available")


@runtime_checkable
class Scaling(Protocol):
    """How a network's input, time and output relate to ``x_t``, ``t`` and a prediction."""

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return the network's ``x`` and time."""

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return what the raw output means at ``(x, t)``."""


@dataclass(frozen=True)
class Plain:
    """The network sees ``x_t`` and the process's time input, and outputs ``kind`` directly."""

    kind: Kind

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return ``x`` and ``process.time_input(t)``."""
        return x, process.time_input(t)

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return the raw output as ``kind``."""
        return Prediction(raw, self.kind)


@dataclass(frozen=True)
class EDMScaling:
    """Karras preconditioning ``D = c_skip y + c_out F(c_in y, ln(sigma)/4)`` (arXiv 2206.00364, table 1).

    Works for any process through ``y = x_t / alpha`` and ``sigma = tau(t)``.
    """

    sigma_data: float = 0.5

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return ``c_in y`` and ``ln(sigma)/4``."""
        c = process.coefficients(t)
        tau = c.sigma / c.alpha
        return x * expand_to(1 / (c.alpha * (tau**2 + self.sigma_data**2).sqrt()), x), tau.log() / 4

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return the preconditioned ``x0``."""
        c = process.coefficients(t)
        tau, sd = c.sigma / c.alpha, self.sigma_data
        skip, out = sd**2 / (tau**2 + sd**2), tau * sd / (tau**2 + sd**2).sqrt()
        return Prediction(expand_to(skip / c.alpha, x) * precise(x) + expand_to(out, x) * precise(raw), Kind.X0)


@dataclass(frozen=True)
class TrigFlowScaling:
    """sCM's parameterisation: the network sees ``x_t / sigma_data`` and ``t``; ``F = velocity / sigma_data``."""

    sigma_data: float = 0.5

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return ``x / sigma_data`` and the process's time input."""
        return x / self.sigma_data, process.time_input(t)

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return ``sigma_data F`` as a velocity."""
        return Prediction(self.sigma_data * precise(raw), Kind.VELOCITY)


class NetworkDenoiser(Denoiser):
    """A backbone read through a process and a scaling.

    Raises UserError when a TrigFlow scaling meets another process.
    """

    def __init__(self, backbone: Backbone, process: Process, scaling: Scaling) -> None:
        if isinstance(scaling, TrigFlowScaling) and not isinstance(process, TrigFlow):
            raise UserError(f"TrigFlow scaling needs the TrigFlow process, got {type(process).__name__}")
        self.backbone, self.process, self.scaling = backbone, process, scaling

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the network's prediction; ``cond['anchor']`` is passed on to the network too."""
        x, time = self.scaling.inputs(x_t, t, self.process)
        raw = self.backbone(x.to(x_t.dtype), time.to(x_t.dtype), cond)
        return self.scaling.output(raw, x_t, t, self.process)

    def null(self, cond: Cond) -> Cond:
        """Return the backbone's unconditional condition."""
        return self.backbone.null(cond)

    def with_backbone(self, backbone: Backbone) -> NetworkDenoiser:
        """Return the same reading of another network."""
        return NetworkDenoiser(backbone, self.process, self.scaling)


class Reprocessed(Denoiser):
    """A denoiser seen through another process: same network, matched ``tau``, rescaled input; no training needed.

    Turns a rectified-flow or VP teacher into a TrigFlow or EDM one exactly (sCM, arXiv 2410.11081; SANA-Sprint,
    2503.09641). Beyond the noise range of the inner process the nearest level is used.
    """

    def __init__(self, inner: Denoiser, process: Process) -> None:
        if inner.process.has_anchor or process.has_anchor:
            raise UserError("a process with an anchor has no equivalent without one: keep the teacher's own process")
        self.inner, self.process = inner, process

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the inner prediction as a ``v`` of this process (well conditioned at both ends)."""
        c = self.process.coefficients(t)
        s = self.inner.process.time_from_tau(c.sigma / c.alpha)
        d = self.inner.process.coefficients(s)
        # lengths instead of alphas: finite where alpha vanishes
        scale = torch.hypot(d.alpha, d.sigma) / torch.hypot(c.alpha, c.sigma)
        clean = self.inner.clean((x_t * expand_to(scale, x_t)).to(x_t.dtype), s, cond)
        return Prediction(compose(clean, Kind.V, t, self.process), Kind.V)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)


class MicroBatched(Denoiser):
    """A denoiser evaluated in pieces of at most ``size`` samples: the same numbers, less memory (no-grad use)."""

    def __init__(self, inner: Denoiser, size: int) -> None:
        self.inner, self.size, self.process = inner, size, inner.process

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the joined predictions of the pieces."""
        pieces = [
            self.inner.predict(x_t[i : i + self.size], t[i : i + self.size], batch_of(cond, i, i + self.size))
            for i in range(0, len(x_t), self.size)
        ]
        return Prediction(torch.cat([p.value for p in pieces]), pieces[0].kind)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)


def edm_sigma_data(process: Process) -> float:
    """Return the data standard deviation a process was declared with (0.5 when it declares none)."""
    return float(process.sigma_data) if isinstance(process, EDM | TrigFlow) else 0.5
