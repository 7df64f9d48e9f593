"""A named teacher made ready: its network as a denoiser, its text encoders, its autoencoder.

Each part is loaded when it is asked for and can be dropped again: text encoders are as large as the network itself, and
after prompts are encoded nobody needs them.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond, NetworkDenoiser, Plain
from fewstep.core.errors import UserError, check
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.family import Encoded, Family, Size
from fewstep.core.models.files import INDEX, PipelineFolder, quiet, read_json
from fewstep.core.models.table import family_of, find_family
from fewstep.core.prediction import Kind
from fewstep.core.process import Process

log = logging.getLogger("fewstep.models")

TINY = "tiny:"
ENCODE_BATCH = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DtypeName = Literal["fp32", "bf16", "fp16"]


def is_pipeline(name: str) -> bool:
    """Return whether a teacher's name means a diffusers pipeline with text: a tiny one, a folder, or a hub id."""
    if name.startswith(TINY):
        return True
    path = Path(name).expanduser()
    if path.exists():
        return (path / INDEX).is_file() and "tokenizer" in read_json(path / INDEX)
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def find_folder(name: str, revision: str = "", variant: str = "", *, weights: bool = True) -> PipelineFolder:
    """Return the pipeline folder of a teacher: ``tiny:FAMILY``, a local folder, or a hub id; UserError otherwise."""
    if name.startswith(TINY):
        return PipelineFolder.open(tiny_folder(name.removeprefix(TINY)), name)
    return PipelineFolder.find(name, revision, variant, weights=weights)


