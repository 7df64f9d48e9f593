"""Training a recipe of orbits outside a run: the loop that the shipped weights were made with, and tests use."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewstep.core.domain import DataSource
from fewstep.core.errors import TrainingError
from fewstep.core.recipe import Recipe
from fewstep.core.rng import Rng

WARMUP = 50  # steps
CLIP = 1.0  # norm of the gradients


def fit(
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    data: DataSource,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int = 0,
    ema: float = 0.995,
    start: int = 0,
    phase: str | None = None,
    every: int = 0,
) -> list[float]:
    """Train what each due phase trains with AdamW, the rate falling as a cosine; return the losses of the steps.

    modules: of the roles by name; they end with the averages over the training of their weights. phase: train that one
    alone. Raises TrainingError at a loss that is not finite.
    """
    phases = [each for each in recipe.phases(recipe.config) if phase in (None, each.name)]
    trained = {name: modules[name] for each in phases for name in each.trains}
    for name in trained:
        trained[name].train()
    weights = [p for module in trained.values() for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    average = [p.detach().clone() for p in weights]
    losses: list[float] = []
    began = time.process_time()
    for step in range(start, start + steps):
        done = step - start
        falling = 0.5 * (1 + math.cos(math.pi * done / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (done + 1) / WARMUP) * (0.05 + 0.95 * falling)
        for each in phases:
            if not each.due(step) and phase is None:
                continue
            rng = Rng.for_batch(seed, step, batch)
            terms = recipe.loss(each.name, data.batch(rng, "cpu"), rng.fork(each.name), step)
            total = terms.total().mean()
            if not bool(total.isfinite()):
                raise TrainingError(f"{recipe.name}: the loss of step {step} is {float(total)}: lower the rate")
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            losses.append(float(total.detach()))
            if every and done % every == 0:
                _tell(recipe.name, each.name, step, terms.terms, losses[-every:], time.process_time() - began)
        _average(average, weights, min(ema, (done + 1) / (done + 10)))
    with torch.no_grad():
        for kept, live in zip(average, weights, strict=True):
            live.copy_(kept)
    for module in trained.values():
        module.eval()
    return losses


def _average(average: Sequence[Tensor], live: Sequence[Tensor], decay: float) -> None:
    with torch.no_grad():
        for kept, now in zip(average, live, strict=True):
            kept.lerp_(now, 1 - decay)


def _tell(
    recipe: str, phase: str, step: int, terms: Mapping[str, Tensor], last: Sequence[float], seconds: float
) -> None:
    parts = ", ".join(f"{name} {float(value.detach().mean()):.4f}" for name, value in terms.items())
    mean = sum(last) / len(last)
    sys.stdout.write(f"{recipe}/{phase} {step}: {mean:.4f} ({parts}) {seconds:.0f} s of CPU\n")
    sys.stdout.flush()
