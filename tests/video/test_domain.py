"""The video domain: prompts in, a few-step student of a text-to-video pipeline out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.core.cli.main import domain_main
from fewstep.core.domain import Domain, find_domain
from fewstep.core.training.config import config_names, load_config
from fewstep.video.domain import DOMAIN

TINY = [name for name in config_names(DOMAIN) if name.endswith("-tiny")]


def run(*argv: str) -> int:
    return domain_main("video", argv)


def test_it_is_a_domain():
    assert isinstance(find_domain("video"), Domain)


@pytest.mark.parametrize("name", config_names(DOMAIN))
def test_shipped_configs_are_read(name):
    config = load_config(name, domain=DOMAIN)
    assert config.recipe_name == name.split("-")[0]
    twin = name.removesuffix("-tiny")
    if twin != name:
        assert load_config(twin, domain=DOMAIN).domain.roles.mode == config.domain.roles.mode


def prepared(name: str, folder: Path) -> list[str]:
    """What a config that needs latents is given: samples of its teacher."""
    if not name.startswith("consistency"):
        return []
    prompts, out = folder / "prompts.txt", folder / "prepared"
    prompts.write_text("a paper boat\na red fox\n", encoding="utf-8")
    teacher = load_config(name, domain=DOMAIN).domain.teacher
    assert run("prepare", "--teacher", teacher, "--data", str(prompts), "--sample-steps", "2", "--out", str(out)) == 0
    return [f"domain.data.path={out}"]


@pytest.mark.parametrize("name", [TINY[0], *[pytest.param(name, marks=pytest.mark.slow) for name in TINY[1:]]])
def test_a_tiny_twin_trains_samples_and_exports(name, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "--config", name, "--out", str(out), *prepared(name, tmp_path)) == 0
    assert run("sample", str(out), "--prompt", "a paper boat", "--teacher-steps", "2") == 0
    assert (out / "samples.png").is_file()
    assert run("export", str(out)) == 0
    card = (out / "export" / "README.md").read_text(encoding="utf-8")
    assert "num_frames" in card
    assert capsys.readouterr().out.endswith("export\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["recipe.name=dmd2"], "domain."),
        (["recipe.name=dmd2", "domain.teacher=tiny:sd", "domain.data.prompts=[a]"], "use the domain image"),
        (["recipe.name=dmd2", "domain.teacher=tiny:wan"], "domain.data.path is missing"),
        (
            ["recipe.name=dmd2", "domain.teacher=tiny:wan", "domain.data.prompts=[a]", "domain.model.frames=6"],
            "takes 4k+1 frames",
        ),
    ],
)
def test_mistakes_are_one_line(settings, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "--out", str(out), *settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(out).exists()
