"""Which judge a config's teacher is."""

from __future__ import annotations

from fewstep.core.image.teacher import read_scheduler, reading
from fewstep.core.process import Process
from fewstep.threed.judges import Judge, ViewJudge
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.teachers.view_model import find_folder, load_model


def teacher_process(config: ThreedConfig) -> Process:
    """Return the process of the configured teacher, from its scheduler's config."""
    return reading(read_scheduler(find_folder(config.teacher)))[0]


def open_judge(config: ThreedConfig, name: str = "") -> Judge:
    """Return a teacher, the configured one for "", as a judge of renders; UserError for what is none."""
    return ViewJudge(load_model(name or config.teacher))
