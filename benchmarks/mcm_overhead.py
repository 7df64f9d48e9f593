"""What a step of motion-consistency distillation costs beyond the passes and updates it cannot avoid.

    OMP_NUM_THREADS=1 python benchmarks/mcm_overhead.py [--batch 4] [--rounds 8]

A full step is what the loop does with the recipe on the shipped teacher: data, losses, checks, both optimizers and
averages. The bare step replays every pass that one full step made, on the same tensors, with the same gradients sent
back: the networks of student, target and teacher, the decoder of frames, the discriminator, and the gradient penalty's
own; then the same optimizers. Full and bare steps alternate; the ratio is that of the fastest of each, in processor
time of this process, all threads.
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
from PIL import Image
from torch import Tensor, nn

from fewstep.core.cli.main import domain_main
from fewstep.core.training.config import load_config
from fewstep.core.training.feed import Feed
from fewstep.core.training.opened import assemble
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World
from fewstep.video.appearance.discriminator import FrameDiscriminator, feature_penalty
from fewstep.video.domain import DOMAIN

LIMIT = 1.15
CAPTIONS = ("a red disc moves left fast, on white", "a blue ring moves up slowly, on black")


@dataclass
class Pass:
    """One call: what was called, its arguments, whether with gradient, and what came back."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    grad: bool
    penalty: bool = False
    back: list[Tensor] = field(default_factory=list)


def copied(value: Any) -> Any:
    """Return arguments on their own, tensors that asked for gradients still asking."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {name: copied(each) for name, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


class Recorder:
    """Notes the calls of networks, and of the discriminator's halves, while it stands."""

    def __init__(self, trainer: Trainer) -> None:
        self.calls: dict[str, list[Pass]] = {}
        self.phase = ""
        self._undo: list[Callable[[], None]] = []
        roles = trainer.problem.actors.roles
        seen = {*trainer.cast.modules.values(), roles["decoder"]}
        for module in seen:
            if isinstance(module, FrameDiscriminator):
                for name in ("features", "head_logits"):
                    self._wrap(module, name)
            elif isinstance(module, nn.Module):
                self._wrap(module, "forward")

    def _wrap(self, owner: nn.Module, name: str) -> None:
        inner = getattr(owner, name)

        def noted(*args: Any) -> Any:
            # the penalty asks for gradients of features, which are then leaves
            leaves = name == "head_logits" and torch.is_grad_enabled() and all(x.is_leaf for x in args[0])
            leaves = leaves and all(x.requires_grad for x in args[0])
            made = Pass(inner, tuple(copied(each) for each in args), torch.is_grad_enabled(), leaves)
            self.calls.setdefault(self.phase, []).append(made)
            out = inner(*args)
            for each in out if isinstance(out, list) else [out]:
                if each.requires_grad and not leaves:
                    each.register_hook(lambda gradient: made.back.append(gradient.detach().clone()))
            return out

        setattr(owner, name, noted)
        self._undo.append(lambda: delattr(owner, name))

    def close(self) -> None:
        """Stop noting."""
        for undo in self._undo:
            undo()


def record(trainer: Trainer, feed: Feed) -> dict[str, list[Pass]]:
    """Make one full step and return its passes by phase."""
    recorder, enter = Recorder(trainer), trainer.cast.enter

    def entering(phase: str) -> None:
        recorder.phase = phase
        enter(phase)

    trainer.cast.enter = entering  # type: ignore[method-assign]
    trainer.step(feed.get(trainer.step_count), feed)
    trainer.cast.enter = enter  # type: ignore[method-assign]
    recorder.close()
    return recorder.calls


def bare_step(trainer: Trainer, calls: dict[str, list[Pass]]) -> float:
    """Replay the passes and updates of a step; return the processor seconds they took."""
    seconds = 0.0
    for phase, made in calls.items():
        trainer.cast.enter(phase)
        optimizer = trainer.runners[phase].stepper.optimizer
        given = [tuple(copied(each) for each in one.args) for one in made]
        since = time.process_time()
        for one, args in zip(made, given, strict=True):
            with torch.set_grad_enabled(one.grad):
                out = one.call(*args)
                if one.penalty:
                    feature_penalty(out, args[0]).mean().backward()
            if one.back:
                outs = [each for each in (out if isinstance(out, list) else [out]) if each.requires_grad]
                torch.autograd.backward(outs[: len(one.back)], one.back if len(outs) == 1 else one.back[::-1])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.process_time() - since
    return seconds


def make_trainer(folder: Path, batch: int) -> Trainer:
    """Return a trainer of the shipped config on a few samples of the teacher's and pictures."""
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    data = ["--teacher", "world", "--size", "32x32x8", "--data", str(folder / "prompts.txt"), "--sample-steps", "2"]
    if domain_main("video", ["prepare", *data, "--out", str(folder / "latents")]) != 0:
        raise SystemExit("preparing failed")
    (folder / "pictures").mkdir()
    for level in (40, 200):
        Image.new("RGB", (32, 32), (level, 90, 160)).save(folder / "pictures" / f"{level}.png")
    paths = [f"domain.data.path={folder / 'latents'}", f"domain.images.path={folder / 'pictures'}"]
    fixed = ["recipe.self_share=1", "train.steps=1000000"]  # every step draws a sample of its own: the same passes
    config = load_config("motion-consistency-world", [*paths, *fixed, f"train.batch={batch}"], domain=DOMAIN)
    world = World()
    opened = assemble(config, world)
    return Trainer(config, opened.problem, opened.recipe, world)


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    full, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), args.batch)
        with Feed(trainer.problem.data, trainer.config, trainer.world) as feed:
            for _ in range(2):
                calls = record(trainer, feed)
            for _ in range(args.rounds):
                since = time.process_time()
                trainer.step(feed.get(trainer.step_count), feed)
                full.append(time.process_time() - since)
                bare.append(bare_step(trainer, calls))
    made = [one for phase in calls.values() for one in phase]
    ratio = min(full) / min(bare)
    print(f"motion-consistency-world, batch {args.batch}: {len(made)} passes, {sum(bool(m.back) for m in made)} back")
    print(f"full {1000 * min(full):.0f} ms, bare {1000 * min(bare):.0f} ms of processor time: ratio {ratio:.3f}")
    print(f"of medians {median(full) / median(bare):.3f}; limit {LIMIT}{'' if ratio <= LIMIT else ': above it'}")


if __name__ == "__main__":
    main()
