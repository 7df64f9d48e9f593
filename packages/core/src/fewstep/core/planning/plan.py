"""The memory a run will take: every phase of the real recipe, run on shapes.

The problem is built on the meta device, a :class:`~fewstep.core.training.trainer.Trainer` is made of it, and each phase
makes one update while a :class:`~fewstep.core.planning.tracker.Tracker` follows every storage. What a recipe, guidance,
a discriminator, shared bases, checkpointing or micro-batches do to memory is therefore not modelled but observed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.domain import Problem
from fewstep.core.errors import UserError
from fewstep.core.planning.kernels import GpuKernels
from fewstep.core.planning.stage import ShapesOnly
from fewstep.core.planning.tracker import CUDA_GRANULARITY, Tracker, highest
from fewstep.core.recipe import Batch, Phase, Recipe
from fewstep.core.training.cast import networks_of
from fewstep.core.training.feed import Feed
from fewstep.core.training.opened import assemble
from fewstep.core.training.phases import PhaseRunner
from fewstep.core.training.settings import OptimConfig, RunConfig
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

Build = Callable[[World], tuple[Problem, Recipe]]
EIGHT_BIT = "adamw8bit"
FUSED = ("adamw", "adam", "sgd", EIGHT_BIT)  # their updates make nothing on the way
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # bitsandbytes' own numbers
BETWEEN = "between steps"


@dataclass(frozen=True)
class RoleMemory:
    """What stays in memory for one role, in bytes; ``parameters`` and ``trained`` are counts.

    Storages shared by roles are counted for the first of them.
    """

    name: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    average: int


@dataclass(frozen=True)
class PhaseMemory:
    """The highest moment of a phase, in bytes: what stays, gradients there are by then, and all the rest."""

    name: str
    resident: int
    gradients: int
    activations: int

    @property
    def peak(self) -> int:
        """The sum."""
        return self.resident + self.gradients + self.activations


@dataclass(frozen=True)
class PartMemory:
    """Another component of the teacher: the bytes of its weights, and whether they stay while networks train."""

    name: str
    weights: int
    stays: bool


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one process.

    ``data``: two batches, this step's and the next; ``unit``: the largest block that sharding would gather at once.
    """

    roles: tuple[RoleMemory, ...]
    phases: tuple[PhaseMemory, ...]
    parts: tuple[PartMemory, ...]
    data: int
    unit: int

    @property
    def peak(self) -> int:
        """The highest moment of all."""
        return max(phase.peak for phase in self.phases)

    @property
    def resident(self) -> int:
        """What stays in memory all the time."""
        return self.data + self.divisible + sum(part.weights for part in self.parts if part.stays)

    @property
    def divisible(self) -> int:
        """What of it sharding divides."""
        return sum(role.weights + role.optimizer + role.average for role in self.roles)

    def sharded(self, processes: int) -> int:
        """Return the peak when weights, gradients, optimizers and averages are divided over processes (FSDP2).

        Two blocks are gathered at a time, the one at work and the next.
        """
        share = 1 - 1 / processes
        return max(round(p.peak - share * (self.divisible + p.gradients)) + 2 * self.unit for p in self.phases)


def plan(
    config: RunConfig,
    *,
    processes: int = 1,
    granularity: int = CUDA_GRANULARITY,
    kernels: GpuKernels | None = None,
    build: Build | None = None,
) -> MemoryPlan:
    """Return the memory of one of ``processes`` on a GPU; UserError for what the domain or the recipe cannot do.

    ``granularity``: bytes the allocator rounds up to. ``kernels``: what they keep. ``build``: makes problem and recipe
    on the world's device; by default the config's domain does.
    """
    kernels, tracker = kernels or GpuKernels(), Tracker(granularity)
    world = ShapesOnly(kernels, processes)
    with shapes_for(config), closing(kernels), kernels, tracker:
        problem, recipe = build(world) if build is not None else _assembled(config, world)
        return _planned(config, problem, recipe, world, tracker)


