"""The table of recipes and domains: every cell is a test that trains from the command line and beats the teacher.

A domain's cells are in ``tests/<domain>/test_matrix.py`` (the image domain's in ``tests/core``), as ``CELLS``.
``python tests/matrix.py`` writes the table into README.md; a test holds it there.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = {"image": "core", "video": "video", "threed": "threed", "restoration": "restoration", "lidar": "lidar"}
START, END = "<!-- matrix: made by `python tests/matrix.py` -->", "<!-- end of matrix -->"


@dataclass(frozen=True)
class Cell:
    """A recipe on a domain: the shipped config, what the test shortens, and the step counts at which it must win."""

    config: str
    steps: tuple[int, ...]
    overrides: tuple[str, ...] = ()


def cells_of(domain: str) -> dict[str, Cell]:
    """Return the cells a domain's tests declare, by recipe."""
    path = ROOT / "tests" / DOMAINS[domain] / "test_matrix.py"
    if not path.is_file():
        return {}
    spec = importlib.util.spec_from_file_location(f"matrix_{domain}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Cell] = module.CELLS
    return found


def table() -> str:
    """Return the table in Markdown: a step count where a test shows that the student beats the teacher there."""
    from fewstep.core.recipes import BUILT_IN, find_recipe

    cells = {domain: cells_of(domain) for domain in DOMAINS}
    lines = ["| recipe | paper | " + " | ".join(DOMAINS) + " |", "|---|---|" + "---|" * len(DOMAINS)]
    built_in = {name for name, (module, _) in BUILT_IN.items() if module.startswith("fewstep.")}  # tests add toys
    for name in sorted(built_in.union(*cells.values()) - {"diffusion"}):
        row = [f"`{name}`", f"[{find_recipe(name).paper}](https://arxiv.org/abs/{find_recipe(name).paper})"]
        for domain in DOMAINS:
            cell = cells[domain].get(name)
            row.append("" if cell is None else ", ".join(map(str, cell.steps)) + " step" + "s" * (cell.steps != (1,)))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """Return the README's text with the table between its markers renewed."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def measured(evaluation: Path, measure: str = "frechet") -> dict[str, dict[int, float]]:
    """Return the numbers ``{student | teacher: {steps: value}}`` of one measure in an evaluation's JSON."""
    found: dict[str, dict[int, float]] = {"student": {}, "teacher": {}}
    rows: list[dict[str, Any]] = json.loads(evaluation.read_text())["rows"]
    for row in rows:
        found[str(row["sampler"]).split(",")[0]][int(row["steps"])] = float(row[measure])
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
