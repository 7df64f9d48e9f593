"""A small pipeline for captioned digits: what the shipped text-to-image teacher is trained from.

Its autoencoder is trained here, on the digits; its text encoder is random and stays so: it tells captions apart and
knows no language. Its network is untrained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fewstep.core.image.autoencoder import fit_autoencoder, restoration_error
from fewstep.core.image.data import DataConfig, ImageSource, load_data
from fewstep.core.models.student import replacing
from fewstep.core.models.tiny import clip_text, clip_tokenizer, save_pipeline, seeded
from fewstep.core.rng import Rng

TEXT_WIDTH = 64
TEXT_LENGTH = 16  # tokens of a prompt: "the digit 7" has eleven
KL_WEIGHT = 1e-3
HOLDOUT = 0.2


def captioned_pipeline(out: Path, seed: int = 0) -> float:
    """Write a StableDiffusionPipeline of 8x8 digits in colour, its network untrained; replaces what was there.

    Returns the root mean squared error, in [-1, 1], of the held-out digits the autoencoder restores.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 80),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        text, tokenizer = clip_text(TEXT_WIDTH, length=TEXT_LENGTH), clip_tokenizer()
    tokenizer.model_max_length = TEXT_LENGTH
    vae = train_autoencoder(seed)
    with replacing(out) as aside:
        save_pipeline(
            StableDiffusionPipeline,
            aside,
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                steps_offset=1,  # of no effect here; old pipelines insist on it
                prediction_type="v_prediction",
                timestep_spacing="trailing",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    data = load_data(DataConfig(holdout=HOLDOUT))
    held_out = data.reference[: len(data.reference) - len(data.source)]
    return restoration_error(vae, held_out.expand(-1, 3, -1, -1))


def train_autoencoder(seed: int, steps: int = 1500, batch: int = 128) -> Any:
    """Return an AutoencoderKL of 8x8 pictures in colour and 4x4 latents, trained on four fifths of the digits."""
    from diffusers import AutoencoderKL

    with seeded(seed):
        vae: Any = AutoencoderKL(
            latent_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=8,
        )
    source = load_data(DataConfig(holdout=HOLDOUT)).source
    return fit_autoencoder(
        vae,
        lambda rng: coloured(source, rng),
        seed=seed,
        steps=steps,
        batch=batch,
        kl_weight=KL_WEIGHT,
        spread_of=coloured(source, Rng.for_batch(seed, steps, len(source))),
    )


def coloured(source: ImageSource, rng: Rng) -> Float[Tensor, "b 3 h w"]:
    """Return a batch of a gray source in [-1, 1], in colour."""
    return source.batch(rng, "cpu").clean_samples("autoencoder").expand(-1, 3, -1, -1)
