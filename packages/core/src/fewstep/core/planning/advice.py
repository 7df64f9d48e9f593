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
MICRO = "train.micro_batch"
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


def candidates(config: RunConfig, found: MemoryPlan) -> Iterator[tuple[str, str]]:
    """Yield single settings and what each costs, in order of least pain; of micro-batches the whole share's half."""
    if config.train.precision == "fp32":
        yield "train.precision=bf16", "rounding"
    if found.parts:  # the teacher is a pipeline
        yield "domain.model.dtype=bf16", "rounding of weights that do not train"
    yield "domain.roles.checkpointing=true", "about a third more time per step"
    if found.parts:
        yield "domain.model.offload=[vae,teacher]", "copies to the GPU in every step"
        yield "domain.model.offload=[vae]", "copies to the GPU when it is used"
    sizes = micro_batches(config)
    if sizes:
        yield f"{MICRO}={sizes[0]}", "smaller pieces, a less busy GPU"
    if any(role.average for role in found.roles):
        yield "train.ema.kind=none", "no averaged student"
    yield "optim.name=adamw8bit", "rounding of the optimizer's moments; needs bitsandbytes"
    yield "domain.roles.mode=lora", "adapters instead of full weights: another result"


def micro_batches(config: RunConfig) -> list[int]:
    """Return the sizes smaller than the present one that divide the batch, each about half the one before."""
    batch, micro = config.train.batch, config.train.micro_batch
    sizes = [batch if micro == "auto" else micro]
    while sizes[-1] > 1:
        sizes.append(next(size for size in range(sizes[-1] // 2, 0, -1) if batch % size == 0))
    return sizes[1:]


def advise(config: RunConfig, load: Load, found: MemoryPlan, room: int) -> list[Advice]:
    """Return settings that bring a run into ``room`` bytes, each line with those of the one before, until one fits.

    Settings that save nothing are left out. Where none suffices, sharding over more and more processes is tried last.
    """
    search = _Search(config, load, found, room)
    for setting, cost in candidates(config, found):
        if search.take(setting, cost):
            break
        if setting.startswith(MICRO):
            search.shrink(cost)
        if search.fits:
            break
    if not search.fits:
        search.shard()
    return search.advice


class _Search:
    """The settings chosen so far, and what is needed with them."""

    def __init__(self, config: RunConfig, load: Load, found: MemoryPlan, room: int) -> None:
        self.config, self.load, self.least, self.room = config, load, found, room
        self.before = found
        self.chosen: tuple[str, ...] = ()
        self.advice: list[Advice] = []

    @property
    def fits(self) -> bool:
        """Whether the last advice fits."""
        return bool(self.advice) and self.advice[-1].fits

    def take(self, setting: str, cost: str) -> bool:
        """Plan with one more setting, and keep it if it saves; return whether the run fits then."""
        given = _with(self.chosen, setting)
        try:
            tried = plan(self.load(given))
        except UserError:  # this domain has no such setting, or this network no such mode
            return False
        need = needed(tried.peak)
        if tried.peak > self.least.peak * (1 - SMALL):
            return False
        self.chosen, self.before, self.least = given, self.least, tried
        self.advice.append(Advice(given, cost, need, need <= self.room))
        return self.fits

    def shrink(self, cost: str) -> None:
        """Go on to the largest micro-batch that seems to fit: what is needed is nearly affine in its size."""
        sizes = micro_batches(self.config)
        if len(sizes) < 2 or not self.advice or not self.advice[-1].settings[-1].startswith(MICRO):
            return
        now, present = sizes[0], self.config.train.micro_batch
        whole = self.config.train.batch if present == "auto" else present
        slope = (self.before.peak - self.least.peak) / (whole - now)
        for size in sizes[1:]:
            guess = needed(round(self.least.peak - slope * (now - size)))
            if (guess <= self.room or size == 1) and self.take(f"{MICRO}={size}", cost):
                return

    def shard(self) -> None:
        """Advise the smallest number of processes whose shares fit, if one does."""
        for processes in PROCESSES:
            need = needed(self.least.sharded(processes))
            if need <= self.room:
                launch = f"(accelerate launch with FSDP2 over {processes} processes)"
                self.advice.append(Advice((*self.chosen, launch), "more GPUs", need, True))
                return


def _with(chosen: tuple[str, ...], setting: str) -> tuple[str, ...]:
    key = setting.split("=", 1)[0]
    return (*(each for each in chosen if each.split("=", 1)[0] != key), setting)
