"""The lidar domain: partial scans in, complete scenes out; sparse networks, simulated or real drives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, NetworkDenoiser
from fewstep.core.domain import Problem
from fewstep.core.errors import UserError, check
from fewstep.core.networks.freezing import freeze
from fewstep.core.networks.roles import build_roles
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, RoleSpec
from fewstep.core.rng import Rng
from fewstep.lidar.artefacts import export_denoiser, export_refiner, find_network
from fewstep.lidar.judging import judges
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import load_denoiser
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.process import scene_denoiser, scene_process
from fewstep.lidar.recipes.refine import Refine
from fewstep.lidar.scenes import RefinerSource, SceneSource, load_scenes
from fewstep.lidar.settings import LidarConfig
from fewstep.lidar.shown import ShownScenes
from fewstep.lidar.view.preview import bev_rows

NO_SHAPES = "the lidar networks cannot be followed without data: how many voxels are occupied decides what they take"


class LidarDomain:
    """LiDAR scene completion: simulated streets or real drives; LiDiff's networks on sparse voxels."""

    name = "lidar"
    summary = "scene completion of LiDAR scans: simulated streets, SemanticKITTI and other drives"
    config_type: type = LidarConfig
    configs = Path(__file__).parent / "configs"

    def process(self, config: LidarConfig) -> Process:
        """Return LiDiff's process."""
        return scene_process()

    def build(self, config: LidarConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
        """Return the problem with every role built; UserError for what this domain cannot give."""
        check(torch.device(device).type != "meta", NO_SHAPES)
        if config.student == "refiner":
            return self._refiner(config, specs, seed, device)
        if config.train_encoder and any(config.roles.mode_of(spec.name) == "lora" for spec in specs):
            raise UserError(
                "domain.train_encoder: LoRA roles share the frozen encoder; set it to false, or roles.mode full"
            )
        teacher, origin = self._teacher(config, specs, seed)
        train, held = load_scenes(config.data)
        shown = ShownScenes(held, seed)
        roles = build_roles(
            teacher,
            specs,
            config.roles,
            seed,
            shape=(config.data.points, 3),
            cond=shown.conditions(1),
            fresh=lambda own: _with(scene_denoiser(LidarBackbone(config.network, own)), config),
        )
        for spec in specs:
            role = roles[spec.name]
            module = role.backbone if isinstance(role, NetworkDenoiser) else role
            if isinstance(module, LidarBackbone) and spec.init == "teacher" and not config.train_encoder:
                freeze(module.encoder)
            if isinstance(module, nn.Module):
                module.to(device)

        actors = Actors(dict(roles), teacher.process, (config.data.points, 3), judges=judges(config.judge_points))
        return Problem(
            actors=actors,
            data=SceneSource(train),
            conditions=lambda n, _seed: _to(shown.conditions(n), device),
            evaluate=shown.evaluate,
            render=bev_rows,
            export=export_denoiser,
            export_as={"half": partial(export_denoiser, half=True)},
            notes={"teacher": origin, "metric": shown.protocol},
        )

    def _teacher(self, config: LidarConfig, specs: Sequence[RoleSpec], seed: int) -> tuple[NetworkDenoiser, str]:
        starts = [spec.name for spec in specs if spec.kind == "denoiser" and spec.init != "fresh"]
        if not starts:
            return scene_denoiser(LidarBackbone(config.network, seed)), "none: networks start untrained"
        check(
            bool(config.teacher),
            f"this recipe's roles {', '.join(starts)} start from a teacher and domain.teacher is empty: name one",
        )
        made = scene_denoiser(load_denoiser(find_network(config.teacher, "denoiser")))
        return _with(made, config), config.teacher

    def _refiner(
        self, config: LidarConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
    ) -> Problem:
        if [spec.name for spec in specs] != ["student"] or specs[0].init != "fresh":
            raise UserError(f"domain.student: a refiner is trained by recipe '{Refine.name}', not by this one")
        train, held = load_scenes(config.data)
        refiner = Refiner(config.network, config.refiner.up_factor, seed).to(device)
        shown = ShownScenes(held, seed, config.refiner)

        def generate(batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
            return refiner(batch.cond["points"]), batch.cond

        shape = (config.data.points * config.refiner.up_factor, 3)
        return Problem(
            actors=Actors({"student": refiner}, scene_process(), shape, generate),
            data=RefinerSource(train, config.refiner),
            conditions=lambda n, _seed: _to(shown.conditions(n), device),
            evaluate=shown.evaluate,
            render=bev_rows,
            export=export_refiner,
            export_as={"half": partial(export_refiner, half=True)},
            notes={"metric": shown.protocol},
        )


def _with(denoiser: NetworkDenoiser, config: LidarConfig) -> NetworkDenoiser:
    assert isinstance(denoiser.backbone, LidarBackbone)
    denoiser.backbone.backend = config.backend
    return denoiser


def _to(cond: Cond, device: torch.device | str) -> Cond:
    return {name: value.to(device) for name, value in cond.items()}


DOMAIN = LidarDomain()
