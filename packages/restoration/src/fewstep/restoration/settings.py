"""Settings of the restoration domain."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from fewstep.core.errors import check, nearest
from fewstep.core.networks.roles import RolesConfig
from fewstep.restoration.data.settings import DataConfig
from fewstep.restoration.models.local import LocalConfig
from fewstep.restoration.models.swin_config import SwinConfig

ProcessName = Literal["residual-shift", "vp-scaled-linear"]
Reading = Literal["residual", "scaled"]
PredictionName = Literal["eps", "x0", "v"]
SpaceKind = Literal["pixel", "vq", "kl"]
PROCESSES, READINGS, PREDICTIONS, SPACES = (get_args(t) for t in (ProcessName, Reading, PredictionName, SpaceKind))


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """What samples are: pixels, or latents of an autoencoder.

    ``pixel``: every ``factor`` x ``factor`` block of pixels is a position with 3 factor^2 channels, nothing is lost.
    ``vq`` and ``kl``: a diffusers VQModel or AutoencoderKL in the folder ``path``; its factor is its own.
    """

    kind: SpaceKind = "pixel"
    factor: int = 4
    path: str = ""

    def __post_init__(self) -> None:
        check(self.kind in SPACES, f"domain.space.kind '{self.kind}' is unknown: {nearest(str(self.kind), SPACES)}")
        check(1 <= self.factor <= 16, f"domain.space.factor must be 1 to 16, got {self.factor}")
        check(
            (self.kind == "pixel") == (not self.path),
            f"domain.space.path names the autoencoder of kind vq or kl, and only of those; kind is {self.kind}",
        )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """An untrained network.

    ``local``: a small U-Net whose results depend on their surroundings only. ``swin``: ResShift's. ``unet``: a
    diffusers UNet2DModel of ``widths`` and ``layers``, which exports as one; the condition is joined to its channels.
    """

    kind: Literal["local", "swin", "unet"] = "local"
    local: LocalConfig = LocalConfig()
    swin: SwinConfig = SwinConfig()
    widths: tuple[int, ...] = (32, 64)
    layers: int = 1

    def __post_init__(self) -> None:
        check(bool(self.widths) and min(self.widths) > 0, "domain.network.widths needs positive channel numbers")
        check(self.layers >= 1, f"domain.network.layers must be at least 1, got {self.layers}")


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """The noising process, and how an untrained network is read.

    ``residual-shift``: ResShift's, of ``steps`` levels with ``kappa``, ``min_noise`` (0.04 for 15 levels, 0.2 for 4),
    ``power``, ``eta_end`` (the square root of the last eta) and ``cap`` of the first one's root (0: none; sqrt(0.001)
    in the conference paper). ``vp-scaled-linear``: Stable Diffusion's; the low-quality picture is a condition only.
    ``reading``: ``residual`` preconditions what is missing, of deviation ``residual_std``; ``scaled`` is ResShift's:
    the network gives the clean sample, its input is scaled for latents or, in pixels, for pixels. Both belong to
    residual-shift; ``prediction`` belongs to vp-scaled-linear.
    """

    name: ProcessName = "residual-shift"
    steps: int = 15
    kappa: float = 2.0
    min_noise: float = 0.04
    power: float = 0.3
    eta_end: float = 0.99
    cap: float = 0.0
    reading: Reading = "residual"
    residual_std: float = 0.1
    prediction: PredictionName = "v"

    def __post_init__(self) -> None:
        for name, known in (("name", PROCESSES), ("reading", READINGS), ("prediction", PREDICTIONS)):
            given = getattr(self, name)  # a model's own file is read without a parser's checks
            check(given in known, f"domain.process.{name} '{given}' is unknown: {nearest(str(given), known)}")
        check(2 <= self.steps <= 1000, f"domain.process.steps must be 2 to 1000, got {self.steps}")
        for name in ("kappa", "min_noise", "power", "residual_std"):
            check(0 < getattr(self, name) <= 100, f"domain.process.{name} must be positive and at most 100")
        check(0 < self.eta_end < 1, f"domain.process.eta_end must lie in (0, 1), got {self.eta_end:g}")
        check(0 <= self.cap < 1, f"domain.process.cap must lie in [0, 1), got {self.cap:g}")
        start = min(self.min_noise / self.kappa, self.min_noise)
        check(start < self.eta_end, f"domain.process: min_noise {self.min_noise:g} is above eta_end {self.eta_end:g}")


@dataclass(frozen=True, kw_only=True)
class RestorationConfig:
    """The restoration domain.

    ``scales``: magnifications trained on; with several, each sample has one of them. ``milder_scale``: also give the
    condition of that smaller scale, nested in the one restored, as ``cond["milder"]`` (YONOS). ``teacher``: a network
    that came with the package, a run's folder, an exported one, or a Stable Diffusion folder (``tiny:sd``: random
    weights); empty when a teacher is trained from ``network``, ``process`` and ``space``, which otherwise are the
    teacher's own. ``prompt``: what a Stable Diffusion teacher is told. ``targets``: a folder that
    `fewstep restoration prepare-targets` wrote, trained on in the place of ``data``. ``student``: ``denoiser``, or
    ``decoder`` for the recipe that tunes the autoencoder's. ``noise``: the strength, 0 to 1, that what is exported
    recommends to start from; training knows nothing of it, and a tuned decoder keeps its student's.
    """

    data: DataConfig = DataConfig()
    scales: tuple[int, ...] = (4,)
    milder_scale: int = 0
    teacher: str = "photos"
    prompt: str = ""
    targets: str = ""
    student: Literal["denoiser", "decoder"] = "denoiser"
    noise: float = 1.0
    space: SpaceConfig = SpaceConfig()
    network: NetworkConfig = NetworkConfig()
    process: ProcessConfig = ProcessConfig()
    roles: RolesConfig = RolesConfig()

    def __post_init__(self) -> None:
        check(
            bool(self.scales) and all(1 <= s <= 16 for s in self.scales),
            f"domain.scales are magnifications from 1 to 16, got {list(self.scales)}",
        )
        check(
            all(a < b for a, b in itertools.pairwise(self.scales)), f"domain.scales must rise, got {list(self.scales)}"
        )
        check(0 <= self.noise <= 1, f"domain.noise is a strength of 0 to 1, got {self.noise:g}")
        for scale in self.scales:
            check(
                self.milder_scale == 0 or (self.milder_scale < scale and scale % self.milder_scale == 0),
                f"domain.milder_scale must divide the scale {scale} and be smaller, got {self.milder_scale}",
            )
        for scale in (*self.scales, self.space.factor):
            check(
                self.data.crop % scale == 0,
                f"domain.data.crop must be a multiple of {scale} (scales {list(self.scales)}, space factor "
                f"{self.space.factor}), got {self.data.crop}",
            )
