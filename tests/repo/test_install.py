"""One domain alone, installed into an empty virtual environment: nothing of the others comes along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo.sources import ROOT

pytestmark = pytest.mark.slow

ABSENT = (
    "fewstep.video",
    "fewstep.threed",
    "fewstep.restoration",
    "gsplat",
    "nerfstudio",
    "trimesh",
    "decord",
    "av",
    "pytest",
)
PRESENT = ("fewstep.core", "fewstep.lidar", "torch", "diffusers")
PROBE = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        found[name] = False
print(json.dumps(found))
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the repository without what earlier builds left in it."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    left = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "packages", copy / "packages", ignore=left)
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def environment(tmp_path) -> Iterator[Path]:
    """The folder of programs of an empty virtual environment; removed at once, it takes more than a gigabyte."""
    created = run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    assert created.returncode == 0, created.stderr
    yield tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    shutil.rmtree(tmp_path / "venv")


@pytest.mark.parametrize(
    "requirements", [("./packages/core", "./packages/lidar"), (".[lidar]",)], ids=["folders", "extra"]
)
def test_one_domain_alone(requirements, checkout, environment, tmp_path):
    python = environment / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    installed = run(*pip, "install", "--quiet", "-c", "constraints.txt", *requirements, cwd=checkout)
    assert installed.returncode == 0, installed.stderr
    checked = run(*pip, "check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout

    found = json.loads(run(python, "-c", PROBE, *ABSENT, *PRESENT, cwd=tmp_path).stdout)
    assert found == {name: name in PRESENT for name in (*ABSENT, *PRESENT)}

    listed = run(environment / "fewstep", "list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "image" in listed.stdout
    assert "lidar" in listed.stdout
    assert "threed" not in listed.stdout

    street = ("simulate", "streets", "--scans", "1", "--beams", "16", "--azimuth-step", "1")
    simulated = run(environment / "fewstep-lidar", *street, cwd=tmp_path)
    assert simulated.returncode == 0, simulated.stderr
    scan = "streets/sequences/00/velodyne/000000.bin"
    completed = run(
        environment / "fewstep",
        "lidar",
        "complete",
        scan,
        "-o",
        "dense.ply",
        "--points",
        "5000",
        "--refine",
        cwd=tmp_path,
    )
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "dense.ply").stat().st_size > 50_000
