"""A student as a diffusers folder that loads and samples without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError, check
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
from fewstep.core.networks.adapters import merge
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.recipe import StepPlan


def export_student(
    student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Write ``unet``, ``scheduler``, a model card and the plan into ``folder``, replacing what was there.

    LoRA factors are merged; embeddings of constant extra inputs are folded into the time embedding. Everything is
    written beside the folder first, and takes its place when it is complete. Raises UserError for a student that stock
    diffusers cannot run.
    """
    denoiser, plan, time_scaling = unwrap(student, plan)
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, UNet2DBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no diffusers UNet2DModel")
    check(not backbone.concat, "export: stock samplers know no conditions joined to the input's channels")
    sampler = stock_sampler(plan, denoiser.process, scheduler, time_scaling)
    check_foldable(backbone, plan)
    backbone.fold_extras(dict(plan.extras))
    with replacing(folder) as aside:
        backbone.save(aside / "unet")
        (aside / "scheduler").mkdir()
        write_json(aside / "scheduler" / SCHEDULER_FILE, sampler.config)
        write_plan(aside, plan, card)
        (aside / "README.md").write_text(model_card(backbone, sampler, plan, card), encoding="utf-8")


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
    steps = "one step" if len(plan.times) == 1 else f"{len(plan.times)} steps"
    return (
        "---\nlibrary_name: diffusers\ntags: [diffusers, few-step, distillation]\n---\n"
        f"# {card.get('name', 'student')}\n\n"
        f"Samples in {steps}, without guidance at sampling time. Values are in [-1, 1].\n\n"
        f"| | |\n|---|---|\n{facts_table(card)}\n```python\n{snippet}```\n"
    )
