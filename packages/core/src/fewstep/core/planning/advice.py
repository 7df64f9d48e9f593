"""What to change so that a run fits: settings in order of least pain, each planned with before it is advised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fewstep.core.errors import UserError
from fewstep.core.planning.plan import MemoryPlan, plan
from fewstep.core.training.settings import RunConfig

CONTEXT = 2**29  # bytes: CUDA's own context and libraries, which no allocator counts
FRAGMENTED = 1.06  # what PyTorch's allocator reserves beyond what is in use
SMALL = 0.01  # a saving below this share of the peak is not worth a setting
PROCESSES = (2, 4, 8, 16)

Load = Callable[[Sequence[str]], RunConfig]
"""The config with further settings; UserError for settings it does not have."""


@dataclass(frozen=True)
class Advice:
    """Settings (or a way to launch), what they cost, and the bytes they are predicted to need on the GPU."""

    settings: tuple[str, ...]
    cost: str
    need: int
    fits: bool


def needed(peak: int) -> int:
    """Return the bytes of a GPU that a peak of tensors asks for."""
    return round(peak * FRAGMENTED) + CONTEXT


def candidates(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield single settings and what each costs, in order of least pain."""
    if config.train.precision == "fp32":
        yield "train.precision=bf16", "rounding"
    yield "domain.model.dtype=bf16", "rounding of weights that do not train"
    yield "domain.roles.checkpointing=true", "about a third more time per step"
    yield "domain.model.offload=[vae,teacher]", "copies to the GPU in every step"
    yield "domain.model.offload=[vae]", "copies to the GPU at previews"
    micro = config.train.batch if config.train.micro_batch == "auto" else config.train.micro_batch
    while micro > 1:
        micro = next(m for m in range(micro // 2, 0, -1) if config.train.batch % m == 0)
        yield f"train.micro_batch={micro}", "smaller pieces, less busy GPU"
    yield "train.ema.kind=none", "no averaged student"
    yield "optim.name=adamw8bit", "rounding of the optimizer's moments; needs bitsandbytes"
    yield "domain.roles.mode=lora", "adapters instead of full weights: another result"


def advise(config: RunConfig, load: Load, found: MemoryPlan, room: int) -> list[Advice]:
    """Return settings that bring a run into ``room`` bytes, each list longer than the one before, until one fits.

    Settings that save nothing are left out. Where none suffices, sharding over more and more processes is tried last.
    """
    advised: list[Advice] = []
    chosen: tuple[str, ...] = ()
    best, least = needed(found.peak), found
    for setting, cost in candidates(config):
        given = _with(chosen, setting)
        try:
            tried = plan(load(given))
        except UserError:  # this domain has no such setting, or this network no such mode
            continue
        need = needed(tried.peak)
        if need > best * (1 - SMALL):
            continue
        chosen, best, least = given, need, tried
        advised.append(Advice(chosen, cost, need, need <= room))
        if need <= room:
            return advised
    for processes in PROCESSES:
        need = needed(least.sharded(processes))
        launch = f"accelerate launch with FSDP2 over {processes} processes"
        if need <= room:
            return [*advised, Advice((*chosen, launch), "more GPUs", need, True)]
    return advised


def _with(chosen: tuple[str, ...], setting: str) -> tuple[str, ...]:
    key = setting.split("=", 1)[0]
    return (*(each for each in chosen if each.split("=", 1)[0] != key), setting)
