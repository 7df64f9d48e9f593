"""Numbers that change during training, written in a config as a number or as four."""

from __future__ import annotations

from fewstep.core.errors import check

Scalar = float | tuple[float, float, float, float]
"""A number, or ``[start, from, to, end]``: ``from`` until step ``start``, ``to`` from step ``end``, linear between."""


def value_at(value: Scalar, step: int) -> float:
    """Return the number in force at ``step``."""
    if isinstance(value, int | float):
        return float(value)
    start, first, last, end = value
    share = min(max((step - start) / (end - start), 0.0), 1.0)
    return first + share * (last - first)


def ends_of(value: Scalar) -> tuple[float, float]:
    """Return the first and the last number."""
    return (float(value), float(value)) if isinstance(value, int | float) else (value[1], value[2])


def check_annealed(name: str, value: Scalar) -> None:
    """Raise UserError naming the setting when its steps are not whole, negative, or do not rise."""
    if isinstance(value, int | float):
        return
    start, _, _, end = value
    check(
        start == int(start) and end == int(end) and 0 <= start < end,
        f"{name}: [start, from, to, end] needs whole steps 0 <= start < end, got {start:g} and {end:g}",
    )
