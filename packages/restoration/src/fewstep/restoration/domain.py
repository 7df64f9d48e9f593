"""The restoration domain: low-quality pictures in, good ones out; in pixels or in an autoencoder's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core.denoiser import Denoiser, NetworkDenoiser
from fewstep.core.domain import DataSource, Problem
from fewstep.core.errors import UserError, check
from fewstep.core.networks.freezing import freeze
from fewstep.core.networks.roles import build_roles
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, RoleSpec, StepPlan
from fewstep.restoration.artefacts import export_decoder, export_model
from fewstep.restoration.data import photos
from fewstep.restoration.data.opening import open_examples
from fewstep.restoration.data.source import RestorationSource
from fewstep.restoration.model import Model, fresh_network, load_model, load_stable, open_space
from fewstep.restoration.models.captions import CaptionEncoder
from fewstep.restoration.models.decoding import pictures_of, tunable
from fewstep.restoration.models.spaces import Space
from fewstep.restoration.models.stable import is_stable, open_stable
from fewstep.restoration.process import build_process, read_network
from fewstep.restoration.settings import RestorationConfig
from fewstep.restoration.shown import PictureSource, SampleSource, ShownPictures
from fewstep.restoration.targets import TargetSource

NO_SHAPES = "a plan of restoration's memory needs its data and weights, which the device meta has not"


class RestorationDomain:
    """Image restoration: super-resolution and enhancement; ResShift's process and others, students of one step."""

    name = "restoration"
    summary = "super-resolution and enhancement of pictures: photos, folders, pairs; pixels or latents"
    config_type: type = RestorationConfig
    configs = Path(__file__).parent / "configs"

    def process(self, config: RestorationConfig) -> Process:
        """Return the process of the configured teacher."""
        if not config.teacher:
            return build_process(config.process)
        if is_stable(config.teacher):
            return open_stable(config.teacher, weights=False).reading()[0]
        return load_model(config.teacher).denoiser.process

    def build(
        self, config: RestorationConfig, specs: Sequence[RoleSpec], seed: int, device: torch.device | str
    ) -> Problem:
        """Return the problem with every role built; UserError for what this domain cannot give."""
        check(torch.device(device).type != "meta", NO_SHAPES)
        model, origin = find_teacher(config, specs, seed)
        space = freeze(model.space).to(device)
        train, held = sources(config, space)
        told = caption_encoder(config, model, device)
        shown = ShownPictures(held, space, told=told)
        notes = {"teacher": origin, "metric": shown.protocol}
        if config.student == "decoder":
            return self._decoder(config, specs, model, train, shown, notes, device)
        side = config.data.crop // space.factor
        shape = (space.channels, side, side)
        roles = build_roles(
            model.denoiser,
            specs,
            config.roles,
            seed,
            shape=shape,
            cond={name: value.cpu() for name, value in shown.conditions(1, device).items()},
            fresh=partial(_fresh, config, model),
        )
        for role in roles.values():
            module = role.backbone if isinstance(role, NetworkDenoiser) else role
            if isinstance(module, nn.Module):
                module.to(device)
        data: DataSource = SampleSource(train, space, told, config.data.captions)
        if config.targets:
            targets = TargetSource(config.targets, model.denoiser)
            data, notes["data"] = targets, targets.about()

        def export(
            student: Denoiser, plan: StepPlan, folder: Path, card: Mapping[str, Any], half: bool = False
        ) -> None:
            export_model(student, plan, folder, card, model, half=half)

        return Problem(
            actors=Actors(dict(roles), model.denoiser.process, shape),
            data=data,
            conditions=lambda n, _seed: shown.conditions(n, device),
            evaluate=shown.evaluate,
            render=shown.render,
            export=export,
            export_as={"half": partial(export, half=True)},
            notes=notes,
        )

    def _decoder(
        self,
        config: RestorationConfig,
        specs: Sequence[RoleSpec],
        model: Model,
        train: RestorationSource,
        shown: ShownPictures,
        notes: dict[str, str],
        device: torch.device | str,
    ) -> Problem:
        student = next((spec for spec in specs if spec.name == "student"), None)
        if student is None or student.init != "fresh" or any(spec.kind == "denoiser" for spec in specs[1:]):
            raise UserError("domain.student: a decoder is trained by recipe 'decoder', not by this one")
        check(model.plan is not None, f"domain.teacher: '{config.teacher}' is no student, whose decoder could be tuned")
        assert model.plan is not None
        decoder = tunable(model.space).to(device)
        model.denoiser.backbone.to(device)
        side = config.data.crop // model.space.factor
        generate = pictures_of(model.denoiser, model.plan, decoder.decode, (model.space.channels, side, side))
        others = [spec for spec in specs if spec.name != "student"]
        roles = build_roles(model.denoiser, others, config.roles, 0)
        modules = {name: role.to(device) for name, role in roles.items() if isinstance(role, nn.Module)}
        looked = ShownPictures(shown.source, model.space, pixels=True, told=shown.told)

        def export(space: Space, plan: StepPlan, folder: Path, card: Mapping[str, Any], half: bool = False) -> None:
            export_decoder(space, plan, folder, card, model, half=half)

        return Problem(
            actors=Actors(
                {"student": decoder, **modules},
                model.denoiser.process,
                (3, config.data.crop, config.data.crop),
                generate,
            ),
            data=PictureSource(train, model.space, shown.told, config.data.captions),
            conditions=lambda n, _seed: looked.conditions(n, device),
            evaluate=looked.evaluate,
            render=looked.render,
            export=export,
            export_as={"half": partial(export, half=True)},
            notes=notes,
        )


