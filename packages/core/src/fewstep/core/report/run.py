"""The report of one run: pictures, curves, table, settings, environment, on one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fewstep.core.errors import UserError
from fewstep.core.recipes import find_recipe
from fewstep.core.report.charts import Chart, make_chart
from fewstep.core.report.page import cells, picture, read_metrics, write_page
from fewstep.core.training.config import read_yaml

PICTURES = 12  # earlier previews on the page: more than that would only make it heavy
SHOWN_FIRST = ("loss", "metric", "eval", "grad_norm", "lr", "time")


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write ``report.html`` of a run folder (or ``out``) and return it.

    Uses what is there: metrics and config must be, previews and an evaluation may. Raises UserError for a folder that
    is no run.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: no config.yaml there; give the folder of a run")
    config, rows = read_yaml(run_dir / "config.yaml"), read_metrics(run_dir)
    previews = sorted((run_dir / "previews").glob("*.png"))
    header, body = cells(evaluation_rows(run_dir, rows))
    recipe = find_recipe(str(config["recipe"]["name"]))
    last = rows[-1] if rows else {}
    return write_page(
        "run.html",
        out or run_dir / "report.html",
        {
            "title": str(config.get("name", run_dir.name)),
            "recipe": recipe,
            "domain": str(config["domain"]["name"]),
            "facts": facts(config, rows, last),
            "latest": picture(previews[-1]) if previews else "",
            "earlier": [(path.stem, picture(path)) for path in spread(previews[:-1], PICTURES)],
            "header": header,
            "body": body,
            "notes": _json(run_dir / "evaluation.json").get("notes", {}),
            "charts": charts(rows),
            "config": yaml.safe_dump(config, sort_keys=False),
            "environment": json.dumps(_json(run_dir / "environment.json"), indent=2),
        },
    )


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most ``count`` of the paths, the first and the last among them, evenly spaced."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (count - 1))] for i in range(count)]


def facts(config: dict[str, Any], rows: Sequence[dict[str, float]], last: dict[str, float]) -> list[tuple[str, str]]:
    """Return the few numbers on top of the page."""
    pace = next((row["time/seconds_per_step"] for row in reversed(rows) if "time/seconds_per_step" in row), None)
    total = next((row["time/training"] for row in reversed(rows) if "time/training" in row), None)
    bad = next((row["bad_updates"] for row in reversed(rows) if "bad_updates" in row), 0.0)
    found = [("steps", f"{int(last.get('step', 0))} of {config['train']['steps']}")]
    found.append(("global batch", str(config["train"]["batch"])))
    if pace is not None and total is not None:
        found += [("per step", f"{1000 * pace:.0f} ms"), ("training", f"{total:.0f} s")]
    found.append(("skipped updates", f"{bad:.0f}"))
    return found


def charts(rows: Sequence[dict[str, float]]) -> list[tuple[str, list[Chart]]]:
    """Return the charts by family (the first word of a metric's name), one chart per name without its last word."""
    groups: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for row in rows:
        for name, value in row.items():
            family, _, rest = name.partition("/")
            if rest:
                # eval/<steps>/<metric>: one chart per metric, one line per number of steps
                head, _, tail = rest.rpartition("/")
                title, line = (tail, f"{head} steps") if family == "eval" else (head or rest, tail)
                points = groups.setdefault(family, {}).setdefault(title, {}).setdefault(line, [])
                points.append((row["step"], value))
    order = [*(f for f in SHOWN_FIRST if f in groups), *(f for f in groups if f not in SHOWN_FIRST)]
    return [(family, [make_chart(title, lines) for title, lines in groups[family].items()]) for family in order]


def evaluation_rows(run_dir: Path, rows: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Return the rows of ``evaluation.json``, or of the last evaluation during training."""
    found = _json(run_dir / "evaluation.json").get("rows")
    if isinstance(found, list):
        return [dict(row) for row in found]
    for row in reversed(rows):
        by_steps: dict[str, dict[str, Any]] = {}
        for name, value in row.items():
            parts = name.split("/")
            if parts[0] == "eval" and len(parts) == 3:
                entry = by_steps.setdefault(parts[1], {"sampler": f"student, step {row['step']:.0f}"})
                entry |= {"steps": int(parts[1]), parts[2]: value}
        if by_steps:
            return list(by_steps.values())
    return []


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON; this file was damaged") from error
    return value if isinstance(value, dict) else {}
