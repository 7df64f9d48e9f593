"""What a run with given frames has besides: first frames beside the prompts it is looked at under, and its exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from fewstep.core.data.shown import Shown
from fewstep.core.data.source import TextSource
from fewstep.core.denoiser import Cond
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError, check
from fewstep.core.networks.given import GIVEN, drop_frames
from fewstep.core.recipe import RoleSpec
from fewstep.core.rng import Rng
from fewstep.video.first_frames import WithFirstFrames

PIPELINES = ("pipeline", "pipeline-fp16")


def with_first_frames(samples: TextSource, most: int, none: float) -> WithFirstFrames:
    """Return samples with their own clips' first latent frames; UserError for data without clips."""
    check(
        samples.pictures is not None,
        "domain.given_frames: first frames are those of clips, and this data has none: set domain.data.source=clips, "
        "or prepare clips",
    )
    return WithFirstFrames(samples, most, none)


def shown_with_frames(shown: Shown, samples: TextSource, given: int) -> Shown:
    """Return the prompts with so many first latent frames of a clip of theirs; none for prompts no clip has."""
    latents, texts = samples.pictures, samples.texts
    assert latents is not None
    first: dict[str, int] = {}
    for sample, row in enumerate(texts.rows):
        first.setdefault(texts.captions[row], sample)
    chosen = [first.get(prompt, 0) for prompt in shown.prompts]
    _, clips = latents.latents(chosen, Rng(0, 0, tuple(range(len(chosen))), "shown"))
    check(given < clips.shape[2], f"domain.given_frames={given} leaves nothing of {clips.shape[2]} latent frames")
    counts = torch.tensor([given if prompt in first else 0 for prompt in shown.prompts], device=clips.device)
    return replace(shown, cond={**shown.cond, **drop_frames(clips, counts)})


def from_text_alone(problem: Problem) -> None:
    """Let conditions of a user's prompts say that no frames are given."""
    encode, (channels, _, height, width) = problem.from_text, problem.actors.shape
    assert encode is not None

    def told(prompts: Sequence[str]) -> Cond:
        cond = encode(prompts)
        like = next(iter(cond.values()))
        return {**cond, GIVEN: torch.zeros(len(prompts), channels, 0, height, width, device=like.device)}

    problem.from_text = told


def without_stock_exports(problem: Problem, specs: Sequence[RoleSpec]) -> None:
    """Let exports of students be refused, and of teachers the forms that no domain's run reads again."""
    student = any(spec.name == "teacher" for spec in specs)
    way_out = (
        "`fewstep video extend RUN` samples it" if student else "--as pipeline writes a domain.teacher of its kind"
    )

    def refuse(*_: Any) -> None:
        raise UserError(f"export: a network told its first frames runs in no stock pipeline of diffusers: {way_out}")

    kept = problem.export_as if not student else {}
    problem.export_as = {name: kept.get(name, refuse) if name in PIPELINES else refuse for name in problem.export_as}
    problem.export = refuse
