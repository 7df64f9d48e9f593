"""One page for several students of one teacher: the picture, the table, and where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.report.charts import number
from fewstep.core.report.page import Row, cells, picture, write_page


@dataclass(frozen=True)
class Bar:
    """A sampler in the chart of the comparison: its value, and the length of its bar as a share of the longest."""

    name: str
    teacher: bool
    text: str
    share: float


def build_comparison(
    out: Path,
    *,
    title: str,
    lead: str,
    samples: Path,
    rows: Sequence[Row],
    measure: str,
    notes: Sequence[tuple[str, str]] = (),
    runs: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write a page comparing samplers, and return it.

    ``rows``: one per sampler, with the columns ``sampler``, ``steps`` and the number called ``measure`` (less is
    better; the bars are of its logarithm's order, so they are drawn by square root); teachers' names begin with
    ``teacher``. ``samples``: a PNG; ``notes``: name and text; ``runs``: name and relative link of each run's report.
    """
    longest = max((float(row[measure]) for row in rows), default=0.0) or 1.0
    bars = [
        Bar(
            f"{row['sampler']}, {row['steps']} step{'s' if int(row['steps']) != 1 else ''}",
            str(row["sampler"]).startswith("teacher"),
            number(float(row[measure])),
            (max(float(row[measure]), 0.0) / longest) ** 0.5,
        )
        for row in sorted(rows, key=lambda row: float(row[measure]))
    ]
    header, body = cells(rows)
    return write_page(
        "comparison.html",
        out,
        {
            "title": title,
            "lead": lead,
            "samples": picture(samples),
            "header": header,
            "body": body,
            "teachers": [str(row["sampler"]).startswith("teacher") for row in rows],
            "bars": bars,
            "measure": measure,
            "notes": notes,
            "runs": runs,
        },
    )
