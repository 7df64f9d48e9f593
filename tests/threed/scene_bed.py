"""Small view models and scenes, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.cli.main import main
from fewstep.core.image.settings import ProcessConfig
from fewstep.core.image.teacher import scheduler_config
from fewstep.core.recipe import StepPlan
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.settings import SOLIDS_CAMERAS
from fewstep.threed.shapes.prompts import VOCABULARY
from fewstep.threed.teachers.view_model import ViewModel, export_model, fresh_model

TINY = {"patch": 2, "widths": (16, 16), "attention": (False, True), "text_width": 8}


def threed(*args: object) -> int:
    """Run a command of the domain; returns its exit status."""
    return main(["threed", *map(str, args)])


def tiny_model(seed: int = 0, size: int = 16) -> ViewModel:
    """An untrained view model whose outputs are not 0."""
    scheduler = scheduler_config(ProcessConfig(name="vp-scaled-linear"))
    model = fresh_model(VOCABULARY, scheduler, SOLIDS_CAMERAS, size, seed, **TINY)
    with torch.no_grad():
        for index, parameter in enumerate(model.backbone.parameters()):
            generator = torch.Generator().manual_seed(1000 * seed + index)
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_folder(folder: Path, seed: int = 0, size: int = 16) -> Path:
    """The folder of :func:`tiny_model`."""
    model = tiny_model(seed, size)
    export_model(model.denoiser, StepPlan((999.0,)), folder, {"name": "tiny"}, model)
    return folder


def around(count: int, size: int, elevation: float = 15.0, dtype: torch.dtype = torch.float32) -> Camera:
    """Cameras of the world of solids on a ring."""
    azimuth = torch.arange(count, dtype=dtype) * (360 / count) + 10
    full = torch.ones_like(azimuth)
    return orbit(azimuth, full * elevation, full * 3.2, full * 40.0, size, size)


def grad_norms(module: torch.nn.Module) -> dict[str, float]:
    """The length of every parameter's gradient, 0 where there is none."""
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in module.named_parameters()}


def difference(a: Tensor, b: Tensor) -> float:
    """The greatest difference of two tensors."""
    return float((a - b).detach().abs().max())
