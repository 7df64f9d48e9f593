"""Text-to-image teachers: diffusers pipelines in, students of them out; samples are latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.data.problem import Decoder, pipeline_problem
from fewstep.core.domain import Problem
from fewstep.core.errors import check
from fewstep.core.image.rendering import render_rows
from fewstep.core.image.settings import ImageConfig
from fewstep.core.image.teacher import SHIPPED, shipped_pipelines, shipped_teachers
from fewstep.core.image.text_data import load_text_data
from fewstep.core.image.text_metrics import TextMetrics
from fewstep.core.models.family import Size
from fewstep.core.models.files import INDEX
from fewstep.core.models.loading import Teacher, is_pipeline
from fewstep.core.process import Process
from fewstep.core.recipe import RoleSpec


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


def build_text_problem(
    config: ImageConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
) -> Problem:
    """Return the problem of a pipeline teacher with every role built; UserError for what it cannot give."""
    check(config.sample_set == 0, "domain.sample_set: images themselves are optimised with the digits' teachers only")
    teacher = find_teacher(config)
    decoder = Decoder(teacher, config.model, device)
    data = load_text_data(config, teacher, decoder.encode, device)
    metrics = TextMetrics(config, data, decoder.decode)

    def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        return render_rows([(label, decoder.decode(latents)) for label, latents in rows], stem)

    problem = pipeline_problem(
        teacher,
        config.model,
        config.roles,
        specs,
        data.source,
        data.null,
        data.conditions,
        evaluate=metrics.evaluate,
        render=render,
        seed=seed,
        device=device,
    )
    problem.notes["metric"] = metrics.protocol
    return problem
