"""From a pipeline teacher and encoded prompts to a domain's problem: what image and video have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.data.shown import Shown
from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import DataSource, Problem
from fewstep.core.errors import check
from fewstep.core.models.export import export_half_pipeline, export_lora, export_pipeline, export_student
from fewstep.core.models.loading import DTYPES, Codec, Teacher
from fewstep.core.models.settings import ModelConfig
from fewstep.core.networks.adapters import AdapterView
from fewstep.core.networks.offload import offload
from fewstep.core.networks.roles import Role, RolesConfig, build_roles
from fewstep.core.recipe import Actors, RoleSpec, StepPlan
from fewstep.core.rng import Rng


class Decoder:
    """A teacher's autoencoder, loaded when it is first needed; on the CPU between uses unless it ``stays``."""

    def __init__(self, teacher: Teacher, model: ModelConfig, device: torch.device | str) -> None:
        self.teacher, self.dtype, self.device = teacher, DTYPES[model.dtype], device
        self.stays = "vae" not in model.offload
        self._codec: Codec | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents of pixels in [-1, 1]."""
        return self._after(self.ready().encode(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels of latents, on the CPU."""
        return self._after(self.ready().decode(latents))

    def ready(self) -> Codec:
        """Return the autoencoder where it computes; of the device ``meta``, its shapes only."""
        if self._codec is None:
            self._codec = self.teacher.vae(self.dtype, self.device).to(self.device)
        # moving walks through all modules, which takes longer than encoding a small picture
        return self._codec if self.stays else self._codec.to(self.device)

    def _after(self, found: Tensor) -> Tensor:
        if not self.stays and self._codec is not None:
            self._codec.to("cpu")
        return found


def pipeline_problem(
    teacher: Teacher,
    model: ModelConfig,
    roles_config: RolesConfig,
    specs: Sequence[RoleSpec],
    source: DataSource,
    null: Cond | None,
    shown: Shown,
    *,
    evaluate: Callable[[Tensor, Cond], dict[str, float]],
    render: Callable[[Sequence[tuple[str, Tensor]], Path], Path],
    seed: int,
    device: torch.device | str,
) -> Problem:
    """Return the problem of a pipeline teacher with every role built; samples are latents.

    ``null``: one row of the unconditional condition; ``shown``: the prompts students are looked at under. ``evaluate``
    and ``render`` take latents. Raises UserError for roles this teacher cannot give.
    """
    dtype = DTYPES[model.dtype]
    denoiser = teacher.denoiser(null, dtype, device)
    roles = build_roles(
        denoiser,
        specs,
        roles_config,
        seed,
        shape=teacher.shape,
        cond=shown.conditions(1),
        fresh=lambda own: fresh_denoiser(teacher, null, own),
    )
    place(roles, device, offloaded="teacher" in model.offload)

    def exporting(write: Callable[..., None]) -> Callable[[Denoiser, StepPlan, Path, Mapping[str, Any]], None]:
        example = {"prompt": shown.prompt_at(0)}
        return lambda student, plan, folder, card: write(student, plan, folder, example | dict(card), teacher)

    return Problem(
        actors=Actors(dict(roles), denoiser.process, teacher.shape),
        data=source,
        conditions=lambda n, _seed: {name: value.to(device) for name, value in shown.conditions(n).items()},
        evaluate=evaluate,
        render=render,
        export=exporting(export_student),
        export_as={
            "lora": exporting(export_lora),
            "pipeline": exporting(export_pipeline),
            "pipeline-fp16": exporting(export_half_pipeline),
        },
        from_text=lambda prompts: dict(teacher.encode(prompts, device, dtype).cond),
        parts=other_parts(teacher, model) if torch.device(device).type == "meta" else {},
        notes={"teacher": f"{teacher.folder.name} ({teacher.folder.pipeline})"},
    )


def other_parts(teacher: Teacher, model: ModelConfig) -> dict[str, tuple[int, bool]]:
    """Return the bytes of text encoders, which are dropped before training, and of the autoencoder, which may stay."""
    folder, found = teacher.folder, dict[str, tuple[int, bool]]()
    for name in (*teacher.family.text, "vae"):
        if folder.has(name) and folder.is_module(name):
            count = sum(p.numel() for p in folder.skeleton(name).parameters())
            found[name] = count * DTYPES[model.dtype].itemsize, name == "vae" and "vae" not in model.offload
    return found


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
        if not isinstance(module, nn.Module):
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
