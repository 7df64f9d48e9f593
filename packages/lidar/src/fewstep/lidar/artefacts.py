"""Teachers, students and refiners by name: those shipped with the package, and folders of runs and exports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.models.student import facts_table, plan_entries, plan_from, replacing, unwrap
from fewstep.core.networks.adapters import merge
from fewstep.core.recipe import StepPlan
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import CONFIG, describe, save_denoiser, save_refiner
from fewstep.lidar.models.refiner import Refiner

SHIPPED = Path(__file__).parent / "weights"
TEACHERS = ("diffusion", "lidiff", "diffusion-dpo")  # recipes whose networks are sampled in many steps
USE = "fewstep lidar complete scan.bin --model THIS_FOLDER -o dense.ply"


def shipped(kind: str) -> list[str]:
    """Return the names of the networks of a kind, ``denoiser`` or ``refiner``, that come with the package."""
    return sorted(file.parent.name for file in SHIPPED.glob(f"*/{CONFIG}") if describe(file.parent, "")["kind"] == kind)


def find_network(name: str, kind: str) -> Path:
    """Return the folder of a network by its name, or of a run's export; UserError when there is none of that kind."""
    if name in shipped(kind):
        return SHIPPED / name
    given = Path(name).expanduser()
    for folder in (given, given / "export"):
        if (folder / CONFIG).is_file():
            describe(folder, kind)
            return folder
    if (given / "checkpoints").is_dir():
        raise UserError(f"{name}: this run has exported nothing yet; run `fewstep lidar export {name}` first")
    raise UserError(f"no {kind} '{name}': give the path of a folder, or a name ({nearest(name, shipped(kind))})")


def sampling_of(folder: Path) -> tuple[StepPlan | None, float]:
    """Return the plan of a student (a teacher's folder has none) and the guidance scale a network is best sampled at.

    UserError for entries that make no sense.
    """
    found = describe(folder, "denoiser")
    entry, scale = found.get("sampling"), found.get("guidance_scale", 1.0)
    file = folder / CONFIG
    check(isinstance(scale, int | float), f"{file}: guidance_scale must be a number, got {scale!r}")
    if entry is None:
        return None, float(scale)
    plan = plan_from(entry, f"{file}: 'sampling'")
    check(all(0 <= t <= 999 for t in plan.times), f"{file}: 'sampling' has times beyond 0 to 999")
    return plan, float(scale)


def export_denoiser(
    student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write a student, or a teacher, as ``model.json``, ``model.safetensors`` and a card, replacing what was there.

    LoRA factors are merged; matrices are in float16 when ``half``. What a teacher's recipe made gets no plan: a solver
    samples it. Raises UserError for a student whose views a plain sampler does not know.
    """
    teacher = card.get("recipe") in TEACHERS
    denoiser, plan, scaling = unwrap(student, plan)
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, LidarBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no network of this domain")
    check(scaling == float("inf"), "export: a student with the lcm boundary needs its own sampler: use boundary jump")
    facts = {} if teacher else {"sampling": plan_entries(plan)}
    with replacing(folder) as aside:
        save_denoiser(backbone, aside, facts, half=half)
        (aside / "README.md").write_text(_card(card, plan, teacher), encoding="utf-8")


def export_refiner(
    refiner: Refiner, plan: StepPlan, folder: Path, card: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write a refiner with a card, replacing what was there; its plan is a single evaluation."""
    with replacing(folder) as aside:
        save_refiner(refiner, aside, half=half)
        text = f"# {card.get('name', 'refiner')}\n\nMakes {refiner.up_factor} points of each.\n\n| | |\n|---|---|\n"
        (aside / "README.md").write_text(text + facts_table(card), encoding="utf-8")


def _card(card: Mapping[str, Any], plan: StepPlan, teacher: bool) -> str:
    steps = "one step" if len(plan.times) == 1 else f"{len(plan.times)} steps"
    what = "A teacher: sample it in 50 steps." if teacher else f"A student made for {steps}."
    return f"# {card.get('name', 'student')}\n\n{what}\n\n    {USE}\n\n| | |\n|---|---|\n{facts_table(card)}"
