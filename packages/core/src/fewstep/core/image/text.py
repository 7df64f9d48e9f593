"""Text-to-image teachers: diffusers pipelines in, students of them out; samples are latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import check
from fewstep.core.image.rendering import render_rows
from fewstep.core.image.settings import ImageConfig
from fewstep.core.image.teacher import SHIPPED, shipped_pipelines, shipped_teachers
from fewstep.core.image.text_data import load_text_data
from fewstep.core.image.text_metrics import TextMetrics
from fewstep.core.models.export import export_lora, export_pipeline, export_student
from fewstep.core.models.family import Size
from fewstep.core.models.files import INDEX
from fewstep.core.models.loading import DTYPES, Codec, Teacher, is_pipeline
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.networks.offload import offload
from fewstep.core.networks.roles import Role, build_roles
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, RoleSpec, StepPlan
from fewstep.core.rng import Rng


def find_teacher(config: ImageConfig) -> Teacher:
    """Return the configured pipeline; UserError for what is none, and for a pipeline of videos."""
    model, name = config.model, config.teacher
    teacher = Teacher.find(
        str(SHIPPED / name) if name in shipped_pipelines() else run_export(name),
        size=Size(model.height, model.width) if model.height else None,
        revision=model.revision,
        variant=model.variant,
        guidance=model.guidance,
        negative=model.negative_prompt,
    )
    check(
        teacher.family.media == "image",
        f"teacher '{name}' is a {teacher.folder.pipeline}, which makes videos: use the domain video",
    )
    return teacher


def run_export(name: str) -> str:
    """Return the pipeline that a run's folder stands for, or the name as it is."""
    exported = Path(name).expanduser() / "export"
    return str(exported) if (exported / INDEX).is_file() else name


def is_text_teacher(name: str) -> bool:
    """Return whether a teacher's name means a text-to-image pipeline."""
    if name in shipped_teachers() or not name:
        return False
    return name in shipped_pipelines() or is_pipeline(run_export(name))


def text_process(config: ImageConfig) -> Process:
    """Return the process of the configured pipeline, from its scheduler's config."""
    return find_teacher(config).reading()[0]


class Decoder:
    """The autoencoder, loaded when it is first needed; on ``home`` between uses."""

    def __init__(self, teacher: Teacher, dtype: torch.dtype, device: torch.device | str, stays: bool) -> None:
        self.teacher, self.dtype, self.device, self.stays = teacher, dtype, device, stays
        self._codec: Codec | None = None

    def _ready(self) -> Codec:
        if self._codec is None:
            self._codec = self.teacher.vae(self.dtype)
        return self._codec.to(self.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents of pixels in [-1, 1]."""
        return self._after(self._ready().encode(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels of latents, on the CPU."""
        return self._after(self._ready().decode(latents))

    def _after(self, found: Tensor) -> Tensor:
        if not self.stays and self._codec is not None:
            self._codec.to("cpu")
        return found


def build_text_problem(
    config: ImageConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
) -> Problem:
    """Return the problem of a pipeline teacher with every role built; UserError for what it cannot give."""
    check(config.sample_set == 0, "domain.sample_set: images themselves are optimised with the digits' teachers only")
    teacher = find_teacher(config)
    shape, dtype = teacher.shape, DTYPES[config.model.dtype]
    decoder = Decoder(teacher, dtype, device, stays="vae" not in config.model.offload)
    data = load_text_data(config, teacher, decoder, device)
    null = data.null
    denoiser = teacher.denoiser(null, dtype)
    roles = build_roles(
        denoiser,
        specs,
        config.roles,
        seed,
        shape=shape,
        cond=data.conditions(1),
        fresh=lambda own: fresh_denoiser(teacher, null, own),
    )
    place(roles, device, offloaded="teacher" in config.model.offload)
    metrics = TextMetrics(config, data, decoder.decode)

    def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        return render_rows([(label, decoder.decode(latents)) for label, latents in rows], stem)

    def exporting(write: Callable[..., None]) -> Callable[[Denoiser, StepPlan, Path, Mapping[str, Any]], None]:
        return lambda student, plan, folder, card: write(student, plan, folder, card, teacher)

    return Problem(
        actors=Actors(dict(roles), denoiser.process, shape),
        data=data.source,
        conditions=lambda n, _seed: {name: value.to(device) for name, value in data.conditions(n).items()},
        evaluate=metrics.evaluate,
        render=render,
        export=exporting(export_student),
        export_as={"lora": exporting(export_lora), "pipeline": exporting(export_pipeline)},
        from_text=lambda prompts: dict(teacher.encode(prompts, device, dtype).cond),
        notes={"teacher": f"{teacher.folder.name} ({teacher.folder.pipeline})", "metric": metrics.protocol},
    )


def fresh_denoiser(teacher: Teacher, null: Cond | None, seed: int) -> NetworkDenoiser:
    """Return an untrained network of the teacher's architecture."""
    network: Any = teacher.folder.skeleton(teacher.family.network)
    with Rng(seed, 0, ()).network_noise("init"):
        made = type(network).from_config(network.config)
    return teacher.reads(made, null)


def place(roles: Mapping[str, Role], device: torch.device | str, *, offloaded: bool) -> None:
    """Move the roles' networks to the device; an offloaded teacher waits on the CPU.

    Raises UserError for a teacher that shares its weights with roles that train: there is nothing to offload.
    """
    for name, role in roles.items():
        module = role.backbone if isinstance(role, NetworkDenoiser) else role
        if not isinstance(module, torch.nn.Module):
            continue
        if name == "teacher" and offloaded:
            check(
                not isinstance(module, AdapterView),
                "domain.model.offload: the teacher is the base of LoRA roles and is needed where they are: leave "
                "'teacher' out",
            )
            offload(module)
        else:
            module.to(device)
