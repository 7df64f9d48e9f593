"""Reading a run folder, and turning templates into one self-contained page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fewstep.core.data.writing import write_text
from fewstep.core.errors import UserError
from fewstep.core.report.charts import number

Row = Mapping[str, Any]


def picture(path: Path) -> str:
    """Return a PNG as a data URL; UserError when it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return "data:image/png;base64," + base64.b64encode(data).decode()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of ``metrics.jsonl``; UserError when there is none. A last line cut short is left out."""
    path = run_dir / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from error
    rows = []
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            if place == len(lines) - 1:
                break  # a run that is being written, or was killed while writing
            raise UserError(f"{path}:{place + 1}: not JSON; this file was damaged") from error
        rows.append({str(k): float(v) for k, v in row.items() if isinstance(v, int | float)})
    return rows


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells, as text, of rows that may lack some columns."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[_text(row.get(name)) for name in header] for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)


def write_page(template: str, out: Path, values: Mapping[str, Any]) -> Path:
    """Render a template of this package and write it in one move; returns the file."""
    environment = Environment(
        loader=PackageLoader("fewstep.core.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    write_text(out, environment.get_template(template).render(values))
    return out
