"""Settings of the image domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep.core.errors import check
from fewstep.core.image.data import DataConfig
from fewstep.core.models.settings import ModelConfig
from fewstep.core.networks.roles import RolesConfig


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """An untrained diffusers ``UNet2DModel``; used when there is no teacher to start from.

    ``widths``: channels per resolution, each half of the one before. ``layers``: residual blocks per resolution.
    ``attention``: which resolutions attend (empty: the middle block only). ``dropout``: inside residual blocks.
    """

    widths: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: tuple[bool, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(bool(self.widths) and min(self.widths) > 0, "domain.network.widths needs positive channel numbers")
        check(self.layers >= 1, f"domain.network.layers must be at least 1, got {self.layers}")
        check(0 <= self.dropout < 1, f"domain.network.dropout must be in [0, 1), got {self.dropout:g}")


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """The noising process and prediction of an untrained network, among those a diffusers scheduler can describe.

    ``name``: ``vp-linear`` (DDPM), ``vp-scaled-linear`` (Stable Diffusion), ``rectified-flow`` or ``edm`` (Karras'
    preconditioning). ``prediction``: ``eps``, ``x0``, ``v`` or ``flow``; VP knows the first three, the others their
    own. ``shift``: of rectified flow. ``sigma_data``: of EDM.
    """

    name: Literal["vp-linear", "vp-scaled-linear", "rectified-flow", "edm"] = "vp-linear"
    prediction: Literal["eps", "x0", "v", "flow"] = "v"
    shift: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        known = {"rectified-flow": ("flow",), "edm": ("x0",)}.get(self.name, ("eps", "x0", "v"))
        check(
            self.prediction in known,
            f"domain.process.prediction '{self.prediction}' does not go with domain.process.name '{self.name}': "
            f"use {' or '.join(known)}",
        )
        check(self.shift > 0, f"domain.process.shift must be positive, got {self.shift:g}")
        check(self.sigma_data > 0, f"domain.process.sigma_data must be positive, got {self.sigma_data:g}")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The image domain.

    ``teacher``: a shipped teacher's name (``digits``), a folder exported by this domain, the folder of a finished
    run, a diffusers folder with ``unet`` (UNet2DModel) and ``scheduler``, or a text-to-image pipeline: a folder with
    ``model_index.json``, a hub id, or ``tiny:sd`` and the like for random weights. Empty: none; networks are made from
    ``network`` and read through ``process``. ``model``: how a pipeline is opened. ``eval_prompts``: a file of prompts
    to look at students under (empty: those of the data). ``clip``: a folder with a CLIP model, for its similarity of
    prompts and images. ``neighbours``: k of precision, recall and coverage (0: not measured).
    ``sample_set``: with it the student is that many images, optimised themselves, instead of a network; for recipes
    that only judge samples (``sds``, ``vsd``).
    """

    data: DataConfig = DataConfig()
    teacher: str = "digits"
    network: NetworkConfig = NetworkConfig()
    process: ProcessConfig = ProcessConfig()
    roles: RolesConfig = RolesConfig()
    model: ModelConfig = ModelConfig()
    eval_prompts: str = ""
    clip: str = ""
    neighbours: int = 5
    sample_set: int = 0

    def __post_init__(self) -> None:
        check(self.sample_set >= 0, f"domain.sample_set must not be negative, got {self.sample_set}")
        check(self.neighbours >= 0, f"domain.neighbours must not be negative, got {self.neighbours}")
