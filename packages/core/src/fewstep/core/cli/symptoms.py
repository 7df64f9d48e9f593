"""What can be read off a run's folder about its health: finiteness, collapse, a lagging critic, damaged files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.core.training.checkpoint import Refused, candidates, read_checkpoint
from fewstep.core.training.config import load_config
from fewstep.core.training.folder import CHECKPOINTS, CONFIG
from fewstep.core.training.settings import RunConfig

METRICS = "metrics.jsonl"
COLLAPSED = 0.3  # of the data's diversity
LAGGING = 1.3  # times its best loss
Level = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis: what was looked at, what was seen, and what to do when it is not well."""

    level: Level
    what: str
    seen: str
    advice: str = ""


def examine_run(run_dir: Path) -> list[Finding]:
    """Return what a run's files say; UserError when its config cannot be read."""
    config = load_config(run_dir / CONFIG)
    rows = read_metrics(run_dir / METRICS)
    return [
        *_weights(run_dir / CHECKPOINTS),
        *finite_numbers(rows),
        *diversity_kept(rows),
        *critic_keeps_up(rows),
        *guidance_convention(config),
    ]


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line cut off by a kill is dropped."""
    rows: list[dict[str, Any]] = []
    if not file.is_file():
        return rows
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def series(rows: Sequence[Mapping[str, Any]], prefix: str = "", suffix: str = "") -> dict[str, list[float]]:
    """Return every number of the rows by name, in order, for names with a prefix and a suffix."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and name.startswith(prefix) and name.endswith(suffix) and isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return found


def _weights(folder: Path) -> Iterator[Finding]:
    found = list(candidates(folder))
    if not found:
        yield Finding("warn", "checkpoints", "none yet", "wait for one, or set train.checkpoint_every")
        return
    for path, reason in found:
        if reason:
            yield Finding("warn", path.name, reason, "remove it; resume passes over it")
            continue
        try:
            tensors = read_checkpoint(path).tensors
        except Refused as error:
            yield Finding("warn", path.name, str(error), "remove it; resume passes over it")
            continue
        bad = [
            f"{group}:{name}"
            for group, values in tensors.items()
            for name, value in values.items()
            if not bool(value.isfinite().all())
        ]
        if bad:
            yield Finding("fail", path.name, f"not finite: {bad[0]}", "resume from an older one, with a lower optim.lr")
        else:
            yield Finding("ok", path.name, "verifies, all weights finite")


def finite_numbers(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Say whether every logged number is finite, and whether updates were skipped."""
    bad = [name for name, values in series(rows).items() if not all(math.isfinite(v) for v in values)]
    skipped = max((v for values in series(rows, "bad_updates").values() for v in values), default=0.0)
    if bad:
        yield Finding(
            "warn", "metrics", f"not finite at times: {', '.join(bad)}", "lower optim.lr, set train.grad_clip"
        )
    if skipped:
        yield Finding(
            "warn", "updates", f"{skipped:.0f} were not finite and skipped", "lower optim.lr, set train.grad_clip"
        )
    if rows and not bad and not skipped:
        yield Finding("ok", "metrics", f"{len(rows)} rows, all finite, no update skipped")


def diversity_kept(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Say whether the student's diversity at its most steps, as a share of the data's, is there and stays."""
    found = {int(name.split("/")[1]): values for name, values in series(rows, "eval/", "/diversity").items()}
    if not found:
        return
    steps = max(found)
    last, best = found[steps][-1], max(found[steps])
    seen = f"{last:.2f} of the data's at {steps} step(s)"
    if last < COLLAPSED:
        yield Finding("fail", "diversity", seen, "the student collapses: lower its rate, or update the fake score more")
    elif last < 0.6 * best:
        yield Finding("warn", "diversity", f"{seen}, was {best:.2f}", "take an earlier checkpoint, or a lower rate")
    else:
        yield Finding("ok", "diversity", seen)


def critic_keeps_up(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Say whether the fake score still fits the student's samples: its loss must not climb while the student moves."""
    for name, values in series(rows, "loss/fake_score/denoise").items():
        if len(values) < 8:
            continue
        quarter = len(values) // 4
        best = min(sum(values[i : i + quarter]) / quarter for i in range(len(values) - quarter + 1))
        now = sum(values[-quarter:]) / quarter
        if now > LAGGING * best:
            advice = "raise recipe.fake_updates or the fake score's rate, or lower the student's"
            yield Finding("warn", "critic lag", f"{name} is {now / best:.2f} times its best", advice)
        else:
            yield Finding("ok", "critic lag", f"{name} within {now / best:.2f} of its best")


def guidance_convention(config: RunConfig) -> Iterator[Finding]:
    """Say when a guidance scale looks like one of the convention ``cond + w (cond - uncond)``."""
    scale = getattr(config.recipe, "guidance_scale", None)
    if isinstance(scale, int | float) and 0 < scale < 1:
        yield Finding(
            "note",
            "guidance",
            f"recipe.guidance_scale={scale:g} weakens the condition",
            f"here 1 is no guidance; a paper's w={scale:g} is {scale + 1:g}",
        )
