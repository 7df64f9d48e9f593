"""Students of the shipped restoration teacher, each trained for the same few minutes, measured on held-out photos.

    python benchmarks/restoration_students.py [--out runs/bench-restoration] [--steps 300] [--only tad-sr,sinsr]

Three rows take TAD-SR apart: the regression alone, with the score difference, with the adversarial term as well. The
floor is the teacher in fifteen steps; its own single step has the best PSNR, as the mean of all answers must. "yonos"
is one link of scale distillation, x2 to x4, beside "direct", the same training on the truth; both are diffusion models
and are measured in one step. InstaRevive's restorer alone is bicubic enlargement here: nothing is put before its
student. Runs that are there already are measured and not trained again.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fewstep.core.cli.looking import export
from fewstep.core.cli.training import train_new
from fewstep.core.errors import check, nearest
from fewstep.restoration.cli.evaluating import MEASURES, evaluate

# what scale distillation is measured against: the same network, steps and rate on the truth instead of the teacher
DIRECT = ("domain.scales=[4]", "train.batch=8", "optim.lr=5e-5", "optim.warmup=50", "optim.schedule=constant")
STUDENTS = {
    "tad-sr-regression": ("tad-sr-photos", ("recipe.hsd_weight=0", "recipe.gan_weight=0")),
    "tad-sr-score": ("tad-sr-photos", ("recipe.gan_weight=0",)),
    "tad-sr": ("tad-sr-photos", ()),
    "sinsr": ("sinsr-photos", ()),
    "dmd2": ("dmd2-photos", ()),
    "sid": ("sid-photos", ()),
    "vsd": ("vsd-photos", ()),
    "consistency": ("consistency-photos", ()),
    "instarevive": ("instarevive-photos", ()),
    "yonos": ("yonos-photos", ()),
    "direct": ("teacher-photos", ("recipe.init=teacher", "domain.teacher=photos", *DIRECT)),
}
ONE = {"yonos": "@1", "direct": "@1"}


def trained(run: Path, config: str, overrides: Sequence[str]) -> Path:
    """Return the folder of a run, trained and exported unless it is there."""
    if not (run / "export").is_dir():
        asked = {"config": config, "overrides": [*overrides], "out": run}
        train_new(Namespace(**asked, domain="restoration", print_config=False))
        export(Namespace(run=run, out=None, form=None, steps=None, push=None, checkpoint=None))
    return run


def measure(models: list[str], table: Path) -> None:
    """Print the table of models at x4 on the held-out photos, started from full noise, and write it as JSON."""
    evaluate(
        Namespace(
            restored=None,
            reference=None,
            template=None,
            crop=0,
            metrics=tuple(MEASURES.split(",")),
            json=table,
            model=models,
            hr=None,
            prompt="",
            captions=False,
            embedded=True,
            scale=4,
            preset="bicubic-matlab",
            n=None,
            steps=None,
            sampler="auto",
            noise=1.0,
            seed=0,
            device="",
            precision="fp32",
        )
    )


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-restoration"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", default=",".join(STUDENTS))
    args = parser.parse_args()
    names = args.only.split(",")
    for name in names:
        check(name in STUDENTS, f"--only: no student '{name}', {nearest(name, STUDENTS)}")
    short = [f"train.steps={args.steps}", "train.ema.decay=0.98", "train.eval_every=0", "train.preview_every=0"]
    models = ["bicubic", "photos", "photos@1", "photos-student"]
    for name in names:
        config, own = STUDENTS[name]
        models.append(f"{trained(args.out / name, config, [*short, *own])}{ONE.get(name, '')}")
    measure(models, args.out / "table.json")


if __name__ == "__main__":
    main()
