"""A student of a pipeline teacher as what everybody can load: a LoRA file, or a whole pipeline folder.

The sampling that was learned goes into the scheduler's config, so that a stock pipeline asked for the student's number
of steps walks the student's times. What the pipeline's call has to be given besides (the number of steps, guidance 1)
is in the model card, and under ``_fewstep`` in the scheduler's config, where diffusers leaves it alone.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from fewstep.core.denoiser import Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.files import INDEX, UNUSED
from fewstep.core.models.loading import Teacher
from fewstep.core.models.stock import StockSampler, stock_sampler
from fewstep.core.models.student import (
    SCHEDULER_FILE,
    check_foldable,
    facts_table,
    replacing,
    unwrap,
    write_json,
    write_plan,
)
from fewstep.core.networks.adapters import AdapterView, merge, save_lora
from fewstep.core.recipe import StepPlan

LORA_FILE = "pytorch_lora_weights.safetensors"
Card = Mapping[str, Any]


def export_pipeline(
    student: Denoiser, plan: StepPlan, folder: Path, card: Card, teacher: Teacher, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a folder of the teacher's pipeline class with the student's network, in ``dtype``, and scheduler in it.

    LoRA factors are merged, constant extra inputs folded; the other components are copied from the teacher. Raises
    UserError for a student that stock diffusers cannot run; nothing is left half-written.
    """
    denoiser, plan, sampler = _ready(student, plan, teacher)
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, PipelineBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no part of a {teacher.folder.pipeline}")
    check_foldable(backbone, plan)
    backbone.fold_extras(dict(plan.extras))
    backbone.to(dtype)
    family, source = teacher.family, teacher.folder.path
    with replacing(folder) as aside:
        for part in teacher.folder.parts:
            if part not in (family.network, "scheduler") and (source / part).is_dir():
                shutil.copytree(source / part, aside / part)
        backbone.save(aside / family.network)
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        index |= {part: [None, None] for part in UNUSED if part in index}
        write_json(aside / INDEX, index | {"scheduler": ["diffusers", sampler.scheduler]})
        _write_rest(aside, sampler, plan, card, teacher, told=family.takes_guidance(backbone.network), lora=False)


def export_half_pipeline(student: Denoiser, plan: StepPlan, folder: Path, card: Card, teacher: Teacher) -> None:
    """Write what :func:`export_pipeline` writes with the network's weights in float16, half the size."""
    export_pipeline(student, plan, folder, card, teacher, dtype=torch.float16)


def export_lora(student: Denoiser, plan: StepPlan, folder: Path, card: Card, teacher: Teacher) -> None:
    """Write the student's factors as diffusers' LoRA file, with the scheduler's config and a card beside it.

    Raises UserError for a student that is no LoRA, or has trained inputs besides, and for pipelines without loader.
    """
    denoiser, plan, sampler = _ready(student, plan, teacher)
    view = denoiser.backbone
    if not isinstance(view, AdapterView):
        raise UserError("export: this student has weights of its own (roles.mode=full): write it with --as pipeline")
    check(
        can_load_lora(teacher),
        f"export: diffusers' {teacher.folder.pipeline} loads no LoRA files: write the student with --as pipeline",
    )
    with replacing(folder) as aside:
        save_lora(view, aside / LORA_FILE, teacher.family.network)
        told = teacher.family.takes_guidance(view.network)
        _write_rest(aside, sampler, plan, card, teacher, told=told, lora=True)


def export_student(student: Denoiser, plan: StepPlan, folder: Path, card: Card, teacher: Teacher) -> None:
    """Write what suits the student: a LoRA file for factors alone, a pipeline for everything else."""
    view = unwrap(student, plan)[0].backbone
    plain = isinstance(view, AdapterView) and not view.extras and can_load_lora(teacher)
    (export_lora if plain else export_pipeline)(student, plan, folder, card, teacher)


def can_load_lora(teacher: Teacher) -> bool:
    """Return whether the teacher's stock pipeline reads LoRA files, and its network takes them."""
    network = teacher.folder.module_class(teacher.family.network)
    return hasattr(teacher.folder.pipeline_class(), "load_lora_weights") and hasattr(network, "load_lora_adapter")


def _call_takes(teacher: Teacher) -> Mapping[str, Any]:
    return inspect.signature(teacher.folder.pipeline_class().__call__).parameters


def _ready(student: Denoiser, plan: StepPlan, teacher: Teacher) -> tuple[NetworkDenoiser, StepPlan, StockSampler]:
    denoiser, plan, time_scaling = unwrap(student, plan)
    sampler = stock_sampler(
        plan,
        denoiser.process,
        teacher.folder.config("scheduler"),
        time_scaling,
        sends_sigmas=teacher.family.sends_sigmas,
        takes=_call_takes(teacher),
    )
    return denoiser, plan, sampler


