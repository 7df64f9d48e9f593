"""Small random models of restoration."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from fewstep.core.cli.main import domain_main
from fewstep.core.recipe import StepPlan
from fewstep.restoration.model import Model
from fewstep.restoration.models.files import save_network
from fewstep.restoration.models.local import LocalConfig, LocalUNet
from fewstep.restoration.models.spaces import PixelSpace
from fewstep.restoration.process import read_network
from fewstep.restoration.settings import ProcessConfig, SpaceConfig


def shaken(network: LocalUNet, seed: int = 0) -> LocalUNet:
    """Return the network with something in every weight: zero-initialised layers say nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network


def small_model(
    scales: tuple[int, ...] = (2, 3, 4, 8),
    *,
    student: bool = False,
    steps: int = 4,
    process: ProcessConfig | None = None,
) -> Model:
    """Return a local network of one halving in pixel space of factor 4, on a short residual shift."""
    process = process or ProcessConfig(steps=steps, min_noise=0.2)
    space = PixelSpace(4)
    network = shaken(LocalUNet(space.channels, LocalConfig(widths=(8, 12), blocks=1, time_width=16))).eval()
    denoiser = read_network(network, process, pixels=True)
    plan = StepPlan((float(steps - 1),)) if student else None
    return Model(denoiser, space, scales, process, SpaceConfig(), plan)


def written_model(folder: Path, model: Model) -> Path:
    """Write a model as an export would, and return its folder."""
    facts = model.facts()
    if model.plan is not None:
        facts["sampling"] = asdict(model.plan) | {"extras": dict(model.plan.extras)}
    save_network(model.denoiser.backbone, folder, facts)
    return folder


def restoration(*args: object) -> int:
    """Run ``fewstep restoration`` with arguments of any kind; returns the exit code."""
    return domain_main("restoration", [str(arg) for arg in args])
