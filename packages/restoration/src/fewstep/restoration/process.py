"""How networks of restoration are read: ResShift's own input scaling, and a preconditioning of the residual."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Backbone, Cond, NetworkDenoiser, Plain
from fewstep.core.errors import UserError, check
from fewstep.core.prediction import Kind, Prediction
from fewstep.core.process import VP, Process, ResidualShift
from fewstep.core.tensors import expand_to, precise
from fewstep.restoration.models.scaling import ResShiftScaling
from fewstep.restoration.settings import ProcessConfig


class ResidualDenoiser(NetworkDenoiser):
    """A network that predicts what is missing from the anchor, scaled as Karras et al. scale clean samples.

    With ``r = x_t - y = (1 - eta)(x0 - y) + sigma eps`` and residuals of deviation ``s``, the clean sample is
    ``y + c_skip r + c_out F(c_in r)``: c_skip and c_out make input and target of F of deviation 1 at every noise level
    (arXiv 2206.00364, appendix B.6, on the residual of arXiv 2307.12348). Raises UserError for processes whose anchor
    and signal do not share 1.
    """

    def __init__(self, backbone: Backbone, process: Process, residual_std: float = 0.1) -> None:
        super().__init__(backbone, process, Plain(Kind.X0))
        check(residual_std > 0, f"domain.process.residual_std must be positive, got {residual_std:g}")
        t = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        c = process.coefficients(t)
        shared = process.has_anchor and bool(torch.allclose(c.alpha + c.anchor, torch.ones_like(t)))
        check(shared, f"{type(process).__name__} shifts no residual: read the network another way")
        self.residual_std = residual_std

    def predict(self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond) -> Prediction:
        """Return the clean sample."""
        anchor = cond.get("anchor")
        if anchor is None:
            raise UserError("the network restores cond['anchor'] (the low-quality input) and got none")
        c, s = self.process.coefficients(t), self.residual_std
        length = (c.alpha**2 * s**2 + c.sigma**2).sqrt()
        r = precise(x_t) - precise(anchor)
        raw = self.backbone(
            (r * expand_to(1 / length, r)).to(x_t.dtype), self.process.time_input(t).to(x_t.dtype), cond
        )
        skip, out = c.alpha * s**2 / length**2, s * c.sigma / length
        return Prediction(precise(anchor) + expand_to(skip, r) * r + expand_to(out, r) * precise(raw), Kind.X0)

    def with_backbone(self, backbone: Backbone) -> ResidualDenoiser:
        """Return the same reading of another network."""
        return ResidualDenoiser(backbone, self.process, self.residual_std)


def build_process(config: ProcessConfig) -> Process:
    """Return the process a config describes."""
    if config.name == "vp-scaled-linear":
        return VP.scaled_linear()
    return ResidualShift(
        config.steps, config.kappa, config.min_noise, config.power, config.eta_end, cap=config.cap or None
    )


def read_network(backbone: Backbone, config: ProcessConfig, *, pixels: bool) -> NetworkDenoiser:
    """Return a network read as the config says; ``pixels``: ResShift's own scaling is that of pixel space."""
    process = build_process(config)
    if config.name == "vp-scaled-linear":
        return NetworkDenoiser(backbone, process, Plain(Kind(config.prediction)))
    if config.reading == "scaled":
        return NetworkDenoiser(backbone, process, ResShiftScaling("pixel" if pixels else "latent"))
    return ResidualDenoiser(backbone, process, config.residual_std)