def _write_rest(
    folder: Path, sampler: StockSampler, plan: StepPlan, card: Card, teacher: Teacher, *, told: bool, lora: bool
) -> None:
    (folder / "scheduler").mkdir()
    call = call_options(sampler, plan, teacher, told=told)
    write_json(folder / "scheduler" / SCHEDULER_FILE, sampler.config | {"_fewstep": call})
    write_plan(folder, plan, card)
    (folder / "README.md").write_text(model_card(sampler, call, card, teacher, lora=lora), encoding="utf-8")


def call_options(sampler: StockSampler, plan: StepPlan, teacher: Teacher, *, told: bool) -> dict[str, Any]:
    """Return what the stock pipeline's call is given to sample as the student was trained to.

    ``told``: the network has an input for the guidance scale, which is then a student's own.
    """
    size = teacher.size
    call: dict[str, Any] = {"num_inference_steps": len(plan.times)}
    if not sampler.own_grid:
        name, _, values = sampler.set_timesteps.partition("=")
        call = {name: json.loads(values)}
    call["guidance_scale"] = plan.extras.get("guidance", teacher.guidance) if told else 1.0
    call |= {"height": size.height, "width": size.width}
    if teacher.family.media == "video":
        call["num_frames"] = size.frames
    if "use_resolution_binning" in _call_takes(teacher):  # else the size is replaced by one of a table
        call["use_resolution_binning"] = False
    return call | dict(sampler.step)


SNIPPET = """import torch
from diffusers import {pipeline}{scheduler_class}

{load}prompt = {prompt!r}
generator = torch.Generator().manual_seed(0)
output = pipe(
    prompt,
    generator=generator,
{call})
{result}
"""
WHOLE = """pipe = {pipeline}.from_pretrained("."{variant}, use_safetensors=True)
"""
LORA = """pipe = {pipeline}.from_pretrained({teacher!r}{variant}, use_safetensors=True)
pipe.load_lora_weights(".", weight_name="{file}")
pipe.scheduler = {scheduler}.from_pretrained(".", subfolder="scheduler")
"""


def model_card(sampler: StockSampler, call: Mapping[str, Any], card: Card, teacher: Teacher, *, lora: bool) -> str:
    """Return the README: facts of the card, what was measured, and a program that samples with stock diffusers."""
    folder, hub = teacher.folder, is_hub_id(teacher)
    names = {
        "pipeline": folder.pipeline,
        "scheduler": sampler.scheduler,
        "teacher": folder.name if hub else str(folder.path.resolve()),
        "variant": f", variant={folder.variant!r}" if folder.variant else "",
        "file": LORA_FILE,
    }
    video = teacher.family.media == "video"
    head: dict[str, Any] = {"library_name": "diffusers", "tags": ["diffusers", "few-step", "distillation"]}
    head["tags"] += ["lora"] if lora else []
    head |= {"base_model": folder.name} if hub else {}
    licence = teacher_licence(teacher)
    head |= {"license": licence} if licence else {}
    facts = {"teacher": folder.name, "licence": licence or "that of the teacher"} | dict(card)
    measured, prompt = facts.pop("measured", None), facts.pop("prompt", "a red fox in the snow")
    snippet = SNIPPET.format(
        pipeline=names["pipeline"],
        scheduler_class=f", {sampler.scheduler}" if lora else "",
        load=(LORA if lora else WHOLE).format(**names),
        prompt=str(prompt),
        call="".join(f"    {name}={value!r},\n" for name, value in call.items()),
        result="frames = output.frames[0]" if video else 'output.images[0].save("sample.png")',
    )
    steps = call.get("num_inference_steps") or len(next(iter(call.values())))
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {card.get('name', 'student')}\n\n"
        f"Samples in {'one step' if steps == 1 else f'{steps} steps'}, without classifier-free guidance.\n\n"
        f"| | |\n|---|---|\n{facts_table(facts)}\n{measured_table(measured)}```python\n{snippet}```\n"
    )


def is_hub_id(teacher: Teacher) -> bool:
    """Return whether the teacher came from the hub, and is found by its name everywhere."""
    name = teacher.folder.name
    return name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()


def measured_table(rows: Any) -> str:
    """Return rows of an evaluation as a Markdown table under a heading; nothing without rows."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(cell(row.get(name, '')) for name in names)} |" for row in rows]
    return "Measured after training:\n\n" + "\n".join(lines) + "\n\n"


def teacher_licence(teacher: Teacher) -> str:
    """Return the licence the teacher's own card states, or an empty string."""
    file = teacher.folder.path / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace")[:20_000] if file.is_file() else ""
    if not text.startswith("---"):
        return ""
    try:
        head = yaml.safe_load(text.split("---")[1])
    except yaml.YAMLError:
        return ""
    found = head.get("license") if isinstance(head, dict) else None
    return found if isinstance(found, str) else ""
