"""What the tests of model families share: tiny pipelines of the real classes, run as diffusers runs them."""

from __future__ import annotations

import inspect
import json
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.core.models.family import Encoded
from fewstep.core.models.files import quiet
from fewstep.core.models.loading import Teacher
from fewstep.core.models.table import FAMILIES
from fewstep.core.process import RectifiedFlow

NAMES = [family.name for family in FAMILIES]
FEW = ("sd", "sd3", "wan")  # one of each kind, for what takes long
PROMPTS = ["a red fox", "two boats, one sail"]


class Evaluation(NamedTuple):
    """What a pipeline hands its scheduler: guided prediction, time, latents, all as the pipeline holds them."""

    output: Tensor
    time: Tensor
    latents: Tensor


@cache
def teacher(name: str, guidance: float = 1.0) -> Teacher:
    """The tiny teacher of a family."""
    return Teacher.find(f"tiny:{name}", guidance=guidance)


@cache
def encoded(name: str) -> Encoded:
    """The conditions of the two prompts."""
    return teacher(name).encode(PROMPTS)


def stock(found: Teacher) -> Any:
    """The whole pipeline, as diffusers itself loads it."""
    with quiet():
        kind = found.folder.pipeline_class()
        index = json.loads((found.folder.path / "model_index.json").read_text())
        without = {part: None for part, value in index.items() if value == [None, None]}
        pipe = kind.from_pretrained(found.folder.path, use_safetensors=True, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_options(found: Teacher) -> dict[str, Any]:
    """What the pipeline's call takes for the teacher's size."""
    size = found.size
    takes = inspect.signature(found.folder.pipeline_class().__call__).parameters
    options = {"num_frames": size.frames} if found.family.media == "video" else {}
    if "use_resolution_binning" in takes:  # else the size is replaced by one of a table
        options["use_resolution_binning"] = False
    return {"height": size.height, "width": size.width, "output_type": "latent", **options}


def watched(found: Teacher, guidance: float, steps: int = 2, **options: Any) -> list[Evaluation]:
    """Run the stock pipeline on the prompts; return what it gave its scheduler at every step."""
    pipe, seen = stock(found), list[Evaluation]()
    step = pipe.scheduler.step

    def spy(output: Tensor, time: Tensor, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(Evaluation(output.clone(), time.clone(), latents.clone()))
        return step(output, time, latents, *args, **kwargs)

    pipe.scheduler.step = spy
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        pipe(
            PROMPTS,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            **call_options(found),
            **options,
        )
    return seen


def own_time(found: Teacher, time: Tensor) -> Tensor:
    """The pipeline's timestep on our clock."""
    process, _ = found.reading()
    scale = process.time_scale if isinstance(process, RectifiedFlow) else 1.0
    return time.double().reshape(-1)[:1].expand(len(PROMPTS)) / scale
