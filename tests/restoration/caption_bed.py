"""Small random captioning models, pictures, and what such a model says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from restoration.model_bed import restoration

from fewstep.core.models.files import quiet

START, END = 5, 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{i}" for i in range(58))]
ONE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


Says = Callable[[np.ndarray], str]


def tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer(str(folder / "vocab.txt"), bos_token="[DEC]")


def blip(folder: Path, *, silent: bool = False) -> Path:
    """Write a random BLIP of 32x32 pictures; a silent one ends every caption before its first word."""
    with quiet():
        from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        torch.manual_seed(0)
        tokens = {"bos_token_id": START, "sep_token_id": END, "eos_token_id": END, "pad_token_id": 0}
        text = ONE | tokens | {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64}
        vision = ONE | {"image_size": 32, "patch_size": 8}
        # at the widths of real models weights are small; here that would say the same of every picture
        wide = {"initializer_range": 1.0}
        model = BlipForConditionalGeneration(BlipConfig(text_config=text | wide, vision_config=vision | wide))
        if silent:
            with torch.no_grad():
                model.text_decoder.cls.predictions.bias[END] = 1e4
        model.save_pretrained(folder)
        pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
        BlipProcessor(pictures, tokenizer(folder)).save_pretrained(folder)
    return folder


def git(folder: Path) -> Path:
    """Write a random GIT of 32x32 pictures."""
    with quiet():
        from transformers import GitConfig, GitForCausalLM, GitProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        torch.manual_seed(0)
        tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": 0}
        vision = ONE | {"image_size": 32, "patch_size": 8, "initializer_range": 1.0}
        text = ONE | tokens | {"vocab_size": len(WORDS), "max_position_embeddings": 64, "initializer_range": 1.0}
        GitForCausalLM(GitConfig(vision_config=vision, **text)).save_pretrained(folder)
        pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        GitProcessor(pictures, tokenizer(folder)).save_pretrained(folder)
    return folder


def speaker(folder: Path) -> Says:
    """Return what a model's own generate says of one picture, "h w 3" in 8 bits."""
    with quiet():
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(folder)
        network = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def says(x: np.ndarray) -> str:
        with quiet(), torch.no_grad():
            inputs = processor(images=Image.fromarray(x), input_data_format="channels_last", return_tensors="pt")
            tokens = network.generate(**inputs, max_new_tokens=40, do_sample=False, num_beams=1)
        return str(processor.decode(tokens[0], skip_special_tokens=True))

    return says


def values(seed: int, height: int = 24, width: int = 36, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def album(folder: Path, n: int = 5) -> list[Path]:
    """Write different pictures, also deeper down, and return their paths."""
    paths = [folder / ("deep/er" if i % 2 else "") / f"{i}.{('png', 'tif')[i % 2]}" for i in range(n)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values(i, width=30 + i)).save(path)
    return paths


def captions(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in folder.rglob("*.txt")}


def refused(capsys, *args: object) -> str:
    assert restoration("caption", *args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err
