"""Settings of a run: typed dataclasses, and the sections a recipe and a domain add to them.

A run is described by one YAML tree; ``recipe`` and ``domain`` carry a ``name`` and the fields of that recipe's or
domain's own config dataclass. :func:`fewstep.core.training.config.load_config` reads it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import yaml

from fewstep.core.errors import UserError, check, nearest

Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "adam", "radam", "sgd", "adamw8bit"]
TrackerName = Literal["wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """How averaged copies of the roles that ask for one are kept.

    ``constant``: decay per step; ``halflife``: in samples seen; ``power``: the power function of EDM2 (arXiv
    2312.02696, section 3) whose relative width is ``std``. The first two ramp up from no averaging over ``warmup``
    steps.
    """

    kind: Literal["none", "constant", "halflife", "power"] = "constant"
    decay: float = 0.999
    halflife: float = 500_000.0
    std: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(0 <= self.decay < 1, f"ema.decay must lie in [0, 1), got {self.decay}")
        check(self.halflife > 0, f"ema.halflife must be positive (samples), got {self.halflife}")
        check(0 < self.std < 0.28, f"ema.std must lie in (0, 0.28), got {self.std}")
        check(self.warmup >= 0, f"ema.warmup must be at least 0 steps, got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop. ``..._every`` count steps; 0 means never, except for checkpoints, where it means at the end only.

    ``batch`` is the global batch of one step, over all processes. ``micro_batch`` samples go through the networks at
    once; ``auto`` takes the whole share of a process and halves it when memory runs out. ``max_bad_steps``: optimizer
    updates with a non-finite loss or gradient that are skipped before the run stops. ``grad_clip``: largest gradient
    norm, 0 for none. ``sample_steps``: step counts at which the student is shown and measured; empty for the number it
    is trained for. ``teacher_steps``: solver steps of the teacher it is shown beside.
    """

    steps: int = 1000
    batch: int = 64
    micro_batch: int | Literal["auto"] = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    deterministic: bool = False
    ema: EMAConfig = EMAConfig()
    max_bad_steps: int = 0
    grad_clip: float = 0.0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    preview_every: int = 0
    preview_samples: int = 10
    eval_every: int = 0
    eval_samples: int = 1000
    sample_steps: tuple[int, ...] = ()
    teacher_steps: int = 50
    trackers: tuple[TrackerName, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges, and that the micro-batch divides the batch."""
        for name in (
            "steps",
            "batch",
            "keep_checkpoints",
            "log_every",
            "preview_samples",
            "eval_samples",
            "teacher_steps",
        ):
            check(getattr(self, name) >= 1, f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_bad_steps", "grad_clip", "checkpoint_every", "preview_every", "eval_every"):
            check(getattr(self, name) >= 0, f"train.{name} must be at least 0, got {getattr(self, name)}")
        check(
            min(self.sample_steps, default=1) >= 1,
            f"train.sample_steps needs step counts of at least 1, got {list(self.sample_steps)}",
        )
        if self.micro_batch != "auto":
            check(
                self.micro_batch >= 1 and self.batch % self.micro_batch == 0,
                f"train.micro_batch={self.micro_batch} must divide train.batch={self.batch}",
            )


@dataclass(frozen=True, kw_only=True)
class PhaseOptimConfig:
    """What one phase does differently from ``optim``; unset fields follow it."""

    name: OptimizerName | None = None
    lr: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    warmup: int | None = None
    schedule: Literal["constant", "cosine", "linear"] | None = None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer of every phase, with what single phases do differently (``phases.fake_score.lr: 1e-5``).

    Phases that differ in a number share settings under the name without it: ``phases.head.lr`` is that of ``head_0``,
    ``head_1`` and so on, where these have none of their own.

    ``warmup``: updates over which the rate grows linearly from 0. ``schedule``: constant, or down to 0 at the last
    step. ``momentum`` belongs to sgd; ``betas`` and ``eps`` to the others. ``adamw8bit`` keeps its state in 8 bits and
    needs bitsandbytes.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    phases: dict[str, PhaseOptimConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges, and those of every phase."""
        check(self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        check(all(0 <= b < 1 for b in self.betas), f"optim.betas must lie in [0, 1), got {list(self.betas)}")
        check(self.eps > 0, f"optim.eps must be positive, got {self.eps}")
        check(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "warmup"):
            check(getattr(self, name) >= 0, f"optim.{name} must be at least 0, got {getattr(self, name)}")
        for phase in self.phases:
            try:
                self.for_phase(phase)
            except UserError as error:
                raise UserError(str(error).replace("optim.", f"optim.phases.{phase}.", 1)) from None

    def for_phase(self, phase: str) -> OptimConfig:
        """Return the settings of one phase, its own over the common ones."""
        own = self.phases.get(phase) or self.phases.get(unnumbered(phase), PhaseOptimConfig())
        fields = dataclasses.fields(PhaseOptimConfig)
        changes = {f.name: getattr(own, f.name) for f in fields if getattr(own, f.name) is not None}
        return dataclasses.replace(self, phases={}, **changes)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run is made from; ``recipe`` and ``domain`` are the config dataclasses of the two named."""

    name: str
    seed: int
    recipe_name: str
    recipe: Any
    domain_name: str
    domain: Any
    train: TrainConfig
    optim: OptimConfig


def unnumbered(phase: str) -> str:
    """Return the name that numbered phases share: ``head`` of ``head_3``."""
    return re.sub(r"_\d+$", "", phase)


def check_phases(config: RunConfig, phases: Iterator[str] | tuple[str, ...]) -> None:
    """Raise UserError when ``optim.phases`` names a phase the recipe does not have."""
    known = tuple(phases)
    for name in config.optim.phases:
        if name not in {*known, *map(unnumbered, known)}:
            raise UserError(
                f"optim.phases.{name}: recipe '{config.recipe_name}' has no such phase, {nearest(name, known)}"
            )


def plain(value: Any) -> Any:
    """Return a config value as YAML and JSON know it: mappings, lists, numbers, strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def tree(config: RunConfig) -> dict[str, Any]:
    """Return the run's settings as the tree :func:`~fewstep.core.training.config.load_config` reads."""
    phases = {name: {k: v for k, v in plain(one).items() if v is not None} for name, one in config.optim.phases.items()}
    return {
        "name": config.name,
        "seed": config.seed,
        "recipe": {"name": config.recipe_name, **plain(config.recipe)},
        "domain": {"name": config.domain_name, **plain(config.domain)},
        "train": plain(config.train),
        "optim": plain(config.optim) | {"phases": phases},
    }


def dump(config: RunConfig) -> str:
    """Return the resolved settings as YAML; reading it back gives the same config."""
    return yaml.safe_dump(tree(config), sort_keys=False, allow_unicode=True)
