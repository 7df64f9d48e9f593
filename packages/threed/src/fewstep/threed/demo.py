"""The demo: a scene distilled from an image model, and the same prompts made at once by a student of that model."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.cli.main import run_domain
from fewstep.core.data.writing import write_text
from fewstep.core.image.rendering import render_rows
from fewstep.core.report import build_comparison
from fewstep.core.report.tables import table
from fewstep.core.training.folder import DEMO, make_demo_room
from fewstep.threed.assets import read_asset, write_asset
from fewstep.threed.looking.pictures import Ring
from fewstep.threed.looking.writing import write_looks
from fewstep.threed.measuring import Measured, measure, unseen_views
from fewstep.threed.planes.shipped import find_planes
from fewstep.threed.shapes.split import split_prompts
from fewstep.threed.teachers.view_model import to_samples
from fewstep.threed.truth import find_truth
from fewstep.threed.views import Scene

METHOD, PROMPT = "sds", "a red cone"
STEPS = 200
SHOWN, SIZE = 6, 96
MEASURE = "off by"  # what PSNR is the logarithm of
COLUMNS = {"psnr": "PSNR", "silhouette_iou": "silhouette IoU", "chamfer": "chamfer", "saturation": "saturation"}


def run_demo(out: Path) -> None:
    """Distil, generate, measure and film into ``out``; an earlier demo there is replaced.

    Raises UserError for a folder with something else in it, TrainingError when training fails.
    """
    began = time.monotonic()
    make_demo_room(out)
    since = time.monotonic()
    quick = [f"train.steps={STEPS}", "train.preview_every=0", "train.eval_every=0"]
    _do("train", "--config", f"{METHOD}-solids", "--out", out / "scene", f"domain.prompt={PROMPT}", *quick)
    _do("export", out / "scene")
    slow = time.monotonic() - since
    scene = read_asset(out / "scene").scene
    rows = [_row(f"scene by {METHOD}", PROMPT, scene, slow)]
    pictures = [("truth", _truths([PROMPT])), (f"{METHOD}, {slow:.0f} s", _looks([scene]))]
    model = find_planes()
    held = [str(prompt) for prompt in split_prompts()[1]][: SHOWN - 1]
    prompts = [PROMPT, *held]
    _say(f"the shipped student makes {len(prompts)} prompts at once; all but the first were held out in its training")
    model.scenes(prompts[:1])  # the first run of a network is slow
    made: list[Scene] = []
    for prompt in prompts:
        since = time.monotonic()
        (one,) = model.scenes([prompt])
        write_asset(one, out / prompt.replace(" ", "-"), {"name": prompt}, prompt=prompt)
        rows.append(_row("student, 4 steps", prompt, one, time.monotonic() - since))
        made.append(one)
    pictures += [("truth", _truths(prompts)), ("student, 4 steps", _looks(made))]
    shown = render_rows(pictures, out / "assets")
    films = [out / "turntable.gif", out / "turntable.html"]
    write_looks(made[0], films, Ring(views=36, size=160), title=PROMPT)
    minutes = (time.monotonic() - began) / 60
    build_comparison(
        out / "report.html",
        title="Scenes out of an image model",
        lead=f"{verdict(rows)} Everything on this page was made on this machine in {minutes:.1f} minutes.",
        samples=shown,
        rows=rows,
        measure=MEASURE,
        notes=[("measured", "against exact pictures of the prompt's solid, from 8 views nobody trained on")],
        runs=[("scene", "scene/report.html"), ("turn it", "turntable.html")],
    )
    write_text(out / DEMO, json.dumps({"minutes": minutes, "rows": rows}, indent=2) + "\n")
    _say("\n".join(["", table(rows), "", verdict(rows), f"{minutes:.1f} minutes; {films[1]}; {out / 'report.html'}"]))


def verdict(rows: list[dict[str, Any]]) -> str:
    """Return what the table says, in a sentence."""
    slow, *fast = rows
    seconds = sum(row["seconds"] for row in fast) / len(fast)
    worst = min(row["silhouette IoU"] for row in fast)
    return (
        f"The student makes a prompt with mesh and Gaussians in {seconds:.1f} s, 1/{slow['seconds'] / seconds:.0f} of "
        f"what one scene took to distil; its silhouettes overlap the true ones by {worst:.2f} at least, and by "
        f"{slow['silhouette IoU']:.2f} for the scene."
    )


def _row(who: str, prompt: str, scene: Scene, seconds: float) -> dict[str, Any]:
    found: Measured = measure(scene, find_truth(prompt))
    named = {title: found.values[name] for name, title in COLUMNS.items() if name in found.values}
    off = 10 ** (-found.values["psnr"] / 20)
    return {"sampler": f"{who}: {prompt}", "steps": 1, MEASURE: off, **named, "seconds": seconds}


@torch.no_grad()
def _looks(scenes: list[Scene]) -> Tensor:
    return torch.cat([to_samples(scene.views(unseen_views(1, SIZE)).rgb.clamp(0, 1)) for scene in scenes])


def _truths(prompts: list[str]) -> Tensor:
    found = []
    for prompt in prompts:
        truth = find_truth(prompt)
        assert truth is not None
        found.append(to_samples(truth.pictures(unseen_views(1, SIZE)).rgb))
    return torch.cat(found)


def _do(*words: object) -> None:
    argv = [str(word) for word in words]
    _say(f"$ fewstep threed {shlex.join(argv)}")
    run_domain("threed", argv, "fewstep threed")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