def _assembled(config: RunConfig, world: World) -> tuple[Problem, Recipe]:
    opened = assemble(config, world)
    return opened.problem, opened.recipe


@contextmanager
def shapes_for(config: RunConfig) -> Iterator[None]:
    """Say which recipe it was when an operation inside has no answer for shapes alone."""
    try:
        yield
    except NotImplementedError as error:
        line = (str(error).splitlines() or ["an operation needs values"])[0]
        raise UserError(f"recipe '{config.recipe_name}' cannot be planned: {line}") from error


def _planned(config: RunConfig, problem: Problem, recipe: Recipe, world: World, tracker: Tracker) -> MemoryPlan:
    trainer = Trainer(replace(config, optim=_shapes_of(config.optim)), problem, recipe, world)
    optimizers = {name: config.optim.for_phase(name).name for name in trainer.runners}
    for name, runner in trainer.runners.items():
        _start_optimizer(runner, optimizers[name], tracker)
    feed = Feed(problem.data, config, world)
    # drawn on the CPU, where samples are put together
    draws = [replace(feed.rng(step, "data"), device="cpu") for step in (0, 1)]
    batch, _following = (problem.data.batch(rng, world.device) for rng in draws)
    roles = tuple(_roles(trainer, tracker))
    gc.collect()
    held = tracker.live
    parts = tuple(PartMemory(name, *what) for name, what in problem.parts.items())
    beside = sum(part.weights for part in parts if part.stays)
    phases = [_phase(trainer, phase, optimizers[phase.name] in FUSED, batch, feed, tracker) for phase in trainer.phases]
    kept = sum(role.weights + role.optimizer + role.average for role in roles)
    moments = [each for each in (*phases, _between(trainer, tracker)) if each is not None]
    found = tuple(replace(each, resident=each.resident + beside) for each in moments)
    return MemoryPlan(roles, found, parts, held - kept, _largest_block(trainer))


def _shapes_of(optim: OptimConfig) -> OptimConfig:
    """Return settings whose optimizers can be made on the meta device; 8-bit states are put in afterwards."""
    phases = {name: replace(own, name="adamw") if own.name == EIGHT_BIT else own for name, own in optim.phases.items()}
    return replace(optim, name="adamw" if optim.name == EIGHT_BIT else optim.name, phases=phases)


def _start_optimizer(runner: PhaseRunner, name: str, tracker: Tracker) -> None:
    """Make the optimizer's state by an update with blank gradients; let fused updates make nothing."""
    optimizer = runner.stepper.optimizer
    if name not in FUSED:
        for group in optimizer.param_groups:  # as on a GPU, where all parameters move at once
            group["foreach"] = True
    with tracker.pausing():
        for parameter in runner.parameters:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if name == EIGHT_BIT:
        for parameter in runner.parameters:
            optimizer.state[parameter] = _eight_bit(parameter)


