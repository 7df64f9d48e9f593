"""What the discriminator of frames is told of captions: embeddings by a CLIP text model the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.data.source import Texts
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError
from fewstep.core.models.files import quiet
from fewstep.core.tensors import precise
from fewstep.video.appearance.frozen import find_model, load_whole

TYPES = ("clip", "clip_text_model")
BATCH = 64


class CaptionEncoder:
    """Embeddings "n e" of captions, of root mean square 1 each, by a CLIP text model with its tokenizer.

    ``path``: a folder, or a hub id. ``field``: of the config, in errors. ``width``: e. Raises UserError for another
    model, and for one without all of its weights in safetensors.
    """

    def __init__(self, path: str, field: str = "domain.captions") -> None:
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
        found = precise(self.model(**tokens).text_embeds)
        return found / found.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


class ToldCaptions:
    """Encoded prompts (``core.data.source.Texts``) whose conditions hold ``caption`` "b e" for the discriminator, too.

    For training only: students are sampled without it. Each different caption is encoded once, when first needed.
    """

    def __init__(self, texts: Texts, encoder: CaptionEncoder) -> None:
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
        return self.encoder.encode(self.texts.captions)
