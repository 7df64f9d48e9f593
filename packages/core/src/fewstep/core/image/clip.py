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

    ``folder``: a CLIPModel in safetensors with its tokenizer. Raises UserError for anything else.
    """

    def __init__(self, folder: str) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        path = Path(folder).expanduser()
        check(path.is_dir(), f"domain.clip: {path} is no folder; give one with a CLIPModel in safetensors")
        config = read_json(path / "config.json")
        check(config.get("model_type") == "clip", f"domain.clip: {path} holds a {config.get('model_type')}, not CLIP")
        check("auto_map" not in config, f"domain.clip: {path} asks for code of its own, which is never run")
        check_weights(path)
        try:
            with quiet():
                self.model: Any = CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()
                self.tokenizer: Any = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"domain.clip: {path} cannot be read ({str(error).splitlines()[0]})") from error
        self.size = int(self.model.config.vision_config.image_size)
        self.protocol = f"clip: 100 max(cosine, 0), {path.name}, bicubic to {self.size} pixels"

    @torch.no_grad()
    def score(self, pixels: Float[Tensor, "n c h w"], prompts: Sequence[str]) -> float:
        """Return the mean score of pictures in [-1, 1] under their prompts."""
        found = [self._batch(pixels[i : i + BATCH], prompts[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
        return float(100 * torch.cat(found).clamp_min(0).mean())

    def _batch(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        from kornia.geometry.transform import resize

        sides = (self.size, self.size)
        unit = (pixels.clamp(-1, 1) + 1) / 2
        fitted = resize(unit.expand(-1, 3, -1, -1), sides, interpolation="bicubic", antialias=True)
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        out = self.model(pixel_values=(fitted - mean) / std, **tokens)
        image, text = out.image_embeds, out.text_embeds
        return torch.nn.functional.cosine_similarity(image, text)
