"""Five distributions, one namespace, one version; a wheel carries everything its code reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from repo.sources import DOMAINS, PACKAGES, ROOT, metadata

DATA = (".yaml", ".safetensors", ".json", ".html", ".css", ".js", ".md", ".py", "py.typed")


def project(name: str) -> dict:
    return metadata(ROOT / "packages" / name)["project"]


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def test_namespace_has_no_init():
    assert list(ROOT.glob("packages/*/src/fewstep/__init__.py")) == []
    for name in PACKAGES:
        assert [path.name for path in (ROOT / "packages" / name / "src/fewstep").iterdir() if path.is_dir()] == [name]


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    versions = {name: project(name)["version"] for name in PACKAGES}
    versions |= {"root": metadata(ROOT)["project"]["version"], "citation": str(citation["version"])}
    assert len(set(versions.values())) == 1, versions


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_depends_on_this_core_and_on_no_sibling(domain):
    requirements = project(domain)["dependencies"]
    extras = [item for extra in project(domain).get("optional-dependencies", {}).values() for item in extra]
    siblings = [item for item in [*requirements, *extras] if item.startswith("fewstep")]
    assert siblings == [f"fewstep-core=={project('core')['version']}"]
    assert not any("@" in item for item in requirements), (
        "a file URL here breaks the editable install of several packages"
    )


def test_core_depends_on_no_domain_and_on_none_of_their_libraries():
    core = names_of(project("core")["dependencies"])
    assert not any(name.startswith("fewstep") for name in core)
    assert core & {"gsplat", "nerfstudio", "trimesh", "decord", "av"} == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_commands_and_plug_ins(name):
    command, plug_in = ("fewstep", "image") if name == "core" else (f"fewstep-{name}", name)
    assert list(project(name)["scripts"]) == [command]
    assert list(project(name)["entry-points"]["fewstep.domains"]) == [plug_in]


def test_every_requirement_is_pinned():
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    wanted = names_of(metadata(ROOT)["dependency-groups"]["dev"])
    for name in PACKAGES:
        wanted |= names_of(project(name)["dependencies"])
    assert {name for name in wanted if not name.startswith("fewstep")} - pins == set()


@pytest.fixture(scope="module")
def clean_copy(tmp_path_factory) -> Path:
    """The packages without what earlier builds left in them: setuptools would take stale files along."""
    copy = tmp_path_factory.mktemp("checkout") / "packages"
    left = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "packages", copy, ignore=left)
    return copy


@pytest.mark.parametrize("name", PACKAGES)
def test_wheel_holds_code_data_type_marker_and_licence(name, clean_copy, tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "-w", tmp_path, clean_copy / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    src = clean_copy / name / "src"
    expected = {path.relative_to(src).as_posix() for path in src.rglob("*") if path.name.endswith(DATA)}
    assert f"fewstep/{name}/py.typed" in held
    assert expected - held == set()
    assert any(path.endswith("licenses/LICENSE") for path in held)
    assert "fewstep/__init__.py" not in held
