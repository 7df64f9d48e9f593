"""What a law found, and a table of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LawResult:
    """One law on one recipe: what was found, what was expected, and what to look at when they differ.

    ``error`` is compared with ``tolerance``; ``hint`` is empty for laws that hold.
    """

    name: str
    passed: bool
    value: float
    expected: float
    error: float
    tolerance: float
    hint: str = ""


def judged(name: str, value: float, expected: float, tolerance: float, hint: str, scale: float = 1.0) -> LawResult:
    """Return the result of comparing ``value`` with ``expected``, the difference divided by ``scale``."""
    error = abs(value - expected) / scale
    passed = error <= tolerance  # false for a value that is not a number
    return LawResult(name, passed, value, expected, error, tolerance, "" if passed else hint)


def format_results(results: Sequence[LawResult]) -> str:
    """Return a table with one line per law, failures with their hint on the next line, and a line that sums up."""
    width = max([len(r.name) for r in results], default=4)
    lines = [f"{'law':<{width}}  {'':4}  {'found':>12}  {'expected':>12}  {'error':>9}  {'allowed':>9}"]
    for r in results:
        mark = "ok" if r.passed else "FAIL"
        numbers = f"{r.value:>12.6g}  {r.expected:>12.6g}  {r.error:>9.2g}  {r.tolerance:>9.2g}"
        lines.append(f"{r.name:<{width}}  {mark:4}  {numbers}")
        if r.hint:
            lines.append(f"{'':<{width}}        {r.hint}")
    failed = sum(not r.passed for r in results)
    lines.append(f"{len(results) - failed} of {len(results)} laws hold")
    return "\n".join(lines)
