"""What a run of motion-consistency distillation at AnimateDiff's full size takes on one 24 GB card, from shapes alone.

python benchmarks/animatediff_plan.py [settings of the config to change]

Writes the configurations of Stable Diffusion 1.5 with motion modules (no weights), and plans the shipped config.
The floor is the frozen base in bf16 plus the LoRA's float32 weights, gradients and two moments.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNetMotionModel
from transformers import CLIPTextConfig

from fewstep.core.cli.main import main
from fewstep.core.models.animatediff import SCHEDULE
from fewstep.core.models.tiny import clip_tokenizer


def write_skeleton(folder: Path) -> None:
    """Write the configs of a full-size pipeline."""
    with torch.device("meta"):
        network = UNetMotionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
        adapter = MotionAdapter()
    for name, part in (("unet", network), ("vae", vae), ("motion_adapter", adapter)):
        part.save_config(folder / name)
    CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12).save_pretrained(
        folder / "text_encoder"
    )
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    classes = {
        "unet": ("diffusers", "UNetMotionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "motion_adapter": ("diffusers", "MotionAdapter"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }
    index = {"_class_name": "AnimateDiffPipeline", **{name: list(pair) for name, pair in classes.items()}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        write_skeleton(Path(where))
        config = ["motion-consistency-animatediff", "--domain", "video", f"domain.teacher={where}", *sys.argv[1:]]
        raise SystemExit(main(["plan", *config, "--gpu-gib", "24"]))
