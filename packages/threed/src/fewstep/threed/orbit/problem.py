"""The problem of orbits for core's runs: data, roles, conditions, measures and the export of a student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError, check
from fewstep.core.image.rendering import render_rows
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.process import EDM
from fewstep.core.recipe import Actors, RoleSpec, StepPlan
from fewstep.core.rng import Rng
from fewstep.threed.image_to_3d import DECODER, FACTOR, TEACHER, ImageTo3D, model_folder
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.orbit.data import ELEVATIONS, FREE, STEPS, OrbitData
from fewstep.threed.orbit.decoder import GaussianDecoder
from fewstep.threed.orbit.network import OrbitUNet
from fewstep.threed.orbit.pixels import to_pixels
from fewstep.threed.orbit.reading import KarrasV
from fewstep.threed.orbit.supervision import OrbitGeometry, render_clouds, targets
from fewstep.threed.shapes import split_prompts

PROCESS = EDM(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
CHANNELS = 3 * FACTOR**2
TRUTH = "truth"  # the condition entry measures compare with


@dataclass(frozen=True, kw_only=True)
class OrbitConfig:
    """Settings of the problem of orbits.

    ``teacher``: a shipped model's name or a folder with ``teacher``, or with ``student`` alone; empty: none, for
    training one. ``decoder``: likewise, where a decoder's training starts; empty: untrained. ``views``: of an orbit.
    ``widths``: of an untrained network. ``seen``: pictures each sample is supervised by. ``held_out``: how many things
    are kept for measuring.
    """

    teacher: str = "orbit"
    decoder: str = "orbit"
    views: int = 8
    widths: tuple[int, ...] = (48, 64)
    geometry: OrbitGeometry = OrbitGeometry()
    seen: int = 2
    held_out: int = 6
    roles: RolesConfig = RolesConfig(mode="lora", rank=16)

    def __post_init__(self) -> None:
        check(self.views >= 2 and STEPS % self.views == 0, f"views={self.views}: must divide {STEPS}, and not be 1")
        check(self.seen >= 1, f"seen must be at least 1, got {self.seen}")
        check(self.geometry.size % FACTOR == 0, f"geometry.size={self.geometry.size}: must be a multiple of {FACTOR}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of a sample, "v c h w"."""
        side = self.geometry.size // FACTOR
        return (self.views, CHANNELS, side, side)


def fresh_network(config: OrbitConfig, seed: int) -> NetworkDenoiser:
    """Return an untrained network of the configured orbits."""
    network = OrbitUNet.make(CHANNELS, config.shape[-1], config.views, widths=config.widths, seed=seed)
    return NetworkDenoiser(network, PROCESS, KarrasV())


def load_teacher(config: OrbitConfig) -> NetworkDenoiser:
    """Return the configured teacher; UserError when it was made for other orbits."""
    folder = _part(config.teacher, (TEACHER, "student"))
    network = OrbitUNet.load(folder)
    found = (network.views, network.unet.config.out_channels, network.unet.config.sample_size)
    check(
        found == config.shape[:3],
        f"{folder}: makes {found[0]} views of {found[1]}x{found[2]}x{found[2]}, and the orbits here are "
        f"{config.views} of {config.shape[1]}x{config.shape[2]}x{config.shape[2]}: set views and geometry.size",
    )
    return NetworkDenoiser(network, PROCESS, KarrasV())


def _part(name: str, parts: Sequence[str]) -> Path:
    given = Path(name).expanduser()
    folder = given if any((given / part).is_dir() for part in parts) else model_folder(name)
    for part in parts:
        if (folder / part).is_dir():
            return folder / part
    raise UserError(f"{folder}: no folder {' or '.join(parts)} there; give what a run exported")


