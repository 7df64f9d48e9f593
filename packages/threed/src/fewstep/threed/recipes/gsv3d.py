"""GSV3D (arXiv 2503.06136): the views of an orbit denoised in a few steps, made consistent through their Gaussians.

The paper has no public code; where it is silent, this is the field's usual form (LGM, Stable Video Diffusion).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.losses.denoising import Weighting, denoising_loss, denoising_weight
from fewstep.core.losses.integral import x0_sds_loss
from fewstep.core.losses.monitors import gap
from fewstep.core.process import Process, times
from fewstep.core.recipe import Batch, LossTerms, Phase, Recipe, RoleSpec, StepPlan
from fewstep.core.recipes.diffusion import drop_condition
from fewstep.core.recipes.rollout import (
    Sample,
    StudentConfig,
    noised,
    renoised,
    simulated_input,
    student_plan,
    student_sample,
)
from fewstep.core.rng import Rng
from fewstep.core.tensors import expand_to
from fewstep.core.times import TimeConfig
from fewstep.threed.gaussians.parameters import Gaussians
from fewstep.threed.orbit.convention import triangular_guidance
from fewstep.threed.orbit.decoder import DecoderConfig, GaussianDecoder
from fewstep.threed.orbit.reading import PerViewGuided
from fewstep.threed.orbit.supervision import OrbitGeometry, PixelCodec, render_clouds, targets, view_losses

NEGLIGIBLE = 0.01  # gates below it are not worth a render


@dataclass(frozen=True, kw_only=True)
class GSV3DConfig(StudentConfig):
    """Settings of GSV3D.

    Stage 1, the first ``decoder_steps`` steps: the decoder alone, on clean latents under noise of a standard deviation
    up to ``latent_noise``; ``depth_weight`` and ``mask_weight`` stand beside the error in rgb. Stage 2 after it: the
    student, and the decoder too with ``train_decoder``. ``guide``: ``data`` is ``w(s) |z_hat - z|^2 + weight_3d g(s)
    L_3d``, with ``weighting`` w (``snr_plus_one`` is SVD's) and ``gate`` g: ``snr`` is 1 / (1 + s^2), ``cut`` is 1 for
    s below ``gate_cut``. ``score`` needs pictures only: renders at the orbit's cameras move to what the frozen teacher
    makes of them under noise drawn from ``score_time``, guided from ``guidance_least`` to ``guidance_most``.
    ``levels``: the noise levels of ``data``: the ``student``'s own few times, or drawn from the law ``time``.
    ``backward_simulation``: inputs at the student's times are its own, from noise, instead of noised data.
    ``label_dropout``: share of pictures left out (of ``law`` only: few steps are taken without guidance).
    """

    student_steps: int = 4
    decoder: DecoderConfig = DecoderConfig()
    geometry: OrbitGeometry = OrbitGeometry()
    decoder_steps: int = 0
    latent_noise: float = 0.3
    depth_weight: float = 0.5
    mask_weight: float = 1.0
    train_decoder: bool = False
    guide: Literal["data", "score"] = "data"
    weighting: Weighting = "snr_plus_one"
    weight_3d: float = 1.0
    gate: Literal["snr", "cut"] = "snr"
    gate_cut: float = 1.0
    levels: Literal["student", "law"] = "student"
    time: TimeConfig = TimeConfig(law="lognormal", mean=0.7, std=1.6)
    label_dropout: float = 0.1
    backward_simulation: bool = True
    score_time: TimeConfig = TimeConfig(law="lognormal", mean=0.0, std=1.0)
    guidance_least: float = 1.0
    guidance_most: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.decoder_steps >= 0, f"decoder_steps must not be negative, got {self.decoder_steps}")
        for name in ("latent_noise", "depth_weight", "mask_weight", "weight_3d"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name):g}")
        check(self.gate_cut > 0, f"gate_cut must be positive, got {self.gate_cut:g}")
        check(0 <= self.label_dropout < 1, f"label_dropout must lie in [0, 1), got {self.label_dropout:g}")


class GSV3D(Recipe):
    """Two stages: a decoder to Gaussians, then a student whose views agree through it."""

    name: ClassVar[str] = "gsv3d"
    paper: ClassVar[str] = "2503.06136"
    summary: ClassVar[str] = "one picture to the views of an orbit in a few steps, made consistent through Gaussians"
    config_type: ClassVar[type] = GSV3DConfig
    config: GSV3DConfig

    @classmethod
    def role_specs(cls, config: GSV3DConfig) -> tuple[RoleSpec, ...]:
        """Return the student, the decoder, what turns pixels into latents, and the teacher where it guides."""
        decoder = RoleSpec("decoder", kind="module", ema=True, build=lambda s: GaussianDecoder(config.decoder, s))
        codec = RoleSpec("codec", kind="module", build=lambda _: PixelCodec())
        teacher = (RoleSpec("teacher", init="frozen"),) if config.guide == "score" else ()
        return (RoleSpec("student", ema=True), decoder, codec, *teacher)

    @classmethod
    def phases(cls, config: GSV3DConfig) -> tuple[Phase, ...]:
        """Return the decoder's phase up to ``decoder_steps``, and the student's from there."""
        first = config.decoder_steps
        student = ("student", "decoder") if config.train_decoder else ("student",)
        before = (Phase("decoder", ("decoder",), stop=first),) if first else ()
        return (*before, Phase("student", student, start=first))

    @classmethod
    def plan(cls, config: GSV3DConfig, process: Process, num_steps: int) -> StepPlan:
        """Return re-noising at the student's times; UserError for a number of steps it was not made for."""
        return student_plan(cls.name, config, process, num_steps)

    def loss(self, phase: str, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the loss of the stage."""
        if phase == "decoder":
            return self.decoder_loss(batch, rng)
        return self.score_loss(batch, rng, step) if self.config.guide == "score" else self.data_loss(batch, rng, step)

    def decoder_loss(self, batch: Batch, rng: Rng) -> LossTerms:
        """Return the losses of renders of decoded clean latents."""
        z = batch.clean_samples(self.name)
        sigma = self.config.latent_noise * rng.uniform("latent_noise")
        noisy = z + expand_to(sigma.to(z), z).to(z.dtype) * rng.normal_like("latents", z)
        return LossTerms(self.losses_3d(noisy, batch.cond), weights=self.weights_3d(1.0))

    def data_loss(self, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the denoising loss of the student, and that of renders of what it predicts."""
        config, student = self.config, self.actors.denoiser("student")
        z = batch.clean_samples(self.name)
        x, t, cond = self.noisy(batch, rng, step)
        z_hat = student.x0(x, t, cond)
        c = self.actors.process.coefficients(t)
        diffusion = denoising_loss(z_hat, z, denoising_weight(config.weighting, c.alpha, c.sigma))
        gate = self.gate(c.sigma / c.alpha).to(z_hat)
        terms, metrics = {"diffusion": diffusion}, {"z_error": denoising_loss(z_hat.detach(), z)}
        shown = (gate >= NEGLIGIBLE).nonzero()[:, 0]
        if config.weight_3d > 0 and len(shown):
            found = self.losses_3d(z_hat[shown], {name: value[shown] for name, value in batch.cond.items()})
            for name, value in found.items():
                terms[name] = torch.zeros_like(gate).index_copy(0, shown, gate[shown] * value.to(gate))
        return LossTerms(terms, self.weights_3d(config.weight_3d), metrics)

    def noisy(self, batch: Batch, rng: Rng, step: int) -> tuple[Tensor, Float[Tensor, " b"], Cond]:
        """Return the student's inputs "b v c h w", their times and the condition it sees."""
        config, student, z = self.config, self.actors.denoiser("student"), batch.clean_samples(self.name)
        if config.levels == "law":
            cond = drop_condition(student, batch.cond, config.label_dropout, rng)
            t = config.time.draw(student.process, rng, "time", step).to(z.device)
            return student.process.add_noise(z, rng.normal_like("eps", z), t).to(z.dtype), t, cond
        grid = config.grid(self.actors.process)
        index = rng.shared_integer("student/index", len(grid))
        with torch.no_grad():
            if config.backward_simulation or index == 0:
                x = simulated_input(self.actors, student, grid[: index + 1], batch.cond, rng)
            else:
                x = renoised(self.actors.process, z, batch.cond, grid[index], rng).to(z.dtype)
        return x, times(grid[index], len(z), z.device), batch.cond

    def score_loss(self, batch: Batch, rng: Rng, step: int) -> LossTerms:
        """Return the pull of renders at the orbit's cameras to what the frozen teacher makes of them."""
        config = self.config
        sample = student_sample(self.actors, config, batch, rng, grad=True)
        clouds = self.clouds(sample.x0, sample.cond)
        rgb = render_clouds(clouds, self.orbit(sample.cond)).rgb
        views = self.codec.encode(rgb.flatten(0, 1)).unflatten(0, rgb.shape[:2]).to(sample.x0.dtype)
        at = noised(self.actors.process, Sample(views.detach(), sample.cond), config.score_time, rng, "score", step)
        scales = triangular_guidance(views.shape[1], config.guidance_least, config.guidance_most)
        with torch.no_grad():
            target = PerViewGuided(self.actors.denoiser("teacher"), scales).x0(at.x_t, at.t, sample.cond)
        pull = x0_sds_loss(views, target, reduction="mean")
        return LossTerms({"score": pull}, metrics={"gap": gap(target, views)})

    def clouds(self, latents: Float[Tensor, "b v c h w"], cond: Cond) -> list[Gaussians]:
        """Return the Gaussians of latents."""
        decoder = self.actors.module("decoder")
        assert isinstance(decoder, GaussianDecoder)
        return decoder.gaussians(latents, self.orbit(cond))

    def orbit(self, cond: Cond) -> Any:
        """Return the cameras of the views."""
        return self.config.geometry.cameras(cond["azimuth"], cond["polar"])

    def losses_3d(self, latents: Float[Tensor, "b v c h w"], cond: Cond) -> dict[str, Float[Tensor, " b"]]:
        """Return the losses of renders of latents' Gaussians against the pictures of the condition."""
        true, camera = targets(cond, self.config.geometry)
        return view_losses(render_clouds(self.clouds(latents, cond), camera), true)

    def weights_3d(self, factor: float) -> dict[str, float]:
        """Return the weights of the terms of :meth:`losses_3d`."""
        depth, mask = self.config.depth_weight, self.config.mask_weight
        return {"rgb": factor, "depth": factor * depth, "mask": factor * mask}

    def gate(self, tau: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return how much of the loss in 3D counts at noise level ``tau``, where a prediction is a blurred mean."""
        return 1 / (1 + tau**2) if self.config.gate == "snr" else (tau < self.config.gate_cut).to(tau)

    @property
    def codec(self) -> Any:
        """What turns pixels into latents, differentiable."""
        codec = self.actors.module("codec")
        if not hasattr(codec, "encode"):
            raise UserError("role 'codec' must turn pixels into latents: give it an 'encode'")
        return codec
