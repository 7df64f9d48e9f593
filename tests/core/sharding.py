"""A text-to-image network with LoRA roles over a half-precision base, and the settings its tests share."""

from __future__ import annotations

import torch
from core.runs import config_of
from core.toys import ToyRecipe
from torch import Tensor

from fewstep.core.domain import Problem
from fewstep.core.models.loading import Teacher
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.recipe import Actors, Batch
from fewstep.core.rng import Rng
from fewstep.core.training.settings import RunConfig

STEPS = 4


class Latents:
    """Noise for latents and prompts: what is learned does not matter here."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 0

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        cond = {"prompt_embeds": rng.normal("prompt", (16, 32)).to(device)}
        return Batch(len(rng.ids), cond, rng.normal("x0", self.shape).to(device), device)


def image_config(dtype: str, steps: int) -> RunConfig:
    """Plain gradient descent: what moves is proportional to the gradients."""
    return config_of(f"train.steps={steps}", "train.batch=2", "train.micro_batch=1", "optim.name=sgd",
                     f"train.precision={dtype}")  # fmt: skip


def image_problem(config: RunConfig) -> Problem:
    """The tiny Stable Diffusion, frozen in the run's precision, under factors in float32; activations recomputed."""
    found = Teacher.find("tiny:sd")
    specs = ToyRecipe.role_specs(config.recipe)
    roles_config = RolesConfig(mode="lora", rank=2, checkpointing=True)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    roles = build_roles(found.denoiser(None, dtype), specs, roles_config, config.seed)
    actors = Actors(roles, found.reading()[0], found.shape)

    def unused(*args: object) -> dict[str, Tensor]:
        raise AssertionError

    return Problem(actors=actors, data=Latents(found.shape), conditions=unused, evaluate=unused, render=unused,
                   export=unused)  # type: ignore[arg-type]  # fmt: skip
