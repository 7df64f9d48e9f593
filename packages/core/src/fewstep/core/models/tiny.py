"""Small random components of the real classes, from which families put together pipelines to try things out on.

Weights are random but reproducible; tokenizers know single characters. What such a pipeline makes is noise: it is
there to run every line of code a large one would.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.core.models.files import quiet
from fewstep.core.rng import Rng

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:()"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what sentencepiece makes of it
SPELLING = ("<pad>", "</s>", "<unk>", SPACE, *CHARACTERS)
GEMMA_SPELLING = ("<pad>", "<eos>", "<bos>", "<unk>", SPACE, *CHARACTERS)
LENGTH = 24  # tokens of a tiny CLIP prompt; for others pipelines ask for a number of their own


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make the random weights of what is inside reproducible, and leave torch's generator as it was."""
    with Rng(seed, 0, ()).network_noise("tiny"):
        yield


def visible(network: nn.Module) -> nn.Module:
    """Return a network whose zero-initialised layers got small random weights: its output depends on everything."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return network


def clip_text(width: int, *, projection: int = 0, length: int = LENGTH) -> Any:
    """Return a CLIP text encoder of two layers; with ``projection``, one with a pooled output of that width.

    ``length``: the tokens of a prompt.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=2 * len(CHARACTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        projection_dim=projection or width,
        bos_token_id=2 * len(CHARACTERS),
        eos_token_id=2 * len(CHARACTERS) + 1,
        pad_token_id=2 * len(CHARACTERS) + 1,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def clip_tokenizer() -> Any:
    """Return a CLIP tokenizer that spells: every character is a token."""
    from transformers import CLIPTokenizer

    tokens = [*CHARACTERS, *(f"{character}</w>" for character in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=LENGTH)


def t5_text(width: int, *, multilingual: bool = False) -> Any:
    """Return a T5 encoder of two layers; with ``multilingual``, a UMT5 encoder."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    kind, settings = (UMT5EncoderModel, UMT5Config) if multilingual else (T5EncoderModel, T5Config)
    config = settings(
        vocab_size=len(SPELLING),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return kind(config)


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer that spells: every character is a token, and a space is one before every word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    tokenizer = Tokenizer(models.Unigram([(token, -2.0) for token in SPELLING], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _saved(T5TokenizerFast, tokenizer, extra_ids=0)


def gemma_text(width: int) -> Any:
    """Return a Gemma 2 text encoder of one layer: the prompts it reads follow a page of instructions."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(GEMMA_SPELLING),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        query_pre_attn_scalar=width // 2,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


def gemma_tokenizer() -> Any:
    """Return a Gemma tokenizer that spells: every character is a token, a space included."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import GemmaTokenizerFast

    vocabulary = {token: index for index, token in enumerate(GEMMA_SPELLING)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Replace(SPACE, " ")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return _saved(GemmaTokenizerFast, tokenizer)


def _saved(kind: Any, tokenizer: Any, **options: Any) -> Any:
    """Return a tokenizer of transformers around one of the tokenizers library."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(str(file))
        options |= {"tokenizer_file": str(file), "model_max_length": 512, "local_files_only": True}
        return kind.from_pretrained(folder, **options)


def tiny_vae(channels: int = 4, shift: float | None = None) -> Any:
    """Return an autoencoder that halves both sides."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=shift,
    )


def save_pipeline(kind: Any, folder: Path, **parts: Any) -> None:
    """Write a pipeline of ``kind`` with these components as safetensors."""
    with quiet():
        kind(**parts).save_pretrained(folder, safe_serialization=True)
