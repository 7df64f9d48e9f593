"""The nerfstudio plug-in in nerfstudio: trained, resumed, exported and evaluated in an environment of its own.

That environment is made for it, in minutes, and removed again; where the disk or the registry does not give it, the
tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repo.sources import PACKAGES, ROOT

pytestmark = pytest.mark.slow

SWITCH = "FEWSTEP_NERFSTUDIO"
READY = "FEWSTEP_NERFSTUDIO_PYTHON"
"""An interpreter that has nerfstudio, libusb-package and fewstep's entry points: spares making the environment."""
PINS = ROOT / "tests/threed/nerf_constraints.txt"
ROOM = 13e9  # bytes: what is downloaded, and what it becomes
PATIENCE = 1200.0  # seconds for the packages; the session is done in a fraction of it


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program without this environment's sources, and with its temporary files in ``cwd``."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd), **more}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, env=clean, start_new_session=True, **pipes) as program:
        try:
            out, err = program.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)  # what builds packages too: it would write on while all is removed
            raise
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["no word of it"])[-1][:300]


def made(folder: Path) -> Path:
    """Make an environment with nerfstudio and this checkout; skips where its packages cannot be had."""
    if shutil.disk_usage(folder).free < ROOM:
        pytest.skip(f"nerfstudio's environment needs {ROOM / 1e9:.0f} GB of disk in {folder}")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
    (pin,) = [line for line in PINS.read_text(encoding="utf-8").splitlines() if line.startswith("nerfstudio==")]
    asked = ("--retries", "1", "--timeout", "20", "--no-deps", "--dest", folder / "asked", pin)
    reached = run(*pip, "download", *asked, cwd=folder)
    if reached.returncode != 0:
        pytest.skip(f"{pin} cannot be had here: {last_error(reached)}")

    left = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "packages", folder / "packages", ignore=left)
    ours = ("./packages/core", "./packages/threed")
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheels", *ours, cwd=folder)
    assert built.returncode == 0, built.stderr
    core, threed = sorted(map(str, (folder / "wheels").glob("*.whl")))

    empty = run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    assert empty.returncode == 0, empty.stderr
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    into = (python, *pip[1:], "install", "-c", PINS)
    try:
        installed = run(*into, core, f"{threed}[nerfstudio]", "libusb-package", cwd=folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{pin} and what it needs were not there after {PATIENCE / 60:.0f} minutes")
    # a requirement of ours that nerfstudio's do not allow is our mistake; a package that cannot be had is not
    assert "ResolutionImpossible" not in installed.stderr, installed.stderr[-3000:]
    if installed.returncode != 0:
        pytest.skip(f"what {pin} needs cannot be had here: {last_error(installed)}")
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """An interpreter with nerfstudio and this checkout, and what its environment lacks; removed at once if made."""
    if os.environ.get(SWITCH) == "0":
        pytest.skip(f"{SWITCH}=0")
    if READY in os.environ:
        sources = os.pathsep.join(str(ROOT / "packages" / name / "src") for name in PACKAGES)
        yield Path(os.environ[READY]), {"PYTHONPATH": sources}
        return
    folder = tmp_path_factory.mktemp("nerfstudio")
    try:
        yield made(folder), {}
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(python, tmp_path_factory) -> dict:
    """What a session with nerfstudio came to."""
    program, more = python
    folder = tmp_path_factory.mktemp("session")
    session = ROOT / "tests/threed/nerf_session.py"
    done = run(program, "-X", "faulthandler", session, "solids", folder, cwd=folder, **more)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return report


def test_ns_train_lists_our_methods(found):
    assert found["listed"] == ["fewstep-sds", "fewstep-csd", "fewstep-vsd"]


def test_training_moves_the_scene_and_a_resumed_run_is_the_whole_run(found):
    assert found["gaussians"] == 60
    assert found["moved"] > 1e-3
    assert found["resumed"] < 1e-6


def test_a_resumed_run_trains_the_critic_on_too(found):
    assert found["critic_moved"] > 1e-4
    assert found["field_resumed"] < 1e-6


def test_the_first_step_is_adams_at_the_methods_rate(found):
    assert found["first_step"] == pytest.approx(1e-2, rel=1e-3)


def test_ns_export_writes_the_gaussians_with_z_up(found):
    assert found["splat"] < 1e-5


def test_ns_eval_measures_against_the_exact_solid(found):
    assert 0 < found["eval"]["psnr"] < 60
    assert 0 <= found["eval"]["silhouette_iou"] <= 1


def test_ns_export_makes_points_and_meshes_of_the_fields_surface(found):
    assert found["points"] > 1000
    assert found["points_off"] < 0.06
    assert found["meshes_off"]["tsdf_mesh.ply"] < 0.08
    assert found["meshes_off"]["tsdf.obj"] < 0.08
    # Poisson's surface closes what points leave open
    assert found["meshes_off"]["poisson_mesh.ply"] < 0.2
    assert found["meshes_off"]["mesh.obj"] < 0.2
    assert found["cameras"] == 12


def test_our_command_takes_the_scene_out_of_a_run(found):
    assert found["asset"] == [0, "a blue sphere", "a blue sphere", 0]
    assert found["glb"] == [0, True]


def test_mistakes_are_said_in_one_line(found):
    assert found["by_rays"].startswith("UserError: Gaussians are seen by cameras, not by rays")
    assert found["data"].startswith("UserError: --data: scenes are distilled from a teacher and a prompt")
    assert found["teacher"].startswith("UserError: no teacher ")
    assert not any("\n" in found[name] for name in ("by_rays", "data", "teacher"))
