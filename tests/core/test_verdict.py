"""`eval` where a domain can disqualify a student: the mark stands in its row, and the reason below the table."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
from core.runs import build, config_of, go

from fewstep.core.cli import looking
from fewstep.core.training.opened import Opened, draw_teacher
from fewstep.core.training.world import World


@pytest.fixture
def opened(tmp_path, monkeypatch) -> Opened:
    config = config_of("train.sample_steps=[1,3]", "train.steps=1")
    problem, recipe = build(config)
    go(config, tmp_path / "run", problem=problem, recipe=recipe)
    found = Opened(config, problem, recipe, World(), 1)
    monkeypatch.setattr(looking, "open_run", lambda run, world, step=None: found)
    monkeypatch.setattr(looking, "build_report", lambda run: None)
    return found


def asked(tmp_path, *teacher_steps: int) -> Namespace:
    out = tmp_path / "evaluation.json"
    return Namespace(
        run=tmp_path / "run",
        n=6,
        seed=0,
        steps=None,
        teacher_steps=teacher_steps,
        solver="ddim",
        out=out,
        checkpoint=None,
    )


def test_students_are_judged_beside_the_teacher_of_most_steps(opened, tmp_path, capsys):
    told: list[tuple[torch.Tensor, torch.Tensor]] = []

    def verdict(student, teacher):
        told.append((student, teacher))
        return ("frozen", "frozen: it stands still") if len(told) == 1 else ("", "")

    opened.problem.verdict = verdict
    looking.evaluate(asked(tmp_path, 2, 8, 4))
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [row.get("verdict") for row in rows] == ["frozen !", "kept", None, None, None]
    assert "! 1 step: frozen: it stands still" in printed
    assert "! 3 steps" not in printed
    assert [row["steps"] for row in rows] == [1, 3, 2, 8, 4]
    assert torch.equal(told[0][1], told[1][1])
    assert not torch.equal(told[0][0], told[1][0])
    assert torch.equal(told[0][1], draw_teacher(opened, 6, 0, 8).samples)


def test_without_a_teacher_to_compare_with_nobody_is_judged(opened, tmp_path, capsys):
    opened.problem.verdict = lambda student, teacher: ("frozen", "")
    looking.evaluate(asked(tmp_path))
    assert "verdict" not in capsys.readouterr().out
