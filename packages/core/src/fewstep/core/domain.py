"""What a domain plugs in: where samples come from, who the teacher is, how one looks at a student.

A domain is found through the entry-point group ``fewstep.domains``; installing its package is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, nearest
from fewstep.core.process import Process
from fewstep.core.recipe import Actors, Batch, RoleSpec, StepPlan
from fewstep.core.rng import Rng


@runtime_checkable
class DataSource(Protocol):
    """Clean samples and conditions; a batch is a function of the step, so a resumed run needs no loader state."""

    def __len__(self) -> int:
        """Return the number of samples (0 for endless, data-free sources)."""

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the samples of ``rng.ids`` at ``rng.step``: deterministic, whatever ran before."""


SampleFn = Callable[[int], tuple[Tensor, Cond]]
"""Draws ``n`` samples under evaluation conditions: returns the samples "n *d" and their conditions."""


@dataclass(frozen=True)
class Seen:
    """What a domain says of a preview: ``lines`` for whoever follows the run, ``values`` for its trackers."""

    lines: Sequence[str] = ()
    values: Mapping[str, float] = field(default_factory=dict)


Watch = Callable[[int, Sequence[tuple[str, Tensor]], Mapping[str, float]], Seen]
"""Looks at a preview's labelled rows of samples "n *d", on the CPU, after a step, beside the newest numbers logged and
``guidance_scale``, the greatest of training; TrainingError where the run must stop."""

Export = Callable[[Any, StepPlan, Path, Mapping[str, Any]], None]
"""Writes a student: the denoiser, or for domains that generate samples themselves the module of that role."""


@dataclass
class Problem:
    """A domain's answer to a config: the actors a recipe needs, data, and ways of looking at the student."""

    actors: Actors
    data: DataSource
    conditions: Callable[[int, int], Cond]
    """Evaluation conditions: ``(n, seed)`` to a condition of ``n`` samples on the CPU, balanced and fixed."""
    evaluate: Callable[[Tensor, Cond], dict[str, float]]
    """Metrics of samples "n *d" made under conditions, both on the CPU, against the domain's reference."""
    render: Callable[[Sequence[tuple[str, Tensor]], Path], Path]
    """Writes labelled rows of samples as one picture next to the given stem; returns the file written."""
    export: Export
    """Writes the student as a standard artefact into a folder; the mapping goes into its card."""
    export_as: Mapping[str, Export] = field(default_factory=dict)
    """Other forms of the artefact by name, where the domain knows more than one."""
    from_text: Callable[[Sequence[str]], Cond] | None = None
    """Conditions of prompts a user gives, where the domain is conditioned on text."""
    parts: Mapping[str, tuple[int, bool]] = field(default_factory=dict)
    """Components of the teacher besides its network: bytes of their weights, and whether they stay in memory while
    networks train; on the device ``meta`` only."""
    watch: Watch | None = None
    """Called at every preview, after it is written: what is wrong with the student, in words and numbers."""
    verdict: Callable[[Tensor, Tensor], tuple[str, str]] | None = None
    """What disqualifies a student's samples beside a teacher's, whatever its metrics: a word ("" for nothing), and why.
    """
    notes: dict[str, str] = field(default_factory=dict)
    """Facts for the report: the metric's protocol, the teacher's origin."""


@runtime_checkable
class Domain(Protocol):
    """A domain plug-in; ``config_type`` is a dataclass, ``configs`` the folder of its shipped YAML files."""

    name: str
    summary: str
    config_type: type
    configs: Path

    def build(self, config: Any, specs: Sequence[RoleSpec], seed: int, device: torch.device | str) -> Problem:
        """Return the problem with every role of ``specs`` built; UserError for what the domain cannot give."""

    def process(self, config: Any) -> Process:
        """Return the process of the configured teacher without loading it."""


def domain_names() -> list[str]:
    """Return the names of the installed domains (entry-point group ``fewstep.domains``)."""
    return sorted({point.name for point in entry_points(group="fewstep.domains")})


def find_domain(name: str) -> Domain:
    """Return an installed domain; UserError naming the nearest one when there is none of that name."""
    for point in entry_points(group="fewstep.domains"):
        if point.name == name:
            found: Domain = point.load()
            return found
    raise UserError(f"no domain '{name}' is installed: {nearest(name, domain_names())}")
