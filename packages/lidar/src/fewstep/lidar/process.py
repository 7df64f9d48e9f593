"""LiDiff's diffusion of scenes: points are samples, noise is added around them, and sampling starts at the scan."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser, Plain
from fewstep.core.grids import time_grid
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, LocalOffset
from fewstep.core.rng import Rng
from fewstep.core.sampling import initial_state
from fewstep.core.solvers import solve
from fewstep.lidar.models.backbone import LidarBackbone

BETAS = (1000, 3.5e-5, 7e-3)
SOLVER = "dpmpp_2m_sde"


class SceneDiffusion(LocalOffset):
    """``x_t = x0 + sigma_t eps`` on points in metres (arXiv 2403.13470, section 3.2).

    The anchor is the tiled scan: its factor in ``x_t`` is 0 at all times, and it is what sampling starts around.
    """

    has_anchor = True


def scene_process() -> SceneDiffusion:
    """Return LiDiff's schedule: 1000 levels, betas linear from 3.5e-5 to 7e-3."""
    betas = torch.linspace(BETAS[1], BETAS[2], BETAS[0], dtype=torch.float64)
    return SceneDiffusion(torch.cumprod(1 - betas, 0))


def scene_denoiser(backbone: LidarBackbone) -> NetworkDenoiser:
    """Return the network, which predicts eps, read through the process."""
    return NetworkDenoiser(backbone, scene_process(), Plain(Kind.EPS))


class OffsetReading(Denoiser):
    """A scene denoiser as the released samplers read it: offsets from the anchor, taken for a VP process.

    Training adds noise without scaling the data, sampling divides by ``sqrt(abar)`` nonetheless: with a perfect
    network the offset comes out ``1/sqrt(abar)`` of the last time too long (5.8 times in one step, 1.03 in eight).
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.process = inner, VP.linear(*BETAS)

    def predict(self, x_t: Float[Tensor, "b n 3"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the noise predicted at the points ``anchor + x_t``."""
        return Prediction(self.inner.eps(cond["anchor"] + x_t, t, cond), Kind.EPS)

    def null(self, cond: Cond) -> Cond:
        """Return the inner denoiser's unconditional condition."""
        return self.inner.null(cond)


def sample_scene(
    denoiser: Denoiser, cond: Cond, noise: Float[Tensor, "b n 3"], rng: Rng, *, steps: int, official: bool
) -> Float[Tensor, "b n 3"]:
    """Return points made from unit ``noise`` around ``cond["anchor"]`` by SDE-DPM-Solver++(2M), ``steps`` evaluations.

    ``official``: the released form with its bias (:class:`OffsetReading`); otherwise in the process's own,
    variance-exploding coordinates, which is unbiased at every number of steps. Both stop at the same times.
    """
    grid = time_grid(denoiser.process, steps, "even")
    if official:
        return cond["anchor"] + solve(OffsetReading(denoiser), noise, grid, cond, SOLVER, rng=rng).x
    return solve(denoiser, initial_state(denoiser.process, noise, grid[0], cond), grid, cond, SOLVER, rng=rng).x
