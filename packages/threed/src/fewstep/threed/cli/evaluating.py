"""`fewstep threed eval`: an asset, or a run, in numbers."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from fewstep.core.cli import looking
from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.writing import write_text
from fewstep.core.errors import UserError, check
from fewstep.core.report.tables import table
from fewstep.core.training.config import load_config
from fewstep.core.training.folder import CONFIG
from fewstep.threed.assets import read_asset
from fewstep.threed.clip_measuring import PromptMeasure, open_clip
from fewstep.threed.domain import DOMAIN
from fewstep.threed.measuring import measure
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.truth import find_truth


def evaluate(args: Namespace) -> None:
    """Measure assets and print a table; a run of a network, or any as asked, is measured as every domain's runs are."""
    if args.as_run or (len(args.assets) == 1 and _is_run_of_networks(args.assets[0])):
        check(len(args.assets) == 1, "--as-run measures one run: give one")
        looking.evaluate(Namespace(**{**vars(args), "run": args.assets[0]}))
        return
    check(args.checkpoint is None, "--checkpoint belongs to a run that is measured as one: give --as-run")
    check(bool(args.clip) or not args.candidates, "--candidates: it is CLIP that chooses among them: give --clip too")
    by_clip = _by_clip(args) if args.clip else None
    rows: list[dict[str, Any]] = []
    said: list[str] = []
    for path in args.assets:
        asset = read_asset(path)
        prompt = args.prompt or asset.prompt
        truth = find_truth(prompt)
        check(
            truth is not None or not args.prompt or by_clip is not None,
            f"--prompt: '{args.prompt}' is no prompt of the world of solids; give --clip to measure against it",
        )
        found = measure(asset.scene, truth, views=args.views, size=args.size)
        rows.append({"asset": str(path), "prompt": prompt, **found.values})
        said += [f"{path}: {line}" for line in found.left_out]
        if by_clip is not None:
            by_clip.look(asset.scene, prompt)
    notes: list[str] = []
    if by_clip is not None:
        scored, notes = by_clip.rows()
        rows = [{**row, **more} for row, more in zip(rows, scored, strict=True)]
    print("\n".join([table(rows), *said, *notes]))
    if args.out is not None:
        try:
            write_text(args.out, json.dumps({"rows": rows, "notes": notes}, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{args.out}: cannot be written ({error.strerror}); choose another --out") from error


def _by_clip(args: Namespace) -> PromptMeasure:
    candidates = read_prompts(args.candidates) if args.candidates else []
    clip = open_clip(args.clip)
    return PromptMeasure(clip, args.views, max(args.size, clip.size), candidates)


def _is_run_of_networks(path: Path) -> bool:
    if not (path / CONFIG).is_file():
        return False
    config: ThreedConfig = load_config(path / CONFIG, domain=DOMAIN).domain
    return config.student != "scene"
