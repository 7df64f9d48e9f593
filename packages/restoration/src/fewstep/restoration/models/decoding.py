"""What a decoder is tuned on: pictures decoded from the samples of a frozen student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import check
from fewstep.core.networks.freezing import freeze, thaw, upcast
from fewstep.core.recipe import Batch, StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan

PARTS = ("decoder", "post_quant_conv")
"""What modules of an autoencoder that only decode are called (diffusers)."""

S = TypeVar("S", bound=nn.Module)


def decoder_parts(space: nn.Module) -> list[nn.Module]:
    """Return the modules of a space that only decode; UserError when none has weights (pixels)."""
    found = [module for name, module in space.named_modules() if name.rpartition(".")[2] in PARTS]
    check(
        any(True for module in found for _ in module.parameters()),
        f"domain.student: a {type(space).__name__} has no decoder to tune; it takes an autoencoder's latents",
    )
    return found


def tunable(space: S) -> S:
    """Return a copy of a space in float32 whose decoder trains; everything else in it is frozen for good.

    Raises UserError for a space without a decoder.
    """
    made = thaw(upcast(copy.deepcopy(space))).requires_grad_(False)
    parts = decoder_parts(made)
    inside = {module for part in parts for module in part.modules()}
    for module in made.modules():
        if module not in inside and not inside.intersection(module.modules()):
            freeze(module)  # not what holds the decoder: it passes train() and eval() on
    for part in parts:
        part.requires_grad_(True)
    return made


def pictures_of(
    student: Denoiser,
    plan: StepPlan,
    decode: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Callable[[Batch, Rng], tuple[Tensor, Cond]]:
    """Return what makes a batch's pictures "b 3 h w": fresh noise, the frozen student along its plan, ``decode``.

    ``shape``: of a latent. The gradient ends at the latents. It is ``Actors.generate`` of runs that tune a decoder.
    """
    if isinstance(student, NetworkDenoiser):
        freeze(student.backbone)

    def generate(batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
        with torch.no_grad():
            latents = run_plan(student, plan, rng.normal("decoder/noise", tuple(shape), dtype), batch.cond, rng)
        return decode(latents), batch.cond

    return generate
