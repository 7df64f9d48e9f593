"""Which judge a config's teacher is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fewstep.core.errors import UserError, check
from fewstep.core.image.teacher import read_scheduler, reading, scheduler_config
from fewstep.core.image.text import run_export
from fewstep.core.models.backbone import PipelineBackbone
from fewstep.core.models.loading import DTYPES, Teacher, is_pipeline
from fewstep.core.models.sd import StableDiffusion
from fewstep.core.models.settings import open_teacher
from fewstep.core.process import Process
from fewstep.threed.cameras import ViewRanges, orbit
from fewstep.threed.judges import Judge, ViewJudge
from fewstep.threed.orbit.pixels import prepare, read_picture
from fewstep.threed.orbit.video import VideoOrbits
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.teachers.exact import ExactJudge
from fewstep.threed.teachers.image_views import (
    OrbitJudge,
    Zero123Judge,
    picture_process,
    picture_teacher,
    zero123_folder,
)
from fewstep.threed.teachers.joint import JointJudge
from fewstep.threed.teachers.latent import LatentJudge
from fewstep.threed.teachers.maps import GeometryJudge, Maps
from fewstep.threed.teachers.multi_view import CameraDiffusion, JointBackbone, told_cameras
from fewstep.threed.teachers.spaces import Latents, Pixels
from fewstep.threed.teachers.texts import PipelineTexts
from fewstep.threed.teachers.view_model import ABOUT, ViewModel, find_folder, load_model, shipped_models

EXACT = "exact"
EXACT_SIZE = 32  # pixels of its pictures
REACH = 1.0  # objects are within this of the origin


def teacher_process(config: ThreedConfig) -> Process:
    """Return the process of the configured teacher, from its scheduler's config."""
    name = config.teacher
    if name == EXACT:
        return reading(scheduler_config(config.process))[0]
    kind = picture_teacher(name)
    if kind:
        return picture_process(name, kind)
    if is_text_pipeline(name):
        return open_pipeline(config, name, weights=False).reading()[0]
    return reading(read_scheduler(find_folder(name)))[0]


def open_judge(config: ThreedConfig, name: str = "") -> Judge:
    """Return a teacher, the configured one for "", as a judge of renders; UserError for what is none."""
    name = name or config.teacher
    if name == EXACT:
        return exact_judge(config)
    kind = picture_teacher(name)
    if kind:
        return picture_judge(config, name, kind)
    if is_text_pipeline(name):
        return pipeline_judge(config, name)
    return view_judge(load_model(name), config.judge.size)


def view_judge(model: ViewModel, size: int = 0) -> Judge:
    """Return a view model as a judge; ``size``: pixels of renders (0: the model's)."""
    if model.kind == "maps":
        return GeometryJudge(model.denoiser, Maps(model.size, size), model.encode, model.cameras, model.views)
    if model.views > 1 or size not in (0, model.size):
        return JointJudge(model.denoiser, Pixels(model.size, size), model.encode, model.cameras, model.views)
    return ViewJudge(model)


def exact_judge(config: ThreedConfig) -> ExactJudge:
    """Return the teacher that knows the solids."""
    check_cameras(config.cameras)
    judge = config.judge
    others = named_prompts(judge.others) if judge.others else []
    process = reading(scheduler_config(config.process))[0]
    return ExactJudge(process, config.cameras, size=judge.size or EXACT_SIZE, others=others, std=judge.deviation)


def picture_judge(config: ThreedConfig, name: str, kind: str) -> Judge:
    """Return a pipeline that is shown a picture as a judge; UserError where none is given."""
    check_cameras(config.cameras)
    judge, path = config.judge, Path(name).expanduser()
    check(bool(judge.image), f"teacher '{name}' is shown a picture: give one, with alpha, as domain.judge.image")
    file = Path(judge.image).expanduser()
    picture = partial(prepare, read_picture(file), fit=True, name=str(file))
    if kind == "zero123":
        make: Callable[..., Judge] = partial(Zero123Judge, zero123_folder(path))
    else:
        make = partial(OrbitJudge, VideoOrbits.open(path))
    return make(
        picture,
        config.cameras,
        elevation_deg=judge.image_elevation_deg,
        size=judge.size,
        dtype=DTYPES[config.model.dtype],
    )


def pipeline_judge(config: ThreedConfig, name: str) -> Judge:
    """Return a pipeline with text as a judge: a joint one where its network is told cameras."""
    check_cameras(config.cameras)
    teacher, judge, dtype = open_pipeline(config, name), config.judge, DTYPES[config.model.dtype]
    if isinstance(teacher.family, CameraDiffusion):
        texts = PipelineTexts(teacher)
        single = teacher.denoiser(texts.null, dtype)
        assert isinstance(single.backbone, PipelineBackbone)
        return JointJudge(
            single.with_backbone(JointBackbone(single.backbone, judge.views)),
            Latents.of_teacher(teacher, judge.size),
            texts,
            config.cameras,
            judge.views,
            azimuth_offset_deg=judge.azimuth_offset_deg,
        )
    return LatentJudge(
        teacher,
        judge.directions,
        config.cameras,
        negative=judge.negative,
        size=judge.size,
        dtype=dtype,
    )


def is_text_pipeline(name: str) -> bool:
    """Return whether a teacher's name means a diffusers pipeline that reads prompts, and no view model."""
    if name in shipped_models() or any((find / ABOUT).is_file() for find in folders(name)):
        return False
    return is_pipeline(run_export(name))


def folders(name: str) -> tuple[Path, ...]:
    """Return where a view model of that name would be."""
    given = Path(name).expanduser()
    return given, given / "export"


def open_pipeline(config: ThreedConfig, name: str, *, weights: bool = True) -> Teacher:
    """Return a pipeline of images; UserError for one of videos."""
    found = open_teacher(run_export(name), config.model, weights=weights)
    if found.family.media != "image":
        raise UserError(f"teacher '{name}' is a {found.folder.pipeline}, which makes videos: give one of images")
    if found.family.name == StableDiffusion.name and told_cameras(found.folder.config(found.family.network)):
        found.family = CameraDiffusion()
    return found


def check_cameras(ranges: ViewRanges) -> None:
    """Raise UserError for ranges some of whose cameras are inside the object."""
    wide = ranges.fov_y_deg[1]
    distance = ranges.relative_distance[0] / math.tan(math.radians(wide) / 2)
    one = torch.ones(1)
    orbit(0 * one, 0 * one, distance * one, wide * one, 1, 1).check_outside(REACH)
