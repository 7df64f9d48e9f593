"""Pictures and the samples networks work on: blocks of pixels, or latents of a frozen autoencoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import PipelineFolder, check_weights, quiet, read_json

Kind = Literal["pixel", "vq", "kl"]
CLASSES = {"vq": "VQModel", "kl": "AutoencoderKL"}
PARTS = ("vae", "vqvae")  # what pipelines call theirs


class Space(nn.Module, ABC):
    """A way from pictures to samples and back; one position stands for ``factor`` x ``factor`` pixels.

    ``channels``: of a sample.
    """

    factor: int
    channels: int

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c k l"]:
        """Return samples of pixels in [-1, 1], in the pixels' dtype; UserError for sides ``factor`` does not divide."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b c k l"]) -> Float[Tensor, "b 3 h w"]:
        """Return pixels, not clamped, in the samples' dtype."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was learned, if anything, so that :func:`find_space` reads it."""

    def _check_pixels(self, pixels: Tensor) -> None:
        _, c, height, width = pixels.shape
        check(c == 3, f"{type(self).__name__}: pictures have 3 channels, got {c}: convert them to RGB")
        check(
            height % self.factor == 0 and width % self.factor == 0,
            f"{type(self).__name__}: {height}x{width} pixels are no multiples of {self.factor}: pad or crop them",
        )

    def _check_samples(self, z: Tensor) -> None:
        check(
            z.shape[1] == self.channels,
            f"{type(self).__name__}: samples have {self.channels} channels, got {z.shape[1]}",
        )


class PixelSpace(Space):
    """Every ``factor`` x ``factor`` block of pixels becomes the ``3 factor^2`` channels of a position: exact."""

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        check(factor >= 1, f"a block has at least 1 pixel, got factor {factor}")
        self.factor, self.channels = factor, 3 * factor**2

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c k l"]:
        """Return the blocks; UserError for sides ``factor`` does not divide."""
        self._check_pixels(pixels)
        return functional.pixel_unshuffle(pixels, self.factor)

    def decode(self, z: Float[Tensor, "b c k l"]) -> Float[Tensor, "b 3 h w"]:
        """Return the pixels of blocks."""
        self._check_samples(z)
        return functional.pixel_shuffle(z, self.factor)

    def save(self, folder: Path) -> None:
        """Write nothing: there are no weights."""