def _eight_bit(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the two moments as bitsandbytes keeps them: a byte each and a scale per block, but small ones whole."""
    count = parameter.numel()
    if count < SMALLEST_8BIT:
        return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("state1", "state2")}
    blocks_8bit = -(-count // BLOCK_8BIT)
    made = {name: torch.empty(count, dtype=torch.uint8, device="meta") for name in ("state1", "state2")}
    return made | {name: torch.empty(blocks_8bit, device="meta") for name in ("absmax1", "absmax2")}


def _phase(
    trainer: Trainer, phase: Phase, fused: bool, batch: Batch, feed: Feed, tracker: Tracker
) -> PhaseMemory | None:
    """Run the last update of a phase in the run on at most two micro-batches: the second has gradients to add to."""
    runner, total = trainer.runners[phase.name], trainer.config.train.steps
    step = next((step for step in range(total - 1, -1, -1) if phase.due(step)), None)
    if step is None:
        return None
    rng, rows = feed.rng(step, phase.name), min(batch.size, 2 * runner.micro)
    if rows < batch.size:
        batch, rng = batch.select(0, rows), rng.select(0, rows)
    gradients: frozenset[int] = frozenset()

    def note(*_: object) -> None:
        nonlocal gradients
        gradients = tracker.keys_of(p.grad for p in runner.parameters if p.grad is not None)
        if fused:
            runner.stepper.optimizer.zero_grad(set_to_none=True)  # nothing is left to update, and nothing is made

    handle = runner.stepper.optimizer.register_step_pre_hook(note)
    start = tracker.live
    tracker.events.clear()
    runner.run(batch, rng, step)
    handle.remove()
    peak, inside = highest(tracker.events, start, lambda key: key in gradients)
    return PhaseMemory(phase.name, start, inside, peak - start - inside)


def _between(trainer: Trainer, tracker: Tracker) -> PhaseMemory:
    """Return the highest moment of averages, of what the recipe does after a step, and of a checkpoint."""
    start = tracker.live
    tracker.events.clear()
    for average in trainer.emas.values():
        average.update()
    trainer.recipe.after_step(trainer.config.train.steps - 1)
    for average in trainer.emas.values():
        average.state_dict()
    peak, _ = highest(tracker.events, start, lambda key: False)
    return PhaseMemory(BETWEEN, start, 0, peak - start)


def _roles(trainer: Trainer, tracker: Tracker) -> Iterator[RoleMemory]:
    seen: set[int] = set()

    def new(tensors: Iterable[Tensor]) -> list[Tensor]:
        found = [x for x in tensors if x.is_meta and id(x) not in seen]
        seen.update(id(x) for x in found)
        return found

    for spec in sorted(trainer.specs, key=lambda spec: spec.init == "frozen"):
        module = trainer.cast.modules.get(spec.name)
        if module is None:
            continue
        weights = new(_tensors([module, *getattr(module, "held", ())]))  # held: networks it uses and does not own
        if spec.init == "frozen":  # a view of a base has no weights of its own
            weights += new(_tensors(networks_of(trainer.problem.actors, [spec])))
        yield _role(spec.name, weights, trainer, tracker)
    rest = new(_tensors(networks_of(trainer.problem.actors, trainer.specs)))
    if rest:
        yield _role("shared base", rest, trainer, tracker)


def _role(name: str, weights: Sequence[Tensor], trainer: Trainer, tracker: Tracker) -> RoleMemory:
    moving = {p for runner in trainer.runners.values() for p in runner.parameters}
    trained = [x for x in weights if x in moving]
    states = [runner.stepper.optimizer.state.get(p, {}) for runner in trainer.runners.values() for p in trained]
    kept = [x for state in states for x in _nested(state)]
    ema = trainer.emas.get(name)
    return RoleMemory(
        name,
        sum(x.numel() for x in weights),
        sum(x.numel() for x in trained),
        tracker.bytes_of(weights),
        sum(_rounded(x.numel() * x.element_size(), tracker.granularity) for x in trained),
        tracker.bytes_of(kept),
        tracker.bytes_of(x for x in ema.averages() if x.is_meta) if ema is not None else 0,
    )


def _nested(state: Any) -> Iterator[Tensor]:
    """Return the tensors of an optimizer's state that live on the device."""
    if isinstance(state, Tensor):
        if state.is_meta:
            yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _nested(value)


def _tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def _rounded(size: int, granularity: int) -> int:
    return -(-size // granularity) * granularity


def _largest_block(trainer: Trainer) -> int:
    """Return the bytes of the largest part that sharding gathers at once."""
    sizes = [0]
    for network, blocks in networks_of(trainer.problem.actors, trainer.specs).items():
        parts = [network.get_submodule(path) for path in blocks]
        inside = {id(p) for part in parts for p in part.parameters()}
        own = [p for p in network.parameters() if id(p) not in inside]
        sizes.append(sum(p.numel() * p.element_size() for p in own))
        sizes += [sum(p.numel() * p.element_size() for p in part.parameters()) for part in parts]
    return max(sizes)
