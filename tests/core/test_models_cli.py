"""Shipped settings for pipelines, on the command line: what they say, and three steps on a random network of each."""

from __future__ import annotations

import json
import os

import pytest
import yaml
from PIL import Image

from fewstep.core.cli.main import DONE, main
from fewstep.core.image.domain import DOMAIN
from fewstep.core.models.export import LORA_FILE
from fewstep.core.training.config import config_names

TINY = [name for name in config_names(DOMAIN) if name.endswith("-tiny")]
# every family, and every recipe with adapters and with weights of its own
QUICK = (
    "dmd2-sd15-tiny", "consistency-sdxl-tiny", "ladd-sd3-tiny", "consistency-flux-tiny", "tdm-pixart-tiny",
    "scm-sana-tiny",
)  # fmt: skip
# what a random network may need otherwise: sizes, where it comes from, how long it trains
SIZES = {
    "domain.teacher", "domain.model.dtype", "domain.data.source", "domain.data.path", "domain.data.caption",
    "domain.roles.rank", "domain.roles.alpha", "domain.roles.discriminator.width", "domain.neighbours",
    "train.steps", "train.batch", "train.precision", "train.checkpoint_every", "train.preview_every",
    "train.eval_samples", "train.preview_samples", "train.teacher_steps", "optim.warmup",
    "recipe.fake_updates", "recipe.teacher_steps", "recipe.warmup_steps",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Nobody pulls the plug in these tests."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def resolved(name: str, capsys) -> dict:
    """The leaves of what ``--print-config`` says, by dotted key."""
    assert main(["image", "train", "--config", name, "--print-config"]) == DONE

    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(leaves(yaml.safe_load(capsys.readouterr().out)))


@pytest.mark.parametrize("name", TINY)
def test_shipped_settings_parse_and_their_tiny_twins_differ_in_size_only(name, capsys):
    real, tiny = resolved(name.removesuffix("-tiny"), capsys), resolved(name, capsys)
    different = {key for key in real.keys() | tiny.keys() if real.get(key) != tiny.get(key)} - {"name"}
    assert different - SIZES == set()
    assert "domain.teacher" in different
    assert tiny["domain.teacher"].startswith("tiny:")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TINY])
def test_tiny_settings_train(name, tmp_path, capsys):
    assert main(["image", "train", "--config", name, "--out", str(tmp_path / "run")]) == DONE
    assert "3 steps done" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {key: value for key, value in lines[-1].items() if key.startswith("loss/")}
    assert losses
    assert all(value == value and abs(value) < 1e6 for value in losses.values())


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("tdm-sd15-tiny", True),
        pytest.param("dmd2-pixart-tiny", False, marks=pytest.mark.slow),
        pytest.param("scm-sana-tiny", False, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_measured_sampled_and_exported(name, lora, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["image", "train", "--config", name, "--out", "run"]) == DONE
    assert main(["image", "eval", "run", "-n", "20", "--teacher-steps", "1"]) == DONE
    rows = json.loads((tmp_path / "run/evaluation.json").read_text())["rows"]
    assert any("student" in row["sampler"] for row in rows)
    assert any("teacher" in row["sampler"] for row in rows)
    (tmp_path / "prompts.txt").write_text("the digit 3\nthe digit 4\n")
    command = ["image", "sample", "run", "--prompt", "a boat", "--prompts", "prompts.txt", "--out", "out.png"]
    assert main(command) == DONE
    assert Image.open("out.png").size[0] > 0
    assert main(["image", "export", "run"]) == DONE
    card = (tmp_path / "run/export/README.md").read_text()
    assert "Measured after training" in card
    assert (tmp_path / "run/export" / LORA_FILE).is_file() == lora
    assert (tmp_path / "run/export/model_index.json").is_file() != lora
    if not lora:  # a pipeline is a teacher for the next run
        again = ["recipe.name=tdm", "recipe.student_steps=1", "domain.teacher=run", "train.steps=1", "train.batch=2"]
        given = ["domain.data.source=prompts", "domain.data.path=prompts.txt", "train.eval_samples=2"]
        assert main(["image", "train", "--out", "next", *again, *given]) == DONE
    capsys.readouterr()
