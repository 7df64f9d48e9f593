"""A model of pictures of solids: how teachers of scenes are made, and distilled themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.data.epochs import epoch_indices
from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError
from fewstep.core.image.rendering import render_rows
from fewstep.core.image.teacher import scheduler_config
from fewstep.core.networks.roles import build_roles
from fewstep.core.recipe import Actors, Batch, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.threed.metrics.pictures import psnr
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.shapes.named import named_prompts
from fewstep.threed.shapes.pictures import Pictures
from fewstep.threed.shapes.prompts import VOCABULARY, read
from fewstep.threed.teachers.view_model import ViewModel, export_model, fresh_model, load_model, to_rgb, to_samples

HELD = 1_000_003  # the seed of pictures that are looked at: those of training have the seed 0


class PictureSource:
    """Batches of pictures as samples, under their prompts and cameras."""

    def __init__(self, pictures: Pictures, model: ViewModel) -> None:
        self.pictures, self.model = pictures, model
        self.cond = model.encode([str(prompt) for prompt in pictures.prompts])

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the pictures of a step, in epochs."""
        index = epoch_indices(rng, len(self.pictures))
        x0 = to_samples(self.pictures.rgb(index)).to(device)
        return Batch(len(index), self.condition(index, device), x0, device)

    def condition(self, index: Sequence[int], device: torch.device | str) -> Cond:
        """Return the condition of pictures by number."""
        prompts = [number // self.pictures.views for number in index]
        told = {name: value[prompts] for name, value in self.cond.items()}
        told |= self.model.seen_from(self.pictures.cameras(index))
        return {name: value.to(device) for name, value in told.items()}


def build_views(config: ThreedConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
    """Return the problem of a model of views; UserError for what this domain cannot give."""
    model, origin = _model(config, specs, seed)
    prompts = [read(text) for text in named_prompts(config.prompts)]
    source = PictureSource(Pictures(prompts, config.pictures, model.cameras, model.size), model)
    held = PictureSource(Pictures(prompts, 4, model.cameras, model.size, HELD), model)
    shape = (3, model.size, model.size)
    roles = build_roles(
        model.denoiser,
        specs,
        config.roles,
        seed,
        shape=shape,
        cond=held.condition([0], "cpu"),
        fresh=lambda own: fresh(config, own).denoiser,
    )
    for role in roles.values():
        module = role.backbone if isinstance(role, NetworkDenoiser) else role
        if isinstance(module, nn.Module):
            module.to(device)

    def shown(n: int) -> list[int]:
        return [(k * 7919) % len(held) for k in range(n)]  # a prime: prompts in turn, each from elsewhere

    def evaluate(samples: Tensor, cond: Cond) -> dict[str, float]:
        truth = held.pictures.rgb(shown(len(samples)))
        return {"psnr": float(psnr(to_rgb(samples), truth).mean())}

    def render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
        longest = max(len(samples) for _, samples in rows)
        return render_rows([("truth", to_samples(held.pictures.rgb(shown(longest)))), *rows], stem)

    def export(student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any], half: bool = False) -> None:
        export_model(student, plan, folder, card, model, half=half)

    return Problem(
        actors=Actors(dict(roles), model.denoiser.process, shape),
        data=source,
        conditions=lambda n, _seed: held.condition(shown(n), device),
        evaluate=evaluate,
        render=render,
        export=export,
        export_as={"half": partial(export, half=True)},
        notes={"teacher": origin, "metric": "PSNR against exact pictures from cameras that training did not use"},
    )


def fresh(config: ThreedConfig, seed: int) -> ViewModel:
    """Return the untrained view model of a config."""
    network = config.network
    return fresh_model(
        VOCABULARY,
        scheduler_config(config.process),
        config.cameras,
        network.size,
        seed,
        patch=network.patch,
        widths=network.widths,
        attention=network.attention,
        layers=network.layers,
        text_width=network.text_width,
    )


def _model(config: ThreedConfig, specs: Sequence[RoleSpec], seed: int) -> tuple[ViewModel, str]:
    if config.teacher:
        return load_model(config.teacher), config.teacher
    starts = [spec.name for spec in specs if spec.kind == "denoiser" and spec.init != "fresh"]
    if starts:
        raise UserError(
            f"this recipe's roles {', '.join(starts)} start from a teacher and domain.teacher is empty: name one"
        )
    return fresh(config, seed), "none: networks start untrained"
