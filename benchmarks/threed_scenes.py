"""Scenes of one prompt by every method: how near they come to the truth, and how long that takes.

    python benchmarks/threed_scenes.py [--out DIR] [--methods sds,csd,vsd,ism] [--prompt TEXT ...] [key=value ...]

Every run is `fewstep threed train --config <method>-solids`, measured from a ring of views that training does not use.
The floor: the teacher's own pictures, sampled in 20 steps from the same views, against the truth.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from fewstep.core.cli.training import train_new
from fewstep.core.guidance import Guided
from fewstep.core.report.tables import table
from fewstep.core.rng import Rng
from fewstep.core.sampling import teacher_sample
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.threed.assets import write_asset
from fewstep.threed.cameras import Camera
from fewstep.threed.judges import ViewJudge, repeated
from fewstep.threed.measuring import measure, unseen_views
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.teachers.view_model import load_model
from fewstep.threed.truth import Truth, find_truth, inked, saturation
from fewstep.threed.views import Scene

PROMPTS = ("a red cone", "a green torus", "a yellow box")
SHOWN = ("method", "prompt", "psnr", "silhouette_iou", "saturation", "true_saturation", "view_consistency", "seconds")


@torch.no_grad()
def teacher_row(prompt: str, truth: Truth, scale: float) -> dict[str, Any]:
    """Return the numbers of the teacher's own pictures from the ring, each sampled alone."""
    judge = ViewJudge(load_model("solids"))
    ring: Camera = unseen_views(size=judge.size)
    since = time.perf_counter()
    cond = judge.told(ring, repeated(judge.encode([prompt]), len(ring)))
    guided = Guided(judge.teacher, scale)
    made = teacher_sample(guided, judge.shape, cond, Rng.for_batch(0, 0, len(ring)), steps=20)
    rgb, true = judge.pictures(made), truth.pictures(ring)
    return {
        "method": f"teacher's pictures, guidance {scale:g}",
        "prompt": prompt,
        "psnr": float(psnr(rgb, true.rgb).mean()),
        "silhouette_iou": float(silhouette_iou(inked(rgb), inked(true.rgb)).mean()),
        "saturation": float(saturation(rgb, inked(rgb))),
        "true_saturation": float(saturation(true.rgb, true.alpha)),
        "seconds": time.perf_counter() - since,
    }


def scene_row(method: str, prompt: str, truth: Truth, out: Path, settings: list[str]) -> dict[str, Any]:
    """Train a scene and return its numbers."""
    run = out / f"{method}-{prompt.replace(' ', '-')}"
    quiet = ["train.eval_every=0", "train.preview_every=0"]
    given = argparse.Namespace(
        config=f"{method}-solids",
        overrides=[f"domain.prompt={prompt}", *quiet, *settings],
        domain="threed",
        print_config=False,
        out=run,
    )
    since = time.perf_counter()
    train_new(given)
    seconds = time.perf_counter() - since
    scene = open_run(run, World()).exported()
    assert isinstance(scene, Scene)
    write_asset(scene.eval(), run / "export", {"name": method}, prompt=prompt)
    return {"method": method, "prompt": prompt, **measure(scene, truth).values, "seconds": seconds}


def main() -> None:
    """Train all, print a table, and keep it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"))
    parser.add_argument("--methods", default="sds,csd,vsd,ism")
    parser.add_argument("--prompt", action="append")
    args, settings = parser.parse_known_args()
    rows: list[dict[str, Any]] = []
    for prompt in args.prompt or PROMPTS:
        truth = find_truth(prompt)
        assert truth is not None
        rows += [teacher_row(prompt, truth, scale) for scale in (1.0, 7.5)]
        rows += [scene_row(method, prompt, truth, args.out, settings) for method in args.methods.split(",")]
        print(table([{name: row.get(name, "") for name in SHOWN} for row in rows]), flush=True)
    (args.out / "scenes.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
