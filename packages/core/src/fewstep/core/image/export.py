"""A student as a diffusers folder that loads and samples without this package."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.core.boundary import LCM_TIME_SCALE, ConsistencyFunction, edm_scalings
from fewstep.core.denoiser import Denoiser, NetworkDenoiser, Reprocessed
from fewstep.core.errors import UserError, check
from fewstep.core.image.stock import StockSampler, stock_sampler
from fewstep.core.image.teacher import SCHEDULER_FILE
from fewstep.core.networks.adapters import merge
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.recipe import StepPlan

PLAN_FILE = "fewstep.json"


def export_student(
    student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Write ``unet``, ``scheduler``, a model card and the plan into ``folder``, replacing what was there.

    LoRA factors are merged; embeddings of constant extra inputs are folded into the time embedding. Everything is
    written beside the folder first, and takes its place when it is complete. Raises UserError for a student that stock
    diffusers cannot run.
    """
    denoiser, plan, time_scaling = _unwrap(student, plan)
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, UNet2DBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no diffusers UNet2DModel")
    check(not backbone.concat, "export: stock samplers know no conditions joined to the input's channels")
    sampler = stock_sampler(plan, denoiser.process, scheduler, time_scaling)
    backbone = fold_extras(backbone, plan)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        (aside / "scheduler").mkdir(parents=True)
        backbone.save(aside / "unet")
        _write_json(aside / "scheduler" / SCHEDULER_FILE, sampler.config)
        _write_json(aside / PLAN_FILE, {"plan": asdict(plan) | {"extras": dict(plan.extras)}, "card": dict(card)})
        (aside / "README.md").write_text(model_card(backbone, sampler, plan, card), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"export: {folder} cannot be written ({error.strerror}); choose another --out") from error


def _unwrap(student: Denoiser, plan: StepPlan) -> tuple[NetworkDenoiser, StepPlan, float]:
    """Return the network behind a student's views, its plan in that network's own times, and its LCM time scale."""
    time_scaling = math.inf
    while not isinstance(student, NetworkDenoiser):
        if isinstance(student, ConsistencyFunction):
            if student.boundary == "lcm":
                time_scaling = LCM_TIME_SCALE
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


def fold_extras(backbone: UNet2DBackbone, plan: StepPlan) -> UNet2DBackbone:
    """Return the backbone without extra inputs; their constant embedding goes into the time embedding's bias.

    Raises UserError for inputs that change from step to step.
    """
    if backbone.extra_inputs is None:
        return backbone
    changing = [name for name in backbone.extras if name not in plan.extras]
    check(
        not changing,
        f"export: the input '{', '.join(changing)}' changes from step to step, and stock diffusers has no such input: "
        "train without it",
    )
    backbone.fold_extras(dict(plan.extras))
    return backbone


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


SNIPPET = """import torch
from diffusers import {scheduler}, UNet2DModel

folder = "."
unet = UNet2DModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")
scheduler.set_timesteps({how})
{labels}x = torch.randn({count}, {shape}){scale}
with torch.no_grad():
    for t in scheduler.timesteps:
        output = unet({scaled}, t{given}).sample
        x = scheduler.step(output, t, x{step}).prev_sample
"""


def model_card(backbone: UNet2DBackbone, sampler: StockSampler, plan: StepPlan, card: Mapping[str, Any]) -> str:
    """Return the README: facts of the card, and a program that samples with stock diffusers."""
    unet, classes = backbone.unet.config, backbone.num_classes
    flow = sampler.scheduler.startswith("FlowMatch")
    snippet = SNIPPET.format(
        scheduler=sampler.scheduler,
        how=sampler.set_timesteps,
        labels=f"labels = torch.arange({classes})\n" if classes else "",
        count=classes or 8,
        shape=f"{unet.out_channels}, {unet.sample_size}, {unet.sample_size}",
        scale="" if flow else " * scheduler.init_noise_sigma",
        scaled="x" if flow else "scheduler.scale_model_input(x, t)",
        given=", class_labels=labels" if classes else "",
        step="".join(f", {name}={value:g}" for name, value in sampler.step.items()),
    )
    facts = "".join(f"| {name} | {_cell(value)} |\n" for name, value in card.items())
    steps = "one step" if len(plan.times) == 1 else f"{len(plan.times)} steps"
    return (
        "---\nlibrary_name: diffusers\ntags: [diffusers, few-step, distillation]\n---\n"
        f"# {card.get('name', 'student')}\n\n"
        f"Samples in {steps}, without guidance at sampling time. Values are in [-1, 1].\n\n"
        f"| | |\n|---|---|\n{facts}\n```python\n{snippet}```\n"
    )


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
