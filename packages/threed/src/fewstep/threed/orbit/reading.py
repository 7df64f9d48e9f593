"""How networks of Stable Video Diffusion's kind are read: EDM noise levels, v-prediction, guidance per view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, concat
from fewstep.core.errors import UserError, check
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import EDM, Process
from fewstep.core.tensors import expand_to, precise


@dataclass(frozen=True)
class KarrasV:
    """``x0 = x / (s^2 + 1) - s / sqrt(s^2 + 1) F(x / sqrt(s^2 + 1), ln(s) / 4)``: v-prediction at noise level s.

    SVD's preconditioning (arXiv 2311.15127), what diffusers' Euler scheduler makes of ``v_prediction``. Works for any
    process through ``y = x_t / alpha`` and ``s = tau(t)``.
    """

    def inputs(self, x: Tensor, t: Tensor, process: Process) -> tuple[Tensor, Tensor]:
        """Return ``c_in y`` and ``ln(s) / 4``."""
        c = process.coefficients(t)
        return x / expand_to(torch.hypot(c.alpha, c.sigma), x), (c.sigma / c.alpha).log() / 4

    def output(self, raw: Tensor, x: Tensor, t: Tensor, process: Process) -> Prediction:
        """Return the clean sample."""
        c = process.coefficients(t)
        tau = c.sigma / c.alpha
        skip, out = 1 / (tau**2 + 1), -tau / (tau**2 + 1).sqrt()
        return Prediction(expand_to(skip / c.alpha, x) * precise(x) + expand_to(out, x) * precise(raw), Kind.X0)

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Tensor, process: Process) -> Tensor:
        """Return the ``F`` that gives ``x0`` back: ``a eps - s a x0`` with ``a = 1 / sqrt(1 + s^2)``."""
        c = process.coefficients(t)
        tau = c.sigma / c.alpha
        a = 1 / (1 + tau**2).sqrt()
        return expand_to(a, x0) * precise(eps) - expand_to(tau * a, x0) * precise(x0)


def karras_process(scheduler: Mapping[str, Any]) -> EDM:
    """Return the process of SVD's scheduler config; UserError for one that is not continuous v-prediction."""
    name, kind = scheduler.get("_class_name"), scheduler.get("prediction_type")
    check(
        name == "EulerDiscreteScheduler" and kind == "v_prediction",
        f"scheduler: {name} with prediction_type '{kind}'; orbits are read with SVD's EulerDiscreteScheduler and "
        "v_prediction",
    )
    low, high = scheduler.get("sigma_min"), scheduler.get("sigma_max")
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        raise UserError("scheduler: no sigma_min and sigma_max in it; SVD has 0.002 and 700: add them")
    return EDM(sigma_min=float(low), sigma_max=float(high), sigma_data=1.0)


class PerViewGuided(Denoiser):
    """A denoiser of "b v ..." under ``uncond + scale_v (cond - uncond)``, one scale per view, in one doubled batch."""

    def __init__(self, inner: Denoiser, scales: Float[Tensor, " v"]) -> None:
        self.inner, self.scales, self.process = inner, scales, inner.process

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the guided prediction; UserError when there are not as many scales as views."""
        if bool((self.scales == 1).all()):
            return self.inner.predict(x_t, t, cond)
        views = x_t.shape[1]
        check(len(self.scales) == views, f"{len(self.scales)} guidance scales for {views} views: give one each")
        both = concat([cond, self.inner.null(cond)])
        prediction = self.inner.predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        with_cond, without = precise(prediction.value).chunk(2)
        scale = self.scales.to(with_cond).reshape(1, views, *([1] * (x_t.ndim - 2)))
        return Prediction(without + scale * (with_cond - without), prediction.kind)
