"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """Return a value as a table shows it: numbers with four digits, whole ones without a point."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
    return str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as aligned columns under their keys, in the order of first appearance; numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    texts = [[cell(row[key]) if key in row else "" for key in columns] for row in rows]
    widths = [max(len(key), *(len(text[i]) for text in texts)) for i, key in enumerate(columns)]
    right = [all(isinstance(row.get(key, 0), int | float) for row in rows) for key in columns]

    def line(parts: Sequence[str]) -> str:
        aligned = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, texts)])
