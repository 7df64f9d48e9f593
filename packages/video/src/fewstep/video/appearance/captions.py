"""What the discriminator of frames is told of captions: embeddings by a CLIP text model, or by the teacher's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.source import Texts
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import quiet, read_json
from fewstep.core.models.loading import Teacher
from fewstep.core.tensors import precise
from fewstep.video.appearance.frozen import find_model, load_whole

TYPES = ("clip", "clip_text_model")
TEACHER = "teacher"  # instead of a path: the teacher's text encoder
FIELD = "domain.captions"
BATCH = 64


class Encoder(Protocol):
    """Embeds captions: ``width`` numbers each, of root mean square 1."""

    width: int

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return the embeddings, float32 on the CPU."""


class CaptionEncoder:
    """Embeddings "n e" of captions, of root mean square 1 each, by a CLIP text model with its tokenizer.

    ``path``: a folder, or a hub id. ``field``: of the config, in errors. ``width``: e. Raises UserError for another
    model, and for one without all of its weights in safetensors.
    """

    def __init__(self, path: str, field: str = FIELD) -> None:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        folder = find_model(path, TYPES, field)
        self.model: Any = load_whole(CLIPTextModelWithProjection, folder, field)
        try:
            with quiet():
                self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{field}: {folder} holds no tokenizer: add tokenizer.json, or vocab and merges") from error
        self.width = int(self.model.config.projection_dim)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return the embeddings, float32 on the CPU; long captions are cut off."""
        parts = [self._batch(captions[at : at + BATCH]) for at in range(0, len(captions), BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    def _batch(self, captions: Sequence[str]) -> Tensor:
        length = int(self.model.config.max_position_embeddings)
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _unit(precise(self.model(**tokens).text_embeds))


class TeacherEncoder:
    """Embeddings of captions by the teacher's text encoder: the mean over the tokens of ``prompt_embeds``.

    ``cond``: some prompts encoded already. Raises UserError for a teacher whose prompts are told otherwise.
    """

    def __init__(self, teacher: Teacher, cond: Cond, device: torch.device | str, dtype: torch.dtype) -> None:
        self.teacher, self.device, self.dtype = teacher, device, dtype
        embeds = cond.get("prompt_embeds")
        if embeds is None or embeds.ndim != 3:
            raise UserError(f"{FIELD}: a {teacher.family.name} teacher has no embeddings of tokens: name a CLIP model")
        self.width = int(embeds.shape[-1])

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return the embeddings; padding that the teacher masks is left out."""
        if not captions:
            return torch.zeros(0, self.width)
        cond = self.teacher.encode(captions, self.device, self.dtype).cond
        embeds = precise(cond["prompt_embeds"])
        masks = [value for name, value in cond.items() if name.endswith("mask") and value.shape == embeds.shape[:2]]
        seen = masks[0].to(embeds.dtype) if masks else torch.ones(embeds.shape[:2])
        return _unit((embeds * seen[:, :, None]).sum(1))


class BlankEncoder:
    """Embeddings of zeros: where only their shape matters."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return zeros."""
        return torch.zeros(len(captions), self.width)


def _unit(x: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    return x / x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


def centred(embeddings: Float[Tensor, "n e"], rows: Sequence[int]) -> Float[Tensor, "n e"]:
    """Return captions' embeddings less their mean over the samples, ``rows``, of a set, of root mean square 1 there.

    Captions of clips are worded unlike those of pictures ("moves left"), which would tell a discriminator, whatever a
    frame shows, what is real. Its projection is linear in the embedding: without their means the sets look alike.
    """
    used = embeddings[list(rows)]
    moved = embeddings - used.mean(0)
    return moved / (used - used.mean(0)).square().mean().sqrt().clamp_min(1e-12)


def caption_encoder(path: str, teacher: Teacher, cond: Cond, device: torch.device | str, dtype: torch.dtype) -> Encoder:
    """Return what embeds captions: ``teacher``, or the CLIP text model of a folder or a hub id.

    ``cond``: some prompts as the teacher encodes them. On the device meta no weights are read. UserError as in
    :class:`CaptionEncoder` and :class:`TeacherEncoder`.
    """
    shapes = torch.device(device).type == "meta"
    if path == TEACHER:
        found = TeacherEncoder(teacher, cond, device, dtype)
        return BlankEncoder(found.width) if shapes else found
    if not shapes:
        return CaptionEncoder(path)
    width = read_json(find_model(path, TYPES, FIELD, weights=False) / "config.json").get("projection_dim")
    check(isinstance(width, int) and 0 < width <= 2**16, f"{FIELD}: {path} does not say its projection_dim")
    return BlankEncoder(int(width))  # type: ignore[arg-type]


class ToldCaptions:
    """Encoded prompts (``core.data.source.Texts``) whose conditions hold ``caption`` "b e" for the discriminator, too.

    For training only: students are sampled without it. Each different caption is encoded once, when first needed.
    """

    def __init__(self, texts: Texts, encoder: Encoder) -> None:
        self.texts, self.encoder = texts, encoder

    @property
    def captions(self) -> Sequence[str]:
        """The different captions."""
        return self.texts.captions

    @property
    def rows(self) -> Sequence[int]:
        """The caption of each sample, by its place among them."""
        return self.texts.rows

    @property
    def null(self) -> Cond | None:
        """One row of the network's unconditional condition."""
        return self.texts.null

    def conditions(self, rows: Sequence[int]) -> Cond:
        """Return the conditions of some captions, one row each."""
        return {**self.texts.conditions(rows), "caption": self._embeddings[list(rows)]}

    @cached_property
    def _embeddings(self) -> Tensor:
        return centred(self.encoder.encode(self.texts.captions), self.texts.rows)
