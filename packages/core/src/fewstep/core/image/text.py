"""Text-to-image teachers: diffusers pipelines in, students of them out; samples are latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from fewstep.core.models.files import INDEX
from fewstep.core.models.loading import Teacher, is_pipeline
from fewstep.core.models.settings import open_teacher
from fewstep.core.process import Process
from fewstep.core.recipe import RoleSpec


def find_teacher(config: ImageConfig, *, weights: bool = True) -> Teacher:
    """Return the configured pipeline; UserError for what is none, and for a pipeline of videos."""
    name, shipped = config.teacher, config.teacher in shipped_pipelines()
    teacher = open_teacher(str(SHIPPED / name) if shipped else run_export(name), config.model, weights=weights)
    if shipped:
        teacher.folder = replace(teacher.folder, name=name)
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
    return find_teacher(config, weights=False).reading()[0]


def build_text_problem(
    config: ImageConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
) -> Problem:
    """Return the problem of a pipeline teacher with every role built; UserError for what it cannot give."""
    check(config.sample_set == 0, "domain.sample_set: images themselves are optimised with the digits' teachers only")
    teacher = find_teacher(config, weights=torch.device(device).type != "meta")
    decoder = Decoder(teacher, config.model, device)
    data = load_text_data(config, teacher, decoder.encode, device)
    metrics = TextMetrics(config, data, teacher, decoder.decode)

    def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        return render_rows([(label, decoder.decode(latents)) for label, latents in rows], stem)

    problem = pipeline_problem(
        teacher,
        config.model,
        config.roles,
        specs,
        data.source,
        data.null,
        data.shown,
        evaluate=metrics.evaluate,
        render=render,
        seed=seed,
        device=device,
    )
    problem.notes["metric"] = metrics.protocol
    return problem
