"""Captions of pictures by an image-captioning model of transformers, from safetensors; imports transformers when used.

Taken are the models that caption a picture with no text beside it: BLIP (arXiv:2201.12086) and GIT (arXiv:2205.14100).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import check_weights, download, quiet, read_json, readable
from fewstep.restoration.data.examples import to_pixels
from fewstep.restoration.pictures.picture import Picture
from fewstep.restoration.tiling import is_out_of_memory

MODELS = {"blip": "BlipForConditionalGeneration", "git": "GitForCausalLM"}  # by model_type of config.json
# processors resize the shorter side first, however long that makes the other
MOST_TIMES_AS_LONG = 100
CONFIG = "config.json"
WORDS = ("tokenizer.json", "vocab.txt")


class Captioner:
    """A model that says in a line what a picture shows, the same on every run: the likeliest token is taken."""

    def __init__(self, model: Any, processor: Any, max_tokens: int) -> None:
        self.model, self.processor, self.max_tokens = model, processor, max_tokens

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        max_tokens: int = 40,
    ) -> Captioner:
        """Return the captioner of a folder, or of a hub id, which is then downloaded.

        ``max_tokens``: of a caption, at most. Raises UserError for other models than :data:`MODELS`, for weights that
        are not safetensors or not complete, and for processors that do not fit the model.
        """
        folder, kind = find(model)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with quiet(), _readable(folder, kind):
            from transformers import AutoModelForImageTextToText, AutoProcessor

            local = {"local_files_only": True, "trust_remote_code": False}
            processor = AutoProcessor.from_pretrained(folder, **local)
            loaded, found = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **local
            )
        missing = sorted(found["missing_keys"])
        check(not missing, f"{folder}: {len(missing)} weights are missing ({missing[:1]}): download the folder again")
        captioner = cls(loaded.eval().to(device), processor, max_tokens)
        captioner._check(folder)
        return captioner

    def _check(self, folder: Path) -> None:
        config = self.model.config
        positions = getattr(config, "text_config", config).max_position_embeddings
        check(
            self.max_tokens < positions,
            f"--max-tokens {self.max_tokens}: {folder} says at most {positions - 1}, give fewer",
        )
        size = config.vision_config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        with _readable(folder, "captioning model's processor"):
            made = tuple(self._processed(np.zeros((8, 12, 3), dtype=np.uint8)).shape)
        check(
            made == (3, height, width),
            f"{folder}: its processor makes {made} of pictures and the model takes {(3, height, width)}: "
            "download the folder again",
        )

    def prepare(self, picture: Picture) -> Float[Tensor, "3 k l"]:
        """Return what the model sees of a picture, the same size for all; UserError for strips."""
        height, width = picture.size
        check(
            max(height, width) <= MOST_TIMES_AS_LONG * min(height, width),
            f"{width}x{height} pixels are a strip more than {MOST_TIMES_AS_LONG} times as long as wide: cut it",
        )
        x = to_pixels(picture)
        x = x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)
        return self._processed(x.permute(1, 2, 0).numpy())

    def _processed(self, x: UInt8[np.ndarray, "h w 3"]) -> Tensor:
        # said, for a picture of 3 rows could as well have its channels first
        made = self.processor(images=x, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = made["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def __call__(self, prepared: Sequence[Float[Tensor, "3 k l"]]) -> list[str]:
        """Return a line for each of the pictures, which may be empty; UserError when memory runs out."""
        x = torch.stack(list(prepared)).to(self.model.device, self.model.dtype)
        try:
            with quiet():
                tokens = self.model.generate(
                    pixel_values=x, max_new_tokens=self.max_tokens, do_sample=False, num_beams=1
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"out of memory with {len(x)} at a time: free some, or give a smaller --batch") from error
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def find(model: str) -> tuple[Path, str]:
    """Return the folder of a captioning model, downloaded where it is a hub id, and its class.

    Weights are downloaded once its configuration is known to be one of :data:`MODELS`; UserError otherwise.
    """
    given = Path(model).expanduser()
    here = given.exists()
    folder = given if here else download(model, weights=False, what="model")
    check(folder.is_dir(), f"{folder}: not a folder; give the folder of a captioning model")
    check((folder / CONFIG).is_file(), f"{folder}: no {CONFIG} there; give the folder of a captioning model")
    config = read_json(folder / CONFIG)
    kind, classes = config.get("model_type"), config.get("architectures")
    known = " and ".join(MODELS.values())
    check(
        kind in tuple(MODELS),
        f"{folder / CONFIG}: a model of type '{kind}', captions are made by {known}; give one of these",
    )
    made = MODELS[str(kind)]
    check(
        classes is None or classes == [made],
        f"{folder / CONFIG}: architectures {classes}, captions are made by {known}; give one of these",
    )
    check(
        config.get("num_image_with_embedding") is None,
        f"{folder / CONFIG}: 'num_image_with_embedding' makes it a model of videos; give one of pictures",
    )
    if not here:
        folder = download(model, what="model")
        check(
            any(folder.glob("*.safetensors")),
            f"model '{model}': the hub has no safetensors of it, others are never loaded; give another model",
        )
    check_weights(folder)
    # without one transformers makes up a tokenizer that knows no words
    check(any((folder / name).is_file() for name in WORDS), f"{folder}: none of {', '.join(WORDS)}: download it again")
    return folder, made


@contextmanager
def _readable(folder: Path, name: str) -> Iterator[None]:
    """Do as :func:`readable`, and for what transformers raises of configurations with values of wrong types."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        with readable(folder, name):
            yield
    except (ImportError, StrictDataclassError) as error:
        raise UserError(f"{folder}: cannot be read as a {name} ({' '.join(str(error).split())[:200]})") from error
