"""What a training step costs beyond the network passes and optimizer updates it cannot avoid.

    python benchmarks/step_overhead.py [--recipes dmd2 sid consistency] [--batch 64] [--rounds 30] [--clock cpu]

A full step is what the loop does: data, all phases due, losses, checks for finiteness, optimizers, averages, and every
tenth step a report to ``metrics.jsonl`` and TensorBoard. The bare step replays the calls of the networks that one full
step made, on the same tensors: the same forwards with the same gradient settings, the same gradients sent back through
them, and the same optimizers. So the floor is 1.00: losses, randomness and the loop itself for free. Full and bare
steps alternate; the ratio is that of the fastest of each. On a machine that does other things as well, ``--clock cpu``
with ``OMP_NUM_THREADS=1`` counts the processor time of all threads of this process instead.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.domain import Problem, find_domain
from fewstep.core.image.data import DataConfig, load_data
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.networks.unet2d import UNet2DBackbone
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import Actors
from fewstep.core.recipes import find_recipe
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.trackers import open_trackers
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

LIMIT = 1.10
# every phase at every step
SETTINGS = {"dmd2": ["recipe.fake_updates=1"], "sid": ["recipe.fake_updates=1"], "consistency": []}


@dataclass
class Call:
    """One evaluation of a network within a step."""

    module: nn.Module
    x: Tensor
    time: Tensor
    cond: dict[str, Tensor]
    grad: bool
    x_grad: bool
    back: list[Tensor] = field(default_factory=list)


class Recorder:
    """Notes every call of the given networks, and the gradient that comes back to it."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.phase = ""
        self._handles = [module.register_forward_hook(self._note) for module in modules.values()]

    def _note(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        x, t, cond = args
        call = Call(
            module, x.detach().clone(), t.detach().clone(), dict(cond), torch.is_grad_enabled(), x.requires_grad
        )
        self.calls.setdefault(self.phase, []).append(call)
        if out.requires_grad:
            out.register_hook(lambda gradient: call.back.append(gradient.detach().clone()))

    def close(self) -> None:
        """Stop noting."""
        for handle in self._handles:
            handle.remove()


def make_trainer(recipe: str, batch: int, world: World) -> tuple[Trainer, Problem]:
    """Return a trainer of a recipe on digits whose teacher is untrained: speed does not depend on weights."""
    overrides = [f"recipe.name={recipe}", f"train.batch={batch}", "train.steps=1000000", *SETTINGS.get(recipe, [])]
    config = load_config(None, overrides, domain=find_domain("image"))
    method = find_recipe(recipe)
    process = VP.linear()
    unet = UNet2DBackbone.make(1, 8, widths=(24, 48), num_classes=10).to(world.device)
    teacher = NetworkDenoiser(unet, process, Plain(Kind.V))
    cond = {"label": torch.zeros(1, dtype=torch.long, device=world.device)}
    roles = build_roles(teacher, method.role_specs(config.recipe), RolesConfig(), 0, shape=(1, 8, 8), cond=cond)
    actors = Actors(roles=dict(roles), process=process, shape=(1, 8, 8))
    problem = Problem(
        actors,
        load_data(DataConfig()).source,
        lambda n, seed: {},
        lambda x, c: {},
        lambda rows, stem: stem,
        lambda *a: None,
    )
    return Trainer(config, problem, method(config.recipe, actors), world), problem


def record(trainer: Trainer, feed: Feed) -> dict[str, list[Call]]:
    """Make one full step and return its calls by phase."""
    recorder = Recorder(trainer.cast.modules)
    enter: Callable[[str], None] = trainer.cast.enter

    def entering(phase: str) -> None:
        recorder.phase = phase
        enter(phase)

    trainer.cast.enter = entering  # type: ignore[method-assign]
    trainer.step(feed.get(trainer.step_count), feed)
    trainer.cast.enter = enter  # type: ignore[method-assign]
    recorder.close()
    return recorder.calls


def bare_step(trainer: Trainer, calls: dict[str, list[Call]], clock: Callable[[], float]) -> float:
    """Replay the passes and optimizer updates of a step; return the seconds they took."""
    seconds = 0.0
    for phase, made in calls.items():
        trainer.cast.enter(phase)
        optimizer = trainer.runners[phase].stepper.optimizer
        inputs = [call.x.clone().requires_grad_(call.x_grad) for call in made]
        synchronize(trainer.world)
        since = clock()
        for call, x in zip(made, inputs, strict=True):
            with torch.set_grad_enabled(call.grad), trainer.world.autocast(trainer.config.train.precision):
                out = call.module(x, call.time, call.cond)
            if call.back:
                torch.autograd.backward(out, call.back[0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(trainer.world)
        seconds += clock() - since
    return seconds


def synchronize(world: World) -> None:
    """Wait for the device."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def measure(recipe: str, batch: int, rounds: int, folder: Path, clock: Callable[[], float]) -> dict[str, Any]:
    """Return the times of full and bare steps of a recipe."""
    world = World()
    trainer, problem = make_trainer(recipe, batch, world)
    trackers = open_trackers(trainer.config, folder, 0)
    full, bare = [], []
    with Feed(problem.data, trainer.config, world) as feed:
        for _ in range(3):
            calls = record(trainer, feed)
        for number in range(rounds + 2):
            synchronize(world)
            since = clock()
            for _ in range(2):
                trainer.step(feed.get(trainer.step_count), feed)
                if trainer.step_count % trainer.config.train.log_every == 0:
                    for tracker in trackers:
                        tracker.log(trainer.step_count, trainer.means.take())
            synchronize(world)
            took = (clock() - since) / 2
            replayed = sum(bare_step(trainer, calls, clock) for _ in range(2)) / 2
            if number >= 2:  # the first rounds warm up
                full.append(took)
                bare.append(replayed)
    for tracker in trackers:
        tracker.close()
    made = [call for phase in calls.values() for call in phase]
    return {
        "recipe": recipe,
        "forwards": len(made),
        "backwards": sum(bool(call.back) for call in made),
        "full": min(full),
        "bare": min(bare),
        "median": median(full) / median(bare),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(SETTINGS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    print(f"0.4 M U-Net, digits 8x8, batch {args.batch}, {torch.get_num_threads()} threads, {args.clock} time")
    print(f"floor 1.00, limit {LIMIT:.2f}")
    print(
        f"{'recipe':12} {'forwards':>8} {'backwards':>9} {'full ms':>8} {'bare ms':>8} {'ratio':>6} {'of medians':>10}"
    )
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(recipe, args.batch, args.rounds, Path(folder), clock)
        ratio = row["full"] / row["bare"]
        print(
            f"{recipe:12} {row['forwards']:8} {row['backwards']:9} {1000 * row['full']:8.1f} {1000 * row['bare']:8.1f} "
            f"{ratio:6.3f} {row['median']:10.3f}{'' if ratio <= LIMIT else '  above the limit'}"
        )


if __name__ == "__main__":
    main()
