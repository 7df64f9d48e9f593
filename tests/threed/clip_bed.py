"""A small random CLIP model as a folder."""

from __future__ import annotations

from pathlib import Path

SIZE = 16


def tiny_clip(folder: Path) -> Path:
    """Write the model and its tokenizer of characters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    from fewstep.core.models.tiny import CHARACTERS, clip_tokenizer, seeded

    words = 2 * len(CHARACTERS) + 2
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=words, max_position_embeddings=77, bos_token_id=words - 2, eos_token_id=words - 1,
        pad_token_id=words - 1, **small,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, **small)
    with seeded(0):
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    model.eval().save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder
