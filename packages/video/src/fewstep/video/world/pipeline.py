"""A small text-to-video pipeline of the drawn world: what the shipped video teacher is trained from.

Its autoencoder is trained here, on single frames of both qualities; its text encoder is random and stays so: it tells
the world's words apart and knows no language. Its network is untrained.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.image.autoencoder import fit_autoencoder, restoration_error
from fewstep.core.models.student import replacing
from fewstep.core.models.tiny import save_pipeline, seeded
from fewstep.video.world.config import COLOURS, DIRECTIONS, GROUNDS, HIGH, LOW, NAMES, PACES, WorldConfig
from fewstep.video.world.drawn import DrawnWorld

TEACHER_WORLD = WorldConfig(objects=1)
TEXT_WIDTH = 64
TEXT_LENGTH = 16  # tokens of a prompt: a thing that moves has ten, the comma among them
LATENT_CHANNELS = 8
KL_WEIGHT = 1e-4
HELD_OUT = 10_000_000  # frames from here on are not trained on
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def world_pipeline(out: Path, seed: int = 0, steps: int = 1500) -> float:
    """Write a TextToVideoSDPipeline of frames of 32x32, its network untrained; replaces what was there.

    ``steps``: that the autoencoder is trained for. Autoencoder and text encoder are kept in float16. Returns the root
    mean squared error, in [-1, 1], of frames the autoencoder never saw.
    """
    from diffusers import DDIMScheduler, TextToVideoSDPipeline

    with seeded(seed):
        unet, text = _network(), _text_encoder()
    vae = train_autoencoder(seed, steps)
    with replacing(out) as aside:
        save_pipeline(
            TextToVideoSDPipeline,
            aside,
            vae=vae.half(),
            text_encoder=text.half(),
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(
                **BETAS,
                clip_sample=False,
                steps_offset=1,  # of no effect here; old pipelines insist on it
                prediction_type="v_prediction",
                timestep_spacing="trailing",
            ),
        )
    return restoration_error(vae.float(), frames(seed, range(HELD_OUT, HELD_OUT + 256)))


def _network() -> Any:
    from diffusers import UNet3DConditionModel

    config = TEACHER_WORLD
    return UNet3DConditionModel(
        sample_size=config.height // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=16,
        norm_num_groups=8,
    )


def words() -> list[str]:
    """Return the words of the world's captions."""
    said = (*COLOURS, *NAMES, *DIRECTIONS, *PACES, *GROUNDS, "a", "moves", "move", "and", "on", ",")
    return sorted({word for phrase in said for word in phrase.split()})


def _tokenizer() -> Any:
    """Return a CLIP tokenizer to which every word of the world is one token."""
    from transformers import CLIPTokenizer

    letters = sorted({letter for word in words() for letter in word})
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], list[str]()
    for word in words():
        # from the end on: a merge with the word's end in it never fires inside another word
        end = f"{word[-1]}</w>"
        for letter in reversed(word[:-1]):
            if f"{letter} {end}" not in merges:
                merges.append(f"{letter} {end}")
            end = letter + end
            tokens.append(end)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, rules = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        rules.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        return CLIPTokenizer(str(vocabulary), str(rules), model_max_length=TEXT_LENGTH)


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = len(_tokenizer())
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    return CLIPTextModel(config)


def frames(seed: int, indices: range) -> Float[Tensor, "b 3 h w"]:
    """Return single frames in [-1, 1], filmed badly and well in turn."""
    world = DrawnWorld(TEACHER_WORLD, seed)
    low, high = world.images(indices[::2], LOW)[0], world.images(indices[1::2], HIGH)[0]
    return torch.cat([low, high]) * 2 - 1


def train_autoencoder(seed: int, steps: int, batch: int = 32) -> Any:
    """Return an AutoencoderKL of 32x32 frames and 8x8 latents, trained on the world's frames."""
    from diffusers import AutoencoderKL

    with seeded(seed):
        vae: Any = AutoencoderKL(
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=TEACHER_WORLD.height,
        )
    return fit_autoencoder(
        vae,
        lambda rng: frames(seed, range(rng.step * batch, (rng.step + 1) * batch)),
        seed=seed,
        steps=steps,
        batch=batch,
        kl_weight=KL_WEIGHT,
        spread_of=frames(seed, range(1024)),
        grad_clip=1.0,
    )
