"""The sources of the five packages as the tests of this folder see them."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = ("video", "threed", "restoration", "lidar")
PACKAGES = ("core", *DOMAINS)


@dataclass(frozen=True)
class Source:
    """One parsed file: ``path`` from the root of the repository, ``module`` as one imports it."""

    path: str
    module: str
    text: str
    tree: ast.Module


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file under packages/*/src."""
    found = []
    for package in PACKAGES:
        src = ROOT / "packages" / package / "src"
        for file in sorted(src.rglob("*.py")):
            parts = file.relative_to(src).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text(encoding="utf-8")
            found.append(Source(file.relative_to(ROOT).as_posix(), module, text, ast.parse(text)))
    return tuple(found)


def imports_of(tree: ast.AST) -> list[tuple[int, str]]:
    """Every imported name with its line: ``from a import b`` counts as ``a.b``, wherever in the file it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names]
    return found


def metadata(folder: Path) -> dict:
    """The parsed pyproject.toml of a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