def sources(config: RestorationConfig, space: Space) -> tuple[RestorationSource, RestorationSource]:
    """Return pairs to train on and held-out ones, in pixels; UserError for data that is not there or does not fit."""
    train, held = (
        RestorationSource(examples, config.data, config.scales, space.factor, config.milder_scale)
        for examples in open_examples(config.data, config.scales, photos)
    )
    return train, held


def caption_encoder(config: RestorationConfig, model: Model, device: torch.device | str) -> CaptionEncoder | None:
    """Return what encodes captions where the data has some; UserError for a model that reads none."""
    if config.data.captions == 0:
        return None
    if model.stable is None:
        raise UserError(
            f"domain.data.captions: {config.teacher or 'a new network'} reads no words, Stable Diffusion does: set it 0"
        )
    return CaptionEncoder(model.stable, device)


def find_teacher(config: RestorationConfig, specs: Sequence[RoleSpec], seed: int) -> tuple[Model, str]:
    """Return the model roles start from, made for the configured scales, and where it comes from.

    Raises UserError for roles that start from a teacher where none is named, and for what cannot be loaded.
    """
    if config.teacher and is_stable(config.teacher):
        check(
            config.noise == 1, "domain.noise: a pipeline of Stable Diffusion has no place to recommend it in: leave 1"
        )
        return load_stable(config.teacher, config.scales, config.prompt or None), config.teacher
    if config.teacher:
        model = load_model(config.teacher)
        noise = model.noise if config.student == "decoder" else config.noise
        return replace(model, scales=config.scales, noise=noise), config.teacher
    starts = [spec.name for spec in specs if spec.kind == "denoiser" and spec.init != "fresh"]
    check(
        not starts,
        f"this recipe's roles {', '.join(starts)} start from a teacher and domain.teacher is empty: name one",
    )
    space = open_space(config.space)
    network = fresh_network(config.network, space, config.data.crop, seed)
    denoiser = read_network(network, config.process, pixels=config.space.kind == "pixel")
    return Model(
        denoiser, space, config.scales, config.process, config.space, noise=config.noise
    ), "none: networks start untrained"


def _fresh(config: RestorationConfig, model: Model, seed: int) -> NetworkDenoiser:
    if model.stable is not None:
        return model.stable.fresh(seed)
    return model.denoiser.with_backbone(fresh_network(config.network, model.space, config.data.crop, seed))


DOMAIN = RestorationDomain()
