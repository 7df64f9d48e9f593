"""The nerfstudio plug-in in nerfstudio: trained, resumed, exported and evaluated in an environment of its own."""

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

READY = "FEWSTEP_NERFSTUDIO_PYTHON"
"""An interpreter that has nerfstudio, this checkout and libusb-package already: spares the environment's 8 GB."""
MAKE = "FEWSTEP_NERFSTUDIO"
ROOM = 16e9  # bytes: what is downloaded, and what it becomes
NERFSTUDIO = "nerfstudio==1.1.5"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Iterator[Path]:
    """An interpreter with nerfstudio and this checkout; its environment is removed at once."""
    if READY in os.environ:
        yield Path(os.environ[READY])
        return
    if os.environ.get(MAKE) != "1":
        pytest.skip(f"set {MAKE}=1 to make an environment with nerfstudio (8 GB), or {READY} to use one")
    folder = tmp_path_factory.mktemp("nerfstudio")
    if shutil.disk_usage(folder).free < ROOM:
        pytest.skip(f"nerfstudio's environment needs {ROOM / 1e9:.0f} GB of disk")
    made = run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    assert made.returncode == 0, made.stderr
    program = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (program, "-m", "pip", "--disable-pip-version-check")
    reached = run(*pip, "download", "--quiet", "--no-deps", "--dest", folder, NERFSTUDIO, cwd=folder)
    if reached.returncode != 0:
        pytest.skip(f"{NERFSTUDIO} cannot be had here: {reached.stderr.strip().splitlines()[-1][:200]}")
    left = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "packages", folder / "packages", ignore=left)
    wanted = ("./packages/core", "./packages/threed[nerfstudio]", NERFSTUDIO, "libusb-package")
    installed = run(*pip, "install", "--quiet", *wanted, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    yield program
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(python, tmp_path_factory) -> dict:
    """What a session with nerfstudio came to."""
    folder = tmp_path_factory.mktemp("session")
    program = ROOT / "tests/threed/nerf_session.py"
    done = run(python, program, "solids", folder, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_training_moves_the_scene_and_a_resumed_run_is_the_whole_run(found):
    assert (found["prompt"], found["gaussians"]) == ("a blue sphere", 60)
    assert found["moved"] > 1e-4
    assert found["resumed"] < 1e-6


def test_ns_export_writes_the_gaussians_with_z_up(found):
    assert found["splat"] < 1e-5


def test_ns_eval_measures_against_the_exact_solid(found):
    assert 0 < found["eval"]["psnr"] < 60
    assert 0 <= found["eval"]["silhouette_iou"] <= 1


def test_ns_export_makes_points_and_a_mesh_of_the_fields_surface(found):
    assert found["points"] > 1000
    assert found["points_off"] < 0.1
    assert found["mesh_off"] < 0.15


def test_our_command_takes_the_scene_out_of_a_run(found):
    assert found["command"] == [0, 0, True, "a blue sphere"]
    assert found["kept"] == 0
