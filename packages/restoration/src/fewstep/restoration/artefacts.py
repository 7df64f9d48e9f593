"""Students and teachers written as folders that `fewstep restoration upscale` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import check
from fewstep.core.models.student import facts_table, plan_entries, replacing, unwrap
from fewstep.core.networks.adapters import merge
from fewstep.core.recipe import StepPlan
from fewstep.restoration.model import AUTOENCODER, Model
from fewstep.restoration.models.files import save_network
from fewstep.restoration.models.spaces import Space
from fewstep.restoration.models.stable_export import export_stable

TEACHERS = ("diffusion",)  # recipes whose networks are sampled in many steps
USE = "fewstep restoration upscale photo.png --model THIS_FOLDER -o restored.png"


def export_model(
    student: Denoiser,
    plan: StepPlan,
    folder: Path,
    card: Mapping[str, Any],
    model: Model,
    *,
    half: bool = False,
) -> None:
    """Write a student, or a teacher, as a folder of its own, replacing what was there.

    ``model``: the teacher's, or what was trained from nothing. LoRA factors are merged; matrices are in float16 when
    ``half``. What a teacher's recipe made gets no plan: a solver samples it. Raises UserError for a student whose views
    a plain sampler does not know.
    """
    if model.stable is not None:
        facts = {**card, "scale": model.scales[-1], "scales": list(model.scales)}
        export_stable(student, plan, folder, facts, model.stable, dtype=torch.float16 if half else torch.float32)
        return
    teacher = card.get("recipe") in TEACHERS
    denoiser, plan, scaling = unwrap(student, plan)
    check(scaling == float("inf"), "export: a student with the lcm boundary needs its own sampler: use boundary jump")
    facts = model.facts()
    if not teacher:
        facts["sampling"] = plan_entries(plan)
    with replacing(folder) as aside:
        save_network(merge(denoiser.backbone), aside, facts, half=half)
        model.space.save(aside / AUTOENCODER)
        (aside / "README.md").write_text(_card(card, plan, teacher, model.scales), encoding="utf-8")


def export_decoder(
    space: Space, plan: StepPlan, folder: Path, card: Mapping[str, Any], model: Model, *, half: bool = False
) -> None:
    """Write the student whose samples ``space`` has learned to decode, with it, replacing what was there."""
    check(model.stable is None, "export: a tuned decoder of a Stable Diffusion is not written by this version")
    assert model.plan is not None
    export_model(model.denoiser, model.plan, folder, card, replace(model, space=space), half=half)


def _card(card: Mapping[str, Any], plan: StepPlan, teacher: bool, scales: tuple[int, ...]) -> str:
    steps = "one step" if len(plan.times) == 1 else f"{len(plan.times)} steps"
    made = "A teacher: it is sampled in all its levels." if teacher else f"A student made for {steps}."
    what = f"{made} Magnifies pictures by {' or '.join(map(str, scales))}."
    return f"# {card.get('name', 'student')}\n\n{what}\n\n    {USE}\n\n| | |\n|---|---|\n{facts_table(card)}"
