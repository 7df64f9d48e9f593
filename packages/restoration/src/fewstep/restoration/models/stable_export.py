"""A conditioned Stable Diffusion student as a folder that diffusers' ``StableDiffusionInstructPix2PixPipeline`` loads.

The stock pipeline encodes the picture it is given as this package does, to the mode of the autoencoder, and hands it to
the U-Net unscaled; it does no magnifying of its own. A student that starts from the picture instead of noise is given
its latents by the caller.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewstep.core.denoiser import Denoiser
from fewstep.core.errors import UserError, check
from fewstep.core.models.files import INDEX, read_json
from fewstep.core.models.stock import stock_sampler
from fewstep.core.models.student import (
    PLAN_FILE,
    SCHEDULER_FILE,
    check_foldable,
    facts_table,
    plan_from,
    replacing,
    unwrap,
    write_json,
    write_plan,
)
from fewstep.core.networks.adapters import merge
from fewstep.core.recipe import StepPlan
from fewstep.restoration.models.stable import (
    INSTRUCT,
    PROMPT,
    PROMPT_FILE,
    ConditionedBackbone,
    ConditionedTeacher,
    write_prompt,
)

UNSEEN = (
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)  # the pipeline's class asks for them, nobody runs them

SNIPPET = """import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
{imports}
pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained({load})
picture = Image.open("photo.png").convert("RGB")
scale = {scale}
picture = picture.resize((scale * picture.width, scale * picture.height), Image.BICUBIC)
{start}restored = pipe(
    image=picture,
    generator=torch.Generator().manual_seed(0),
{call})
restored.images[0].save("restored.png")
"""
START = """with torch.no_grad():
    latents = pipe.vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
latents = latents * pipe.vae.config.scaling_factor  # the student starts from the picture, not from noise
"""


def export_stable(
    student: Denoiser,
    plan: StepPlan,
    folder: Path,
    card: Mapping[str, Any],
    teacher: ConditionedTeacher,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a pipeline folder with the student's network, in ``dtype``, and the scheduler that walks its plan.

    LoRA factors are merged, constant extra inputs folded; the other components are the teacher's. Raises UserError for
    a student that the stock pipeline cannot run; nothing is left half-written.
    """
    denoiser, plan, scaling = unwrap(student, plan)
    walked = replace(plan, start="noise")  # where it starts is what the pipeline is given as latents
    sampler = stock_sampler(walked, denoiser.process, teacher.folder.config("scheduler"), scaling, takes=())
    backbone = merge(denoiser.backbone)
    if not isinstance(backbone, ConditionedBackbone):
        raise UserError(f"export: a {type(backbone).__name__} is no part of a {INSTRUCT}")
    check_foldable(backbone, plan)
    backbone.fold_extras(dict(plan.extras))
    backbone.to(dtype)
    source = teacher.folder
    embeds, prompt = teacher.told()
    call: dict[str, Any] = {"num_inference_steps": len(plan.times), "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    call |= {"prompt": prompt, **sampler.step}
    parts = [part for part in ("vae", *teacher.family.text) if source.has(part) and (source.path / part).is_dir()]
    with replacing(folder) as aside:
        for part in parts:
            shutil.copytree(source.path / part, aside / part)
        backbone.save(aside / "unet")
        write_json(aside / INDEX, _index(teacher, parts, sampler.scheduler))
        (aside / "scheduler").mkdir()
        write_json(aside / "scheduler" / SCHEDULER_FILE, sampler.config | {"_fewstep": call})
        write_prompt(aside / PROMPT_FILE, embeds, prompt)
        write_plan(aside, plan, card)
        (aside / "README.md").write_text(_card(card, call, plan, text=len(parts) > 1), encoding="utf-8")


def read_plan(folder: Path) -> StepPlan | None:
    """Return the plan a student was exported with, None for a folder without one; UserError when it makes no sense."""
    file = folder / PLAN_FILE
    if not file.is_file():
        return None
    return plan_from(read_json(file).get("plan"), f"{file}: 'plan'")


def exported_scales(folder: Path) -> tuple[int, ...]:
    """Return the magnifications a folder was exported for, () when it does not say; UserError for senseless ones."""
    file = folder / PLAN_FILE
    card = read_json(file).get("card") if file.is_file() else None
    found = card.get("scales", []) if isinstance(card, dict) else []
    good = isinstance(found, list) and len(found) <= 16 and all(isinstance(s, int) and 1 <= s <= 16 for s in found)
    check(good, f"{file}: 'scales' must list magnifications from 1 to 16, got {found}")
    return tuple(found)


def _index(teacher: ConditionedTeacher, parts: list[str], scheduler: str) -> dict[str, Any]:
    import diffusers

    index: dict[str, Any] = {"_class_name": INSTRUCT, "_diffusers_version": diffusers.__version__}
    index |= {part: [None, None] for part in (*teacher.family.text, *UNSEEN)}
    index |= {part: list(teacher.folder.parts[part]) for part in (*parts, "unet")}
    return index | {"scheduler": ["diffusers", scheduler], "requires_safety_checker": False}


def _card(card: Mapping[str, Any], call: Mapping[str, Any], plan: StepPlan, *, text: bool) -> str:
    """Return the README: the card's facts, and a program for stock diffusers; ``text``: it can encode the prompt."""
    steps, given = call["num_inference_steps"], {name: repr(value) for name, value in call.items()}
    imports, load = "", '".", use_safetensors=True'
    if not text:
        del given["prompt"]
        given["prompt_embeds"] = f'load_file("{PROMPT_FILE}")["{PROMPT}"]'
        imports, load = "from safetensors.torch import load_file\n", f"{load}, text_encoder=None, tokenizer=None"
    start = ""
    if plan.start == "anchor":
        given["latents"], start = "latents", START
    lines = "".join(f"    {name}={value},\n" for name, value in given.items())
    snippet = SNIPPET.format(imports=imports, load=load, scale=card.get("scale", 4), start=start, call=lines)
    return (
        f"---\nlibrary_name: diffusers\ntags: [diffusers, few-step, distillation, image-restoration]\n---\n"
        f"# {card.get('name', 'student')}\n\n"
        f"Restores pictures in {'one step' if steps == 1 else f'{steps} steps'}, without guidance.\n\n"
        f"| | |\n|---|---|\n{facts_table(card)}\n```python\n{snippet}```\n"
    )
