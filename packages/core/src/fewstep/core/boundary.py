"""Consistency functions: a denoiser's prediction turned into a map that is the identity at the end of the trajectory.

* ``edm``: the scalings of consistency models (arXiv 2303.01469, appendix C), in variance-exploding coordinates.
* ``lcm``: the scalings of latent consistency models (arXiv 2310.04378), on the index of a table.
* DDIM jumps (TCD, PCM) and TrigFlow's ``x0`` prediction satisfy the boundary by themselves; nothing here is needed for
them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import UserError
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import Process
from fewstep.core.tensors import expand_to, precise

LCM_TIME_SCALE = 10.0  # diffusers' LCMScheduler calls it timestep_scaling


class Scalings(NamedTuple):
    """``f = skip x_t + out x0`` for a predicted ``x0``, each "b", float64."""

    skip: Float[Tensor, " b"]
    out: Float[Tensor, " b"]


def edm_scalings(t: Float[Tensor, " b"], process: Process, sigma_data: float = 0.5) -> Scalings:
    """Return the scalings of consistency models, ending at the process's least noise ``e = tau(t_min)``.

    The paper writes ``f = c_skip x + c_out F`` with the raw network ``F`` of Karras' preconditioning. Solving that
    preconditioning for ``F`` gives ``f = (c_skip - r k) x + r x0`` with ``r = (tau - e)/tau``, ``k = s^2/(tau^2 +
    s^2)``, ``c_skip = s^2/((tau - e)^2 + s^2)``, ``x = x_t / alpha``: the same function, for a network of any
    prediction kind.
    """
    c = process.coefficients(t)
    tau = c.sigma / c.alpha
    end = process.tau(torch.tensor(process.t_min, dtype=torch.float64)).to(tau.device)
    remaining = (tau - end).clamp_min(0)
    at_end = t.double() <= process.t_min
    ratio = torch.where(at_end, 0.0, torch.where(tau.isinf(), 1.0, remaining / tau))
    variance = sigma_data**2
    skip = variance / (remaining**2 + variance) - ratio * variance / (tau**2 + variance)
    # where alpha vanishes the skip does so faster (as 1/tau^3)
    return Scalings(torch.where(c.alpha > 0, skip / c.alpha, 0.0), ratio)


def lcm_scalings(
    t: Float[Tensor, " b"], process: Process, sigma_data: float = 0.5, time_scale: float = LCM_TIME_SCALE
) -> Scalings:
    """Return ``s^2/((k i)^2 + s^2)`` and ``k i / sqrt((k i)^2 + s^2)`` at index ``i``, ``k = time_scale``.

    The boundary holds at index 0 and has all but vanished one index on (skip 2e-3), as in the published models.
    Raises UserError for a process without indices.
    """
    _check_index(process)
    scaled = time_scale * t.double()
    return Scalings(sigma_data**2 / (scaled**2 + sigma_data**2), scaled / (scaled**2 + sigma_data**2).sqrt())


def _check_index(process: Process) -> None:
    if not process.discrete:
        raise UserError(
            f"the lcm boundary is defined on a table's index; {type(process).__name__} has none: set recipe.boundary "
            "to edm or jump"
        )


class ConsistencyFunction(Denoiser):
    """A denoiser whose ``x0`` is the consistency function ``f(x_t, t)`` built on the inner denoiser's ``x0``.

    ``time_scale``: of ``lcm``. Raises UserError for processes with an anchor, and for ``lcm`` without indices.
    """

    def __init__(
        self,
        inner: Denoiser,
        boundary: Literal["edm", "lcm"],
        sigma_data: float = 0.5,
        time_scale: float = LCM_TIME_SCALE,
    ) -> None:
        if inner.process.has_anchor:
            raise UserError(f"consistency boundary '{boundary}' has no form with an anchor: use boundary 'jump'")
        if boundary == "lcm":
            _check_index(inner.process)
        self.inner, self.process, self.boundary = inner, inner.process, boundary
        self.sigma_data, self.time_scale = sigma_data, time_scale

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return ``f`` as an x0 prediction."""
        if self.boundary == "edm":
            skip, out = edm_scalings(t, self.process, self.sigma_data)
        else:
            skip, out = lcm_scalings(t, self.process, self.sigma_data, self.time_scale)
        x0 = self.inner.x0(x_t, t, cond)
        return Prediction(expand_to(skip, x0) * precise(x_t) + expand_to(out, x0) * x0, Kind.X0)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)
