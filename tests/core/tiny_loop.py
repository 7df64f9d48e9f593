"""A loop small enough to read: what the contract of recipes promises, on MLPs and vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep.core.denoiser import Denoiser, EDMScaling, NetworkDenoiser, Plain
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, Recipe
from fewstep.core.rng import Rng


def mlp_teacher(
    process: Process, dim: int = 1, *, kind: Kind | None = Kind.V, sigma_data: float = 0.5, seed: int = 0, **options
) -> NetworkDenoiser:
    """An untrained network to copy roles from; ``kind`` None is Karras' preconditioning."""
    scaling = EDMScaling(sigma_data) if kind is None else Plain(kind)
    return NetworkDenoiser(MLPBackbone(dim, seed=seed, **options), process, scaling)


def make_recipe(
    recipe_type: type[Recipe],
    config,
    network: NetworkDenoiser,
    *,
    dim: int = 1,
    teacher: Denoiser | None = None,
    dtype: torch.dtype = torch.float32,
    roles: RolesConfig | None = None,
) -> Recipe:
    """A recipe whose networks start from ``network`` and whose teacher is exact when one is given."""

    def fresh(seed: int) -> NetworkDenoiser:
        settings = {k: v for k, v in network.backbone.config.items() if k != "concat"}
        return network.with_backbone(MLPBackbone(**settings, seed=seed % 1000))

    built = build_roles(network, recipe_type.role_specs(config), roles or RolesConfig(), 0, fresh=fresh)
    if teacher is not None and "teacher" in built:
        built["teacher"] = teacher
    actors = Actors(built, network.process, (dim,), dtype=dtype)
    for name in built:
        if not isinstance(built[name], Denoiser) or isinstance(built[name], NetworkDenoiser):
            actors.module(name).to(dtype)
    return recipe_type(config, actors)


def train(
    recipe: Recipe,
    data: Callable[[Rng], Batch],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int = 0,
    start: int = 0,
    cosine: bool = True,
) -> list[float]:
    """Run the recipe's phases with Adam; returns the losses of the last phase."""
    optimizers: dict = {}
    losses = []
    for step in range(start, start + steps):
        for phase in recipe.phases(recipe.config):
            if not phase.due(step):
                continue
            parameters = [p for role in phase.trains for p in recipe.actors.module(role).parameters()]
            if phase.name not in optimizers:
                optimizers[phase.name] = torch.optim.Adam(parameters, lr)
            optimizer = optimizers[phase.name]
            share = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - start) / steps)).item()) if cosine else 1.0
            for group in optimizer.param_groups:
                group["lr"] = lr * share * recipe.lr_factor(step)
            rng = Rng.for_batch(seed, step, batch).fork(phase.name)
            loss = recipe.loss(phase.name, data(Rng.for_batch(seed, step, batch)), rng, step).total().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        recipe.after_step(step)
        if recipe.reset_optimizers(step):
            optimizers.clear()
    return losses
