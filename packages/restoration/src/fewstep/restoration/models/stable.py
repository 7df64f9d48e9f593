"""Stable Diffusion told the low-quality picture: its latents join the noisy ones as further input channels.

The U-Net's first convolution is widened from 4 to 8 channels, the new weights zero, as in InstructPix2Pix
(arXiv 2211.09800) and, for super-resolution, YONOS-SR (arXiv 2401.17258). What is written on disk is a pipeline of
diffusers' ``StableDiffusionInstructPix2PixPipeline``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.errors import UserError, check
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.family import Config
from fewstep.core.models.files import PipelineFolder
from fewstep.core.models.loading import Teacher, find_folder
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.networks.backbone import entry, join_channels
from fewstep.core.networks.widening import widen_input
from fewstep.core.rng import Rng
from fewstep.restoration.models.spaces import AutoencoderSpace

INSTRUCT = "StableDiffusionInstructPix2PixPipeline"
PLAIN = "StableDiffusionPipeline"
PROMPT_FILE = "fewstep_prompt.safetensors"
PROMPT = "prompt_embeds"
MAX_TOKENS = 1024
CLIP_TOKENS = 77


class ConditionedDiffusion(StableDiffusion):
    """Stable Diffusion 1.x and 2.x whose U-Net takes the latents of a picture beside the noisy ones."""

    name: ClassVar[str] = "sd-conditioned"
    summary: ClassVar[str] = "Stable Diffusion 1.x and 2.x told a picture"
    pipelines: ClassVar[tuple[str, ...]] = (INSTRUCT, PLAIN)
    # without factors there, nothing of the picture would reach a network widened a moment ago
    lora_targets: ClassVar[tuple[str, ...]] = ("conv_in", *StableDiffusion.lora_targets)

    def channels(self, network: Config) -> int:
        """Return the number of channels of a latent, the U-Net's output."""
        return int(network["out_channels"])

    def call(self, network: Any, x: Float[Tensor, "b *d"], time: Float[Tensor, " b"], cond: Cond) -> Tensor:
        """Return the U-Net's prediction; ``cond["anchor"]`` is what joins its input."""
        return self.unet(network, join_channels(x, cond, ("anchor",), "the U-Net"), time, cond, None)

    def check_folder(self, folder: PipelineFolder) -> None:
        """Raise UserError for a pipeline without autoencoder, or whose U-Net and autoencoder are for something else."""
        check(folder.has("vae"), f"{folder.path}: no component 'vae': give the folder of a whole pipeline")
        unet, vae = folder.config("unet"), folder.config("vae")
        channels = int(vae.get("latent_channels", 4))
        where = f"{folder.path / 'unet' / 'config.json'}"
        check(unet.get("out_channels", 4) == channels, f"{where}: out_channels is not the autoencoder's {channels}")
        given = unet.get("in_channels", 4)
        check(
            given in (channels, 2 * channels),
            f"{where}: in_channels must be {channels}, or {2 * channels} with the picture's latents, got {given}",
        )
        check(not vae.get("shift_factor"), f"{folder.path / 'vae'}: a shift_factor is not supported")
        check(
            unet.get("time_cond_proj_dim") is None and unet.get("addition_embed_type") is None,
            f"{where}: the U-Net wants inputs besides text (guidance, sizes): give a Stable Diffusion 1.x or 2.x",
        )


def widen(unet: Any) -> Any:
    """Return the U-Net, its first convolution widened to twice the latent's channels unless it is so already.

    New weights are zero: the prediction does not change until they are trained.
    """
    channels = int(unet.config.out_channels)
    return widen_input(unet, "conv_in", 2 * channels, channels)


