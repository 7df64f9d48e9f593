"""More small random components: what video families have besides those of :mod:`fewstep.core.models.tiny`."""

from __future__ import annotations

import re
from typing import Any

from fewstep.core.models.tiny import CHARACTERS

WORDS = r"\w+|[^\w\s]|\n"
LENGTH = 512  # tokens of a tiny Llama prompt, its template included


def llama_text(width: int, tokens: int) -> Any:
    """Return a Llama model of three layers that knows that many tokens: its last two are skipped."""
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def template_tokenizer(template: str) -> Any:
    """Return a tokenizer that knows the words and the marks ``<|...|>`` of a prompt template, and spells all others."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = sorted(set(re.findall(r"<\|\w+\|>", template)))
    words = sorted(set(re.findall(WORDS, re.sub(r"<\|\w+\|>", " ", template.lower()))) - set(CHARACTERS))
    known = ["<pad>", "<unk>", *marks, *words, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(known)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=marks,
        padding_side="right",
        model_max_length=LENGTH,
    )
