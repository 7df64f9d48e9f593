"""Stable Diffusion's way in small: latents, a teacher that predicts noise, a TAD-SR student, its decoder tuned.

    python benchmarks/restoration_latents.py [--out runs/bench-latents]

An AutoencoderKL (4x4 pixels a position, 8 channels) is trained on the photos, a UNet2DModel on its latents under Stable
Diffusion's schedule, told the low-quality picture's latents. Networks that predict noise are what Stable Diffusion 1.x
and 2.x are: at the noisiest level a clean sample is read from them as ``(x - sigma eps) / alpha`` with ``alpha`` 0.068,
so that a single step of the teacher magnifies its errors 14.6 times. "decoder" is YONOS-SR's second stage on the
student. The floor is "autoencoder", which encodes and decodes the originals. Runs that are there already are measured
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

CROP, BATCH, STEPS = 64, 16, {"autoencoder": 1500, "teacher": 1800, "student": 400, "decoder": 200}
TEACHER = ("domain.data.crop=64", "domain.network.widths=[96,128]", "domain.network.layers=2")
STUDENT = ("domain.scales=[4]", "domain.noise=1", "domain.data.crop=64", "recipe.teacher_steps=15", "optim.lr=2e-4")
DECODER = ("domain.data.crop=96", "recipe.adversarial_weight=0", "optim.lr=1e-4", "train.batch=8")
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
    latents = ["domain.space.kind=kl", f"domain.space.path={out / 'autoencoder'}", "domain.process.prediction=eps"]
    teacher = trained(out / "teacher", "teacher-unet-photos", [*QUIET, *latents, *TEACHER, own[0]])
    student = trained(out / "student", "tad-sr-photos", [*QUIET, *STUDENT, f"domain.teacher={teacher}", own[1]])
    decoder = trained(out / "decoder", "decoder-latents", [*QUIET, *DECODER, f"domain.teacher={student}", own[2]])
    cut = [x[None, :, : x.shape[1] // 4 * 4, : x.shape[2] // 4 * 4] for _, x in photos.held_out()]
    floor = [psnr_y(space.decode(space.encode(2 * x - 1)) / 2 + 0.5, x) for x in cut]
    print(f"autoencoder alone: PSNR-Y {torch.cat(floor).mean():.2f} dB")
    measure(["bicubic", f"{teacher}@15", f"{teacher}@1", str(student), str(decoder)], out / "table.json")


if __name__ == "__main__":
    main()
