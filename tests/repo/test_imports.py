"""Imports point downward, never sideways, and `import fewstep.core` stays light."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from repo.sources import DOMAINS, ROOT, Source, imports_of, sources

HEAVY = (
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "kornia",
    "sklearn",
    "skimage",
    "tensorboard",
    "jsonargparse",
)
DOMAIN_ONLY = ("gsplat", "nerfstudio", "trimesh", "decord", "av")


def layers() -> dict[str, int]:
    """The order of core's modules, as docs/architecture.md states it."""
    table: dict[str, int] = {}
    for line in (ROOT / "docs/architecture.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| *(\d+) *\|([^|]*)\|", line)
        if row:
            table |= {name.rstrip("/"): int(row[1]) for name in re.findall(r"`([a-z_]+/?)`", row[2])}
    return table


def core_unit(name: str) -> str | None:
    """The top-level part of core an imported or importing name belongs to; None outside core and for core itself."""
    parts = name.split(".")
    return parts[2] if parts[:2] == ["fewstep", "core"] and len(parts) > 2 else None


def core_edges() -> list[tuple[Source, int, str, str]]:
    edges = []
    for source in sources():
        unit = core_unit(source.module)
        for line, name in imports_of(source.tree):
            target = core_unit(name)
            if unit and target and target != unit:
                edges.append((source, line, unit, target))
    return edges


def test_architecture_lists_every_part_of_core():
    parts = {core_unit(source.module) for source in sources()} - {None}
    assert parts - layers().keys() == set(), "missing in the layer table of docs/architecture.md"


def test_core_imports_only_downward():
    table = layers()
    wrong = [
        f"{source.path}:{line} {unit} (layer {table[unit]}) imports {target} (layer {table.get(target)})"
        for source, line, unit, target in core_edges()
        if unit in table and table.get(target, 99) > table[unit]
    ]
    assert wrong == []


def test_core_has_no_import_cycle():
    graph: dict[str, set[str]] = {}
    for _, _, unit, target in core_edges():
        graph.setdefault(unit, set()).add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_core_imports_no_domain_and_domains_import_only_core():
    wrong = []
    for source in sources():
        own = source.module.split(".")[1]
        forbidden = [f"fewstep.{domain}" for domain in DOMAINS if domain != own]
        for line, name in imports_of(source.tree):
            if any(f"{name}.".startswith(f"{other}.") for other in forbidden):
                wrong.append(f"{source.path}:{line} {name}")
            if own == "core" and name.split(".")[0] in DOMAIN_ONLY:
                wrong.append(f"{source.path}:{line} {name} belongs to a domain")
            if name.startswith("."):
                wrong.append(f"{source.path}:{line} relative import")
    assert wrong == []


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_core_loads_no_large_library():
    assert loaded_by("import fewstep.core") & {*HEAVY, *DOMAIN_ONLY} == set()


@pytest.mark.parametrize("domain", DOMAINS)
def test_importing_a_domain_loads_no_large_library(domain):
    loaded = loaded_by(f"import fewstep.{domain}.domain, fewstep.{domain}.cli")
    assert loaded & {*HEAVY, *DOMAIN_ONLY} == set()
