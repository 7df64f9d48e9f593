"""The problem of a feed-forward student: prompts in, six planes out, judged by image models; its truth, where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.data.epochs import epoch_indices
from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError, check
from fewstep.core.image.rendering import render_rows
from fewstep.core.networks.freezing import freeze
from fewstep.core.recipe import Actors, Batch, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.judges import Judge
from fewstep.threed.planes.field import PlaneField
from fewstep.threed.planes.generator import PlaneGenerator, generator_of
from fewstep.threed.planes.model import PlanesConfig, encode_prompts, make_generator, save_planes, student_of
from fewstep.threed.shapes.split import split_prompts
from fewstep.threed.teachers.view_model import to_samples
from fewstep.threed.truth import find_truth

PROMPT = "prompt"
"""Condition entry "b": the number of a prompt in the problem's list, training prompts first."""
LOOKS = ((-150.0, 25.0), (-60.0, 5.0), (30.0, 15.0), (120.0, -5.0))
"""Azimuth and elevation, in degrees, of the views students are measured from."""
SHOWN_FROM = (35.0, 20.0)
DISTANCE, FOV_Y_DEG = 3.2, 40.0


def parts_of(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prompts to train on, and those among them that are held out (:func:`split_prompts`)."""
    held = {str(prompt) for prompt in split_prompts()[1]}
    return [each for each in prompts if each not in held], [each for each in prompts if each in held]


def looking(angles: Sequence[tuple[float, float]], objects: int, size: int) -> Camera:
    """Return the cameras at (azimuth, elevation) in degrees, all of them for each object."""
    azimuth, elevation = torch.tensor(angles).T.repeat(1, objects)
    full = torch.ones_like(azimuth)
    return orbit(azimuth, elevation, full * DISTANCE, full * FOV_Y_DEG, size, size)


class PromptList:
    """Prompts in epochs: a batch is the conditions of the next ones."""

    def __init__(self, cond: Cond, trained: int) -> None:
        self.cond, self.trained = cond, trained

    def __len__(self) -> int:
        return self.trained

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the prompts of a step."""
        index = epoch_indices(rng, self.trained)
        return Batch(len(index), self.rows(index, device), device=device)

    def rows(self, index: Sequence[int], device: torch.device | str) -> Cond:
        """Return the conditions of prompts by number."""
        rows = torch.tensor(list(index))
        return {name: value[rows].to(device) for name, value in self.cond.items()}


@dataclass(frozen=True)
class _Looks:
    """How students of planes are looked at: prompts in turn, those that were held out measured apart."""

    generator: PlaneGenerator
    texts: Sequence[str]
    trained: int
    size: int
    device: torch.device | str

    def shown(self, n: int) -> list[int]:
        """Return which prompts ``n`` samples are of."""
        count = len(self.texts)
        return [(k * 7) % count if n < count else k % count for k in range(n)]

    def fields(self, samples: Tensor) -> PlaneField:
        """Return the fields of samples."""
        return self.generator.field(samples.to(self.device))

    @torch.no_grad()
    def evaluate(self, samples: Tensor, cond: Cond) -> dict[str, float]:
        """Return means over prompts, and the lowest silhouette IoU."""
        found: dict[str, list[float]] = {}
        camera = looking(LOOKS, 1, self.size)
        for sample, number in zip(samples, cond[PROMPT].tolist(), strict=True):
            truth = find_truth(self.texts[number])
            if truth is None:
                continue
            values = truth.of_views(self.fields(sample[None]).views(camera.to(self.device)), camera)
            group = "" if number < self.trained else "held_out_"
            for name in ("psnr", "silhouette_iou"):
                found.setdefault(group + name, []).append(values[name])
        lowest = {f"{name}_min": min(values) for name, values in found.items() if name.endswith("iou")}
        return {name: sum(values) / len(values) for name, values in found.items()} | lowest

    @torch.no_grad()
    def render(self, rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        """Draw every sample from one side."""
        pictures = []
        for label, samples in rows:
            seen = self.fields(samples).views(looking([SHOWN_FROM], len(samples), 2 * self.size).to(self.device))
            pictures.append((label, to_samples(seen.rgb).cpu()))
        return render_rows(pictures, stem)


def build_planes(
    config: PlanesConfig,
    judges: Mapping[str, Judge],
    prompts: Sequence[str],
    specs: Sequence[RoleSpec],
    seed: int,
    device: torch.device | str = "cpu",
) -> Problem:
    """Return the problem of a fresh generator of planes; held-out things among ``prompts`` are only measured.

    Raises UserError for recipes that need other roles than a student and judges, and prompts nobody can read.
    """
    check(bool(judges), "a feed-forward student needs one teacher or more that judges its renders")
    trained, held = parts_of(list(dict.fromkeys(prompts)))
    check(bool(trained), "no prompts to train on: give some besides the held-out ones")
    for spec in specs:
        if spec.name not in ("student", "judges"):
            raise UserError(f"domain.student 'planes': no role '{spec.name}' here; use recipe 'prd'")
    generator = make_generator(config, seed).to(device)
    for judge in judges.values():
        if isinstance(judge.teacher, NetworkDenoiser):
            freeze(judge.teacher.backbone).to(device)
    texts = [*trained, *held]
    told: dict[str, Tensor] = {PROMPT: torch.arange(len(texts)), **encode_prompts(generator, texts)}
    for name, judge in judges.items():
        told |= {f"{name}/{key}": value for key, value in judge.encode(texts).items()}
    source = PromptList(told, len(trained))
    looks = _Looks(generator, texts, len(trained), max(judge.size for judge in judges.values()), device)

    def export(student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any]) -> None:
        save_planes(generator_of(student), config, plan, folder, card)

    return Problem(
        actors=Actors(
            {"student": student_of(generator), "judges": dict(judges)}, student_of(generator).process, config.shape
        ),
        data=source,
        conditions=lambda n, _seed: source.rows(looks.shown(n), device),
        evaluate=looks.evaluate,
        render=looks.render,
        export=export,
        from_text=lambda given: encode_prompts(generator, given),
        notes={"metric": "silhouette IoU and PSNR against exact pictures from 4 views, held-out prompts apart"},
    )
