"""A plan and advice as tables, and as plain values for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fewstep.core.planning.advice import Advice, needed
from fewstep.core.planning.plan import MemoryPlan
from fewstep.core.report.tables import table

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size(count: int) -> str:
    """Return a number of bytes in words."""
    for name, unit in UNITS:
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


def describe(plan: MemoryPlan) -> str:
    """Return what each role keeps and what each phase reaches."""
    roles = [
        {
            "role": role.name,
            "parameters": role.parameters,
            "trained": role.trained,
            "weights": size(role.weights),
            "gradients": size(role.gradients),
            "optimizer": size(role.optimizer),
            "average": size(role.average),
        }
        for role in plan.roles
    ]
    phases = [
        {
            "phase": phase.name,
            "stays": size(phase.resident),
            "gradients": size(phase.gradients),
            "activations": size(phase.activations),
            "peak": size(phase.peak),
        }
        for phase in plan.phases
    ]
    lines = [table(roles), "", table(phases), ""]
    parts = [f"{part.name} {size(part.weights)} ({'stays' if part.stays else 'only when used'})" for part in plan.parts]
    lines += [f"besides: {'; '.join(parts)}"] if parts else []
    lines.append(f"peak {size(plan.peak)}; with the allocator's slack and CUDA's own, {size(needed(plan.peak))}")
    return "\n".join(lines)


def describe_advice(advice: Sequence[Advice], room: int) -> str:
    """Return the settings to change, what they cost and what they reach."""
    rows = [
        {
            "settings": " ".join(each.settings),
            "needs": size(each.need),
            "fits": "yes" if each.fits else "no",
            "last one costs": each.cost,
        }
        for each in advice
    ]
    head = f"does not fit into {size(room)}; in order of least pain, each line with all of the last one's effects:"
    return f"{head}\n\n{table(rows)}" if rows else f"does not fit into {size(room)}, and no setting here helps"


def plain(plan: MemoryPlan, advice: Sequence[Advice], room: int | None) -> dict[str, Any]:
    """Return everything in bytes, for JSON."""
    return {
        "roles": [dataclasses.asdict(role) for role in plan.roles],
        "phases": [dataclasses.asdict(phase) | {"peak": phase.peak} for phase in plan.phases],
        "parts": [dataclasses.asdict(part) for part in plan.parts],
        "data": plan.data,
        "peak": plan.peak,
        "needed": needed(plan.peak),
        "room": room,
        "fits": None if room is None else needed(plan.peak) <= room,
        "advice": [dataclasses.asdict(each) for each in advice],
    }
