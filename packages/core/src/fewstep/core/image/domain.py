"""The image domain: data, teacher, roles, metrics, pictures and export. The example to copy for one's own domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError
from fewstep.core.image.data import ImageData, load_data
from fewstep.core.image.export import export_student
from fewstep.core.image.judging import image_judges
from fewstep.core.image.rendering import render_rows
from fewstep.core.image.sample_set import SampleSet
from fewstep.core.image.settings import ImageConfig
from fewstep.core.image.spaces import feature_space
from fewstep.core.image.teacher import (
    check_fits,
    domain_scheduler,
    fresh_denoiser,
    load_teacher,
    reading,
)
from fewstep.core.image.text import build_text_problem, is_text_teacher, text_process
from fewstep.core.metrics.measure import Reference
from fewstep.core.networks.roles import build_roles
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, RoleSpec, StepPlan


class ImageDomain:
    """Images: scikit-learn's digits, crops of photos, folders; diffusers U-Nets; students as diffusers folders."""

    name = "image"
    summary = "digits, photo crops or a folder of images; diffusers U-Nets"
    config_type: type = ImageConfig
    configs = Path(__file__).parent / "configs"

    def process(self, config: ImageConfig) -> Process:
        """Return the process of the configured teacher without loading its weights."""
        if is_text_teacher(config.teacher):
            return text_process(config)
        return reading(domain_scheduler(config))[0]

    def build(self, config: ImageConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
        """Return the problem with every role built; UserError for what this domain cannot give."""
        if is_text_teacher(config.teacher):
            return build_text_problem(config, specs, seed, device)
        scheduler = domain_scheduler(config)  # before the data: a teacher that is none would take any
        data = load_data(config.data)
        teacher, origin = self._teacher(config, specs, data, seed, device)
        pixels = SampleSet(config.sample_set, data.shape, len(data.classes), seed) if config.sample_set else None
        roles = build_roles(
            teacher,
            [spec for spec in specs if pixels is None or spec.name != "student"],
            config.roles,
            seed,
            shape=data.shape,
            cond=conditions(data, 2),
            fresh=lambda own: fresh_denoiser(config.network, scheduler, data.shape, len(data.classes), own),
        )
        if pixels is not None:
            roles["student"] = pixels
        for role in roles.values():
            module = role.backbone if isinstance(role, NetworkDenoiser) else role
            if isinstance(module, torch.nn.Module):
                module.to(device)
        reference = Reference(feature_space(config.data.source, data), data.reference, data.labels)

        def evaluate(samples: Tensor, cond: Cond) -> dict[str, float]:
            found = reference.measure(samples.cpu(), _cpu(cond.get("label")), neighbours=config.neighbours)
            return {one.name: one.value for one in found}

        def export(student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any]) -> None:
            export_student(student, plan, folder, card, scheduler)

        return Problem(
            actors=Actors(
                dict(roles),
                teacher.process,
                data.shape,
                pixels.generate if pixels is not None else None,
                judges=image_judges(config.data.source, data, device),
            ),
            data=data.source,
            conditions=lambda n, _seed: _to(conditions(data, n), device),
            evaluate=evaluate,
            render=render_rows,
            export=export,
            notes={"teacher": origin, "metric": f"{reference.space.name}: {reference.space.protocol}"},
        )

    def _teacher(
        self, config: ImageConfig, specs: Sequence[RoleSpec], data: ImageData, seed: int, device: torch.device | str
    ) -> tuple[NetworkDenoiser, str]:
        if config.teacher:
            teacher = load_teacher(config.teacher, device)
            check_fits(teacher, config.teacher, data.shape, len(data.classes))
            return teacher, config.teacher
        starts = [spec.name for spec in specs if spec.kind == "denoiser" and spec.init != "fresh"]
        if starts:
            raise UserError(
                f"this recipe's roles {', '.join(starts)} start from a teacher and domain.teacher is empty: name one"
            )
        fresh = fresh_denoiser(config.network, domain_scheduler(config), data.shape, len(data.classes), seed)
        return fresh, "none: networks start untrained"


def conditions(data: ImageData, n: int) -> Cond:
    """Return evaluation conditions: the classes in turn, 0, 1, 2 ...; empty for data without classes."""
    return {"label": torch.arange(n) % len(data.classes)} if data.classes else {}


def _cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu()


def _to(cond: Cond, device: torch.device | str) -> Cond:
    return {name: value.to(device) for name, value in cond.items()}


DOMAIN = ImageDomain()
