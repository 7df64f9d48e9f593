"""YONOS-SR's second stage in latents: a small autoencoder, a teacher, its one-step student, the decoder tuned on it.

    python benchmarks/restoration_latents.py [--out runs/bench-latents]

An AutoencoderKL (4x4 pixels a position, 8 channels) is trained on the photos, ResShift's diffusion on its latents, a
TAD-SR student of that, and last the decoder alone on what the frozen student makes of fresh noise. The floor of every
row is the autoencoder's own error on the originals, which is printed first. Runs that are there already are measured
and not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from restoration_students import measure, trained
from torch import Tensor

from fewstep.core.image.autoencoder import fit_autoencoder
from fewstep.core.rng import Rng
from fewstep.restoration.data import photos
from fewstep.restoration.data.opening import open_examples
from fewstep.restoration.data.settings import DataConfig
from fewstep.restoration.data.source import RestorationSource
from fewstep.restoration.metrics import psnr_y
from fewstep.restoration.models.spaces import find_space

CROP, BATCH, STEPS = 64, 16, {"autoencoder": 1500, "teacher": 2000, "student": 300, "decoder": 300}
TEACHER = ("domain.scales=[4]", "domain.process.residual_std=0.5", "recipe.sigma_data=0.5")
STUDENT = ("domain.scales=[4]", "domain.noise=1", "train.ema.decay=0.98")
DECODER = ("domain.data.crop=96", "optim.lr=2e-4", "train.batch=8", "recipe.adversarial_start=50")
QUIET = ("train.eval_every=0", "train.preview_every=0")


def autoencoder(out: Path) -> Path:
    """Return the folder of the autoencoder, trained unless it is there."""
    if not (out / "config.json").is_file():
        from diffusers import AutoencoderKL

        with Rng(0, 0, ()).network_noise("autoencoder"):
            vae: Any = AutoencoderKL(
                latent_channels=8,
                block_out_channels=(16, 16, 32),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                norm_num_groups=8,
                mid_block_add_attention=False,
                sample_size=CROP,
            )
        data = DataConfig(crop=CROP)
        source = RestorationSource(open_examples(data, (4,), photos)[0], data, (4,))

        def crops(rng: Rng) -> Tensor:
            return 2 * source.pairs(rng).hr - 1

        spread = torch.cat([crops(Rng.for_batch(1, i, BATCH)) for i in range(8)])
        fit_autoencoder(
            vae, crops, seed=0, steps=STEPS["autoencoder"], batch=BATCH, kl_weight=1e-4, spread_of=spread, grad_clip=1.0
        ).save_pretrained(out)
    return out


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-latents"))
    args = parser.parse_args()
    out = args.out
    space = find_space("kl", autoencoder(out / "autoencoder"))
    own = [f"train.steps={STEPS[name]}" for name in ("teacher", "student", "decoder")]
    latents = ["domain.space.kind=kl", f"domain.space.path={out / 'autoencoder'}"]
    teacher = trained(out / "teacher", "teacher-photos", [*QUIET, *latents, *TEACHER, own[0]])
    student = trained(out / "student", "tad-sr-photos", [*QUIET, *STUDENT, f"domain.teacher={teacher}", own[1]])
    decoder = trained(out / "decoder", "decoder-latents", [*QUIET, *DECODER, f"domain.teacher={student}", own[2]])
    cut = [x[None, :, : x.shape[1] // 4 * 4, : x.shape[2] // 4 * 4] for _, x in photos.held_out()]
    floor = [psnr_y(space.decode(space.encode(2 * x - 1)) / 2 + 0.5, x) for x in cut]
    print(f"autoencoder alone: PSNR-Y {torch.cat(floor).mean():.2f} dB")
    measure(["bicubic", str(teacher), f"{teacher}@1", str(student), str(decoder)], out / "table.json")


if __name__ == "__main__":
    main()
