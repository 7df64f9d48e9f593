"""Similarity of pictures and prompts by a CLIP model the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import check_weights, quiet, read_json

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
BATCH = 32


class ClipScore:
    """``100 max(cos, 0)`` of the image's and the prompt's embedding, mean over samples (CLIPScore, arXiv 2104.08718).

    ``folder``: a CLIPModel in safetensors with its tokenizer; ``key``: what the user gave it as. Raises UserError for
    anything else.
    """

    def __init__(self, folder: str, key: str = "domain.clip") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        path = Path(folder).expanduser()
        check(path.is_dir(), f"{key}: {path} is no folder; give one with a CLIPModel in safetensors")
        config = read_json(path / "config.json")
        check(config.get("model_type") == "clip", f"{key}: {path} holds a {config.get('model_type')}, not CLIP")
        check("auto_map" not in config, f"{key}: {path} asks for code of its own, which is never run")
        check_weights(path)
        try:
            with quiet():
                self.model: Any = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()
                self.tokenizer: Any = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{key}: {path} cannot be read ({str(error).splitlines()[0]})") from error
        self.size = int(self.model.config.vision_config.image_size)
        self.protocol = f"clip: 100 max(cosine, 0), {path.name}, bicubic to {self.size} pixels"

    @torch.no_grad()
    def score(self, pixels: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> float:
        """Return the mean score of pictures in [-1, 1] under their prompts."""
        cosine = (self.embed_pictures(pixels) * self.embed_prompts(prompts)).sum(1)
        return float(100 * cosine.clamp_min(0).mean())

    @torch.no_grad()
    def embed_pictures(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n e"]:
        """Return unit vectors of pictures in [-1, 1]."""
        from kornia.geometry.transform import resize

        sides = (self.size, self.size)
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
        found = []
        for some in torch.split(pixels, BATCH):
            unit = (some.clamp(-1, 1) + 1) / 2
            fitted = resize(unit.expand(-1, 3, -1, -1), sides, interpolation="bicubic", antialias=True)
            seen = self.model.vision_model(pixel_values=(fitted - mean) / std).pooler_output
            found.append(self.model.visual_projection(seen))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Return unit vectors of prompts, each cut off where CLIP stops reading."""
        found = []
        for start in range(0, len(prompts), BATCH):
            some = list(prompts[start : start + BATCH])
            tokens = self.tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            read = self.model.text_model(**tokens).pooler_output
            found.append(self.model.text_projection(read))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)
