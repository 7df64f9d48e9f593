"""What of a student leaves: the network behind its views, with times a stock scheduler can walk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.core.boundary import ConsistencyFunction, edm_scalings
from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Reprocessed
from fewstep.core.errors import UserError, check
from fewstep.core.networks.timed import TimedBackbone
from fewstep.core.recipe import StepPlan

PLAN_FILE = "fewstep.json"
SCHEDULER_FILE = "scheduler_config.json"
PLAN_WORDS = {"mode": ("renoise", "deterministic", "jump"), "end": ("clean", "t_min"), "start": ("noise", "anchor")}


def unwrap(student: Denoiser, plan: StepPlan) -> tuple[NetworkDenoiser, StepPlan, float]:
    """Return the network behind a student's views, its plan in that network's own times, and its LCM time scale.

    The scale is infinite for a student without LCM's boundary. Raises UserError for views no stock scheduler knows.
    """
    time_scaling = math.inf
    while not isinstance(student, NetworkDenoiser):
        if isinstance(student, ConsistencyFunction):
            if student.boundary == "lcm":
                time_scaling = student.time_scale
            else:
                _check_boundary(student, plan)
            student = student.inner
        elif isinstance(student, Reprocessed):
            inner = student.inner.process
            tau = student.process.tau(torch.tensor(plan.times, dtype=torch.float64))
            plan = replace(plan, times=tuple(inner.round(inner.time_from_tau(tau)).tolist()))
            student = student.inner
        else:
            raise UserError(f"export: no stock diffusers pipeline runs a {type(student).__name__}")
    return student, plan, time_scaling


def _check_boundary(student: ConsistencyFunction, plan: StepPlan, most: float = 0.02) -> None:
    skip, out = edm_scalings(torch.tensor(plan.times, dtype=torch.float64), student.process, student.sigma_data)
    error = float((skip.abs() + (1 - out).abs()).max())
    check(
        error <= most,
        f"export: the edm boundary still weighs {error:.1%} at this student's last time, and stock schedulers do not "
        "know it: use boundary lcm, or fewer steps",
    )


def check_foldable(backbone: TimedBackbone, plan: StepPlan) -> None:
    """Raise UserError for extra inputs that change from step to step: stock diffusers has no such input."""
    changing = [name for name in backbone.extras if name not in plan.extras]
    check(
        not changing,
        f"export: the input '{', '.join(changing)}' changes from step to step, and stock diffusers has no such input: "
        "train without it",
    )


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as sorted JSON."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_plan(folder: Path, plan: StepPlan, card: Mapping[str, Any]) -> None:
    """Write the plan and the card's facts as JSON."""
    write_json(folder / PLAN_FILE, {"plan": plan_entries(plan), "card": dict(card)})


def plan_entries(plan: StepPlan) -> dict[str, Any]:
    """Return a plan as JSON knows it."""
    return asdict(plan) | {"extras": dict(plan.extras)}


def plan_from(entry: object, where: object) -> StepPlan:
    """Return the plan :func:`plan_entries` made; UserError naming ``where`` for entries that make no sense."""
    try:
        if not isinstance(entry, dict):
            raise ValueError("it is no mapping")
        entries: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        for name, known in PLAN_WORDS.items():
            check(entries.get(name, known[0]) in known, f"{name} '{entries.get(name)}'")
        plan = StepPlan(**entries)
        good = 1 <= len(plan.times) <= 1000 and all(math.isfinite(float(t)) for t in plan.times)
        check(good, f"times {plan.times}")
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{where} makes no sense ({error}); export the student again") from error
    return plan


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of ``folder`` at the end, or vanishes on an error.

    Raises UserError when the disk refuses.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        raise UserError(f"export: {folder} cannot be written ({error.strerror}); choose another --out") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def facts_table(card: Mapping[str, Any]) -> str:
    """Return a card's facts as rows of a Markdown table."""
    return "".join(f"| {name} | {_cell(value)} |\n" for name, value in card.items())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