class ConditionedBackbone(PipelineBackbone):
    """The widened U-Net behind a denoiser: latents "b 4 h w".

    Condition: ``anchor``, the low-quality picture's latents, scaled as the noisy ones are. They are given to the U-Net
    unscaled, as the stock pipeline does (``scale``: the autoencoder's). ``prompt_embeds`` may be left out: the one
    fixed prompt, "1 n d", stands in.
    """

    prompt: Tensor

    def __init__(self, unet: Any, prompt: Float[Tensor, "1 n d"], scale: float) -> None:
        super().__init__(widen(unet), ConditionedDiffusion(), None)
        self.scale = scale
        self.register_buffer("prompt", prompt, persistent=False)

    @property
    def multiple(self) -> int:
        """Return what the sides of latents should be multiples of, so that halving them never rounds."""
        return self.family.patch(self.model.config)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the prediction, shaped like ``x``; UserError for a condition without ``anchor``."""
        anchor = entry(cond, "anchor", type(self).__name__) / self.scale
        told = cond[PROMPT] if PROMPT in cond else self.prompt.expand(len(x), -1, -1)
        return super().forward(x, time, dict(cond) | {"anchor": anchor, PROMPT: told})

    def null(self, cond: Cond) -> Cond:
        """Raise UserError: there is one prompt, and nothing to guide away from."""
        raise UserError(
            "this teacher is told one fixed prompt and has no unconditional prediction: set guidance_scale=1"
        )


@dataclass
class ConditionedTeacher(Teacher):
    """A Stable Diffusion folder as a teacher of restoration, told ``prompt`` at all times.

    ``prompt`` None: the one stored with the folder, else the empty one.
    """

    prompt: str | None = None

    def __post_init__(self) -> None:
        _check_class(self.folder)
        self.family = ConditionedDiffusion()
        self.family.check_folder(self.folder)
        self._told: tuple[Tensor, str] | None = None

    def text_pipeline(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
        """Return a plain pipeline with the text components: the conditioned one has no public ``encode_prompt``."""
        return Teacher(replace(self.folder, pipeline=PLAIN), self.size).text_pipeline(dtype, device)

    def told(self) -> tuple[Float[Tensor, "1 n d"], str]:
        """Return the prompt's embedding and the prompt: stored beside the pipeline, or encoded once and kept.

        UserError for a folder with neither a text encoder nor the embedding of this prompt.
        """
        if self._told is None:
            file, stored = self.folder.path / PROMPT_FILE, None
            if file.is_file():
                stored = read_prompt(file, int(self.folder.config("unet")["cross_attention_dim"]))
            if stored is not None and self.prompt in (None, stored[1]):
                self._told = stored
            else:
                prompt = self.prompt or ""
                check(
                    all(self.folder.has(part) for part in self.family.text),
                    f"{self.folder.path}: no text encoder there, and no embedding of the prompt '{prompt}' in "
                    f"{PROMPT_FILE}: leave the prompt out, or give a whole pipeline",
                )
                self._told = self.encode([prompt]).cond[PROMPT].float(), prompt
        return self._told

    def reads(self, network: Any, null: Cond | None = None) -> NetworkDenoiser:
        """Return any U-Net of this kind, widened, read through the process of the pipeline's scheduler."""
        process, kind = self.reading()
        scale = float(self.folder.config("vae").get("scaling_factor", 0.18215))
        shapes = next(network.parameters()).is_meta
        width = int(network.config.cross_attention_dim)
        prompt = torch.empty(1, CLIP_TOKENS, width, device="meta") if shapes else self.told()[0]
        return NetworkDenoiser(ConditionedBackbone(network, prompt, scale), process, Plain(kind))

    def fresh(self, seed: int) -> NetworkDenoiser:
        """Return an untrained network of the same architecture."""
        skeleton: Any = self.folder.skeleton(self.family.network)
        with Rng(seed, 0, ()).network_noise("init"):
            made = type(skeleton).from_config(skeleton.config)
        return self.reads(made)

    def space(self, dtype: torch.dtype = torch.float32, *, precise: bool = True) -> AutoencoderSpace:
        """Return the pipeline's autoencoder as the space samples live in."""
        return AutoencoderSpace(self.folder.load("vae"), dtype, precise=precise)


def open_stable(
    name: str, *, prompt: str | None = None, revision: str = "", variant: str = "", weights: bool = True
) -> ConditionedTeacher:
    """Return the teacher that ``tiny:sd``, a local Stable Diffusion folder, or a hub id names, plain or conditioned.

    ``weights``: whether a hub's are downloaded, too. Raises UserError for what is none.
    """
    folder = find_folder(name, revision, variant, weights=weights)
    _check_class(folder)
    size = ConditionedDiffusion().default_size(folder.config("unet"), folder.config("vae"))
    return ConditionedTeacher(folder, size, prompt=prompt)


def is_stable(name: str) -> bool:
    """Return whether a teacher's name means Stable Diffusion: ``tiny:sd``, or a local pipeline of that kind."""
    if name == "tiny:sd":
        return True
    path = Path(name).expanduser()
    if not (path / "model_index.json").is_file():
        return False
    return PipelineFolder.open(path).pipeline in ConditionedDiffusion.pipelines


def _check_class(folder: PipelineFolder) -> None:
    known = ConditionedDiffusion.pipelines
    check(
        folder.pipeline in known and folder.parts.get("unet", ("", ""))[1] in ConditionedDiffusion.network_classes,
        f"{folder.path}: a {folder.pipeline} is no teacher of restoration; give one of {' or '.join(known)}",
    )


def write_prompt(file: Path, embeds: Float[Tensor, "1 n d"], prompt: str) -> None:
    """Write a prompt and its embedding."""
    save_file({PROMPT: embeds.detach().float().cpu().contiguous()}, file, metadata={"prompt": prompt})


def read_prompt(file: Path, width: int) -> tuple[Float[Tensor, "1 n d"], str]:
    """Return a stored embedding and its prompt; UserError unless it is "1 n ``width``"."""
    try:
        with safe_open(file, "pt") as opened:
            shape = tuple(opened.get_slice(PROMPT).get_shape())
            good = len(shape) == 3 and shape[0] == 1 and 1 <= shape[1] <= MAX_TOKENS and shape[2] == width
            check(good, f"{file}: '{PROMPT}' is {shape}, and the U-Net wants (1, tokens, {width})")
            found: Tensor = opened.get_tensor(PROMPT)
            return found.float(), str((opened.metadata() or {}).get("prompt", ""))
    except (OSError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file}: not readable as the embedding of a prompt ({line}): delete it, or copy it again"
        ) from error