class AutoencoderSpace(Space):
    """A frozen diffusers ``VQModel`` or ``AutoencoderKL``.

    VQ: a sample is what the encoder gives *before* quantisation, as it is (ResShift's scale of 1); decoding quantises.
    KL: the posterior's mode, shifted and scaled as the model's configuration says. Inputs are cast to ``dtype`` and
    results back. ``precise``: the way from samples to pixels is in float32 whatever ``dtype`` and autocast say, since
    half precision overflows in some decoders.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32, *, precise: bool = True) -> None:
        super().__init__()
        name = type(model).__name__
        check(name in CLASSES.values(), f"no space of a {name}: {' or '.join(CLASSES.values())}")
        config = model.config
        check(
            config.in_channels == config.out_channels == 3,
            f"{name}: maps {config.in_channels} channels to {config.out_channels}, and pictures have 3",
        )
        self.model, self.precise, self.quantises = model.requires_grad_(False), precise, name == "VQModel"
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        embedded = config.vq_embed_dim if self.quantises else None
        self.channels = int(embedded or config.latent_channels)
        self.to(dtype).eval()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the encoder."""
        found: torch.dtype = next(self.model.encoder.parameters()).dtype
        return found

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c k l"]:
        """Return latents; UserError for sides ``factor`` does not divide."""
        self._check_pixels(pixels)
        given = pixels.to(self.dtype)
        if self.quantises:
            latents: Tensor = self.model.encode(given).latents
            return latents.to(pixels.dtype)
        shift, scale = self._scaling()
        mode: Tensor = self.model.encode(given).latent_dist.mode()
        return ((mode.to(torch.promote_types(mode.dtype, pixels.dtype)) - shift) * scale).to(pixels.dtype)

    def decode(self, z: Float[Tensor, "b c k l"]) -> Float[Tensor, "b 3 h w"]:
        """Return the pixels of latents."""
        self._check_samples(z)
        if not self.quantises:
            shift, scale = self._scaling()
            latents = z / scale + shift
        else:
            latents = z
        given = latents.to(next(self.model.decoder.parameters()).dtype)
        with torch.autocast(z.device.type, enabled=not self.precise and torch.is_autocast_enabled(z.device.type)):
            out: Tensor = self.model.decode(given, return_dict=False)[0]
        return out.to(z.dtype)

    def _scaling(self) -> tuple[float, float]:
        config = self.model.config
        return float(config.get("shift_factor") or 0.0), float(config.scaling_factor)

    def _apply(self, fn: Any, recurse: bool = True) -> AutoencoderSpace:
        """Move and cast all parts, those that make pixels in full precision where they are to stay ``precise``."""
        kept = {} if not self.precise else {name: value.data for name, value in self._decoding()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._decoding():
            if name in kept and value.dtype in (torch.float16, torch.bfloat16):
                value.data = kept[name].to(value.device)
        return self

    def _decoding(self) -> list[tuple[str, nn.Parameter]]:
        parts = ("decoder.", "post_quant_conv.", "quantize.")
        return [(name, value) for name, value in self.model.named_parameters() if name.startswith(parts)]

    def save(self, folder: Path) -> None:
        """Write the autoencoder as diffusers does."""
        self.model.save_pretrained(folder, safe_serialization=True)


def find_space(
    kind: Kind, path: str | Path = "", factor: int = 4, *, dtype: torch.dtype = torch.float32, precise: bool = True
) -> Space:
    """Return pixels in blocks of ``factor``, or the autoencoder in the local folder ``path``, whose factor is its own.

    The folder is a VQModel's (``vq``), an AutoencoderKL's (``kl``), or a pipeline's that has one. ``dtype`` and
    ``precise``: see :class:`AutoencoderSpace`. Raises UserError for a folder without one in safetensors.
    """
    if kind == "pixel":
        return PixelSpace(factor)
    folder = autoencoder_folder(Path(path).expanduser(), CLASSES[kind])
    return AutoencoderSpace(load_autoencoder(folder, CLASSES[kind]), dtype, precise=precise)


def autoencoder_folder(given: Path, wanted: str) -> Path:
    """Return the folder of the autoencoder at ``given``, or of the pipeline there; UserError for another class."""
    check(given.is_dir(), f"{given}: not a folder; give one with a {wanted} that diffusers saved")
    if (given / "model_index.json").is_file():
        pipeline = PipelineFolder.open(given)
        for part in PARTS:
            if pipeline.parts.get(part, ("", ""))[1] == wanted:
                return given / part
        raise UserError(f"{given}: this {pipeline.pipeline} has no {wanted}; give the folder of one")
    file = given / "config.json"
    check(file.is_file(), f"{given}: no config.json there; give a folder with a {wanted} that diffusers saved")
    name = read_json(file).get("_class_name")
    check(name == wanted, f"{file}: describes {name}, and {wanted} is wanted here")
    return given


def load_autoencoder(folder: Path, wanted: str) -> Any:
    """Return the autoencoder in float32; UserError unless its weights are complete and in safetensors."""
    import diffusers

    check_weights(folder)
    kind: Any = getattr(diffusers, wanted)
    try:
        with quiet():
            made, info = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # diffusers and safetensors raise what they like for files that are not theirs
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: cannot be read as a {wanted} ({line})") from error
    for what in ("missing_keys", "unexpected_keys"):
        names = sorted(info.get(what) or ())
        check(not names, f"{folder}: weights and config.json disagree ('{(names or [''])[0]}'): copy both again")
    return made