def tiny_folder(name: str) -> Path:
    """Return the folder of a family's tiny random pipeline, made on first use (``FEWSTEP_CACHE``, ~/.cache/fewstep)."""
    family = find_family(name)
    cache = Path(os.environ.get("FEWSTEP_CACHE") or Path.home() / ".cache" / "fewstep")
    parts = sorted(Path(__file__).parent.glob("tiny*.py"))
    makers = (Path(str(inspect.getsourcefile(type(family)))), *parts)
    made_by = hashlib.sha256(b"".join(file.read_bytes() for file in makers)).hexdigest()[:12]
    folder = cache / "tiny" / f"{name}-{made_by}-{version('diffusers')}"
    if (folder / INDEX).is_file():
        return folder
    aside = folder.with_name(f".{name}-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        with quiet():
            family.tiny(aside, seed=0)
        if not folder.exists():
            aside.rename(folder)
    except OSError as error:
        if not (folder / INDEX).is_file():  # another process may have been first
            raise UserError(f"{folder}: cannot be written ({error.strerror}); set FEWSTEP_CACHE") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


@dataclass
class Teacher:
    """A pipeline folder with its family, at a size. ``guidance``: of models that are told their scale."""

    folder: PipelineFolder
    size: Size
    guidance: float = 1.0
    negative: str | None = None
    family: Family = field(init=False)

    def __post_init__(self) -> None:
        self.family = family_of(self.folder)

    @classmethod
    def find(
        cls,
        name: str,
        *,
        size: Size | None = None,
        revision: str = "",
        variant: str = "",
        guidance: float = 1.0,
        negative: str | None = None,
        weights: bool = True,
    ) -> Teacher:
        """Return a teacher by name, at ``size`` or its default one; UserError for what is no readable pipeline.

        ``weights``: whether a hub's are downloaded, too.
        """
        folder = find_folder(name, revision, variant, weights=weights)
        family = family_of(folder)
        vae = folder.config("vae") if folder.has("vae") else None
        return cls(folder, size or family.default_size(folder.config(family.network), vae), guidance, negative)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one latent; UserError for a size the model cannot take."""
        vae = self.folder.config("vae") if self.folder.has("vae") else None
        return self.family.sample_shape(self.folder.config(self.family.network), vae, self.size)

    def reading(self) -> tuple[Process, Kind]:
        """Return the process and prediction kind of the pipeline's scheduler."""
        config = self.folder.config("scheduler")
        return self.family.process(config, self.folder.config(self.family.network), self.shape)

    def denoiser(
        self, null: Cond | None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> NetworkDenoiser:
        """Return the network read through the pipeline's process, on the CPU; for the device ``meta`` shapes only."""
        return self.reads(self._part(self.family.network, dtype, device), null)

    def _part(self, name: str, dtype: torch.dtype, device: torch.device | str) -> Any:
        """Return a component, a module of the device ``meta`` without reading its weights."""
        if torch.device(device).type == "meta" and self.folder.is_module(name):
            with quiet():
                return self.folder.skeleton(name).to(dtype)
        return self.folder.load(name, dtype)

    def reads(self, network: Any, null: Cond | None) -> NetworkDenoiser:
        """Return any network of this family read through the pipeline's process."""
        process, kind = self.reading()
        return NetworkDenoiser(PipelineBackbone(network, self.family, null, self.guidance), process, Plain(kind))

    def encode(
        self,
        prompts: Sequence[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        done: Callable[[int], None] = lambda count: None,
    ) -> Encoded:
        """Return the conditions of prompts on the CPU; text encoders are loaded for it and freed afterwards.

        ``null`` has one row. ``done`` is told how many prompts are ready.
        """
        return self.text_encoder(device, dtype)(prompts, done)

    def text_encoder(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
        """Return what encodes prompts; it holds the loaded text encoders."""
        pipe = self.text_pipeline(dtype, device)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return TextEncoder(self.family, pipe, self.negative, self.size)

    def text_pipeline(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
        """Return the pipeline with its text components only, for its ``encode_prompt``; of ``meta``, shapes."""
        network = self.family.network
        parts = {part: self._part(part, dtype, device) for part in self.family.text if self.folder.has(part)}
        pipe = self.pipeline(parts)
        # some ask the network for its widths and dtype: its configuration answers, without its weights
        setattr(pipe, network, SimpleNamespace(config=SimpleNamespace(**self.folder.config(network)), dtype=dtype))
        return pipe

    def pipeline(self, parts: dict[str, Any]) -> Any:
        """Return a pipeline of this teacher's class from some of its components, None for the others."""
        with quiet():
            kind = self.folder.pipeline_class()
            names = list(inspect.signature(kind.__init__).parameters.values())[1:]
            missing: dict[str, Any] = {each.name: None for each in names if each.default is each.empty}
            return kind(**(missing | dict(self.folder.options) | self.family.pipeline_options() | parts))

    def vae(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Codec:
        """Return the autoencoder, on the CPU; for the device ``meta`` shapes only."""
        return Codec(self.family, self._part("vae", dtype, device).requires_grad_(False))


@dataclass
class TextEncoder:
    """Loaded text encoders: prompts to conditions on the CPU, :data:`ENCODE_BATCH` at a time."""

    family: Family
    pipe: Any
    negative: str | None
    size: Size
    said_cut: bool = False

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], done: Callable[[int], None] = lambda count: None) -> Encoded:
        """Return the conditions of prompts; ``null`` has one row. ``done`` is told how many prompts are ready."""
        check(bool(prompts), "no prompts to encode")
        self._tell_cut(prompts)
        parts: list[Cond] = []
        null: Cond | None = None
        for start in range(0, len(prompts), ENCODE_BATCH):
            some = prompts[start : start + ENCODE_BATCH]
            with quiet():
                found = self.family.encode(self.pipe, some, self.negative, self.size)
            parts.append(_checked_rows(found.cond, len(some)))
            if null is None and found.null is not None:
                null = {name: value[:1].cpu() for name, value in found.null.items()}
            done(start + len(some))
        return Encoded({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, null)

    def _tell_cut(self, prompts: Sequence[str]) -> None:
        """Say the first time how many prompts CLIP cuts, where transformers would print each of them."""
        if self.said_cut:
            return
        for part in self.pipe.components.values():
            if not type(part).__name__.startswith("CLIPTokenizer"):
                continue
            with quiet():
                cut = sum(len(tokens) > part.model_max_length for tokens in part(list(prompts)).input_ids)
            if cut:
                self.said_cut = True
                most = part.model_max_length
                log.warning("%d of %d prompts are longer than CLIP's %d tokens and are cut", cut, len(prompts), most)
                return


@dataclass
class Codec:
    """Latents to pixels and back, one autoencoder on one device at a time."""

    family: Family
    vae: Any

    def to(self, device: torch.device | str) -> Codec:
        """Move the autoencoder."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b c *s"]) -> Float[Tensor, "b *d"]:
        """Return latents "b *d" of pixels in [-1, 1], float32; gray pixels become colour."""
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, *[-1] * (pixels.ndim - 2))
        return self.family.to_latents(self.vae, pixels.to(self.vae.device)).float()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b *d"], batch: int = 8) -> Float[Tensor, "b c *s"]:
        """Return pixels in [-1, 1] on the CPU, float32, decoded ``batch`` at a time."""
        parts = [
            self.family.to_pixels(self.vae, latents[i : i + batch].to(self.vae.device)).float().cpu()
            for i in range(0, len(latents), batch)
        ]
        return torch.cat(parts)


def _checked_rows(cond: Cond, rows: int) -> Cond:
    for name, value in cond.items():
        check(len(value) == rows, f"the text encoder gives {len(value)} rows of '{name}' for {rows} prompts")
    return {name: value.cpu() for name, value in cond.items()}