def orbit_problem(config: OrbitConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
    """Return the problem; UserError for a decoder that is not of the recipe's settings."""
    train, held = split_prompts(config.held_out)
    data = OrbitData(train, config.geometry, views=config.views, seen=config.seen)
    looked_at = OrbitData((*held, *train), config.geometry, views=config.views, seen=4)
    teacher = load_teacher(config) if config.teacher else fresh_network(config, seed)
    roles = build_roles(
        teacher, specs, config.roles, seed, shape=config.shape, fresh=lambda own: fresh_network(config, own)
    )
    decoder = roles.get("decoder")
    if config.decoder and isinstance(decoder, GaussianDecoder):
        _start_from(decoder, _part(config.decoder, (DECODER,)))
    for role in roles.values():
        module = role.backbone if isinstance(role, NetworkDenoiser) else role
        if isinstance(module, nn.Module):
            module.to(device)

    def export(student: Any, plan: StepPlan, folder: Path, card: Mapping[str, Any], half: bool = False) -> None:
        _export(student, plan, folder, card, half, decoder, config)

    return Problem(
        actors=Actors(dict(roles), PROCESS, config.shape),
        data=data,
        conditions=lambda n, own: orbit_conditions(looked_at, n, own, device),
        evaluate=lambda samples, cond: evaluate_orbits(samples, cond, decoder, config.geometry),
        render=_render,
        export=export,
        export_as={"half": partial(export, half=True)},
        notes={
            "metric": "PSNR of the views against exact pictures; iou: silhouettes of the Gaussians from 4 unseen "
            f"sides each; {config.held_out} things held out, then those of training"
        },
    )


def orbit_conditions(data: OrbitData, n: int, seed: int, device: torch.device | str) -> Cond:
    """Return conditions of ``n`` orbits, things in turn, with the truth and pictures from anywhere beside them."""
    rng = Rng.for_batch(seed, 0, n)
    free = STEPS * len(ELEVATIONS) + torch.arange(data.seen) % FREE
    batch = data.orbits(
        torch.arange(n) % len(data.prompts),
        rng.integers("side", STEPS),
        rng.integers("elevation", len(ELEVATIONS)),
        free.expand(n, -1),
        device,
    )
    return dict(batch.cond) | {TRUTH: batch.clean_samples("orbits")}


@torch.no_grad()
def evaluate_orbits(
    samples: Float[Tensor, "n v c h w"], cond: Cond, decoder: Any, geometry: OrbitGeometry
) -> dict[str, float]:
    """Return ``psnr`` of views against the truth and, with a decoder, ``iou`` and ``psnr_3d`` of its Gaussians."""
    views, truth = to_pixels(samples, FACTOR).flatten(0, 1), to_pixels(cond[TRUTH], FACTOR).flatten(0, 1)
    found = {"psnr": float(psnr(views, truth).mean())}
    if not isinstance(decoder, GaussianDecoder):
        return found
    device = next(decoder.parameters()).device
    camera = geometry.cameras(cond["azimuth"].to(device), cond["polar"].to(device))
    clouds = decoder.gaussians(samples.to(device), camera)
    true, seen = targets(cond, geometry)
    made = render_clouds(clouds, seen.to(device))
    iou = silhouette_iou(made.alpha.flatten(0, 1).cpu(), true.alpha.flatten(0, 1))
    return found | {
        "iou": float(iou.mean()),
        "iou_min": float(iou.min()),
        "psnr_3d": float(psnr(made.rgb.flatten(0, 1).cpu(), true.rgb.flatten(0, 1)).mean()),
    }


def _render(rows: Sequence[tuple[str, Tensor]], stem: Path) -> Path:
    """Draw every orbit as a row of views in [-1, 1]."""
    shown = [(label, 2 * to_pixels(samples[:1], FACTOR)[0] - 1) for label, samples in rows]
    return render_rows(shown, stem)


def _start_from(decoder: GaussianDecoder, folder: Path) -> None:
    found = GaussianDecoder.load(folder)
    check(
        found.config == decoder.config,
        f"{folder}: a decoder of other settings than recipe.decoder ({found.config} and {decoder.config}): make them "
        "the same, or start an untrained one with an empty decoder",
    )
    decoder.load_state_dict(found.state_dict())


def _export(
    student: Any,
    plan: StepPlan,
    folder: Path,
    card: Mapping[str, Any],
    half: bool,
    decoder: Any,
    config: OrbitConfig,
) -> None:
    """Write a student with its decoder as a model from pictures to 3D; one without a decoder as a teacher."""
    check(isinstance(student, Denoiser), f"a {type(student).__name__} is no student of orbits")
    if isinstance(decoder, GaussianDecoder):
        ImageTo3D(student, plan, decoder, config.geometry, config.views).save(folder, card, half=half)
        return
    network = student.backbone if isinstance(student, NetworkDenoiser) else None
    if not isinstance(network, OrbitUNet):
        raise UserError(f"a {type(student).__name__} is no network of orbits that can be saved")
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder / TEACHER)
