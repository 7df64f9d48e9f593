"""The demo end to end, made small; what it says about its numbers; where it writes."""

from __future__ import annotations

import json

import pytest

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.image import demo
from fewstep.core.image.demo import MEASURE, run_demo, verdicts
from fewstep.core.training.folder import DEMO


def row(sampler: str, steps: int, distance: float) -> dict:
    return {"sampler": sampler, "steps": steps, MEASURE: distance}


TEACHER = [row("teacher", 50, 1.0), row("teacher", 8, 2.0), row("teacher", 4, 5.0), row("teacher", 1, 30.0)]


def test_verdicts_follow_the_numbers():
    good = verdicts([*TEACHER, row("dmd2", 1, 1.5), row("sid", 1, 2.5), row("tdm", 4, 1.9)])
    assert good[0].startswith("best in one step: dmd2 at 1.50; the teacher needs 8 steps for 2.00")
    assert "every student is better" in good[1]
    bad = verdicts([*TEACHER, row("dmd2", 1, 31.0), row("tdm", 4, 6.0), row("tdm", 2, 9.0)])
    assert bad[1].endswith("at the same number of steps: dmd2 (1 step), tdm (4 steps)")


@pytest.fixture
def small(monkeypatch):
    """One step of training and few samples."""
    monkeypatch.setattr(demo, "SETTINGS", (*demo.SETTINGS, "train.steps=1", "train.batch=4"))
    monkeypatch.setattr(demo, "SAMPLES", 24)
    monkeypatch.setattr(demo, "STUDENTS", ("dmd2-digits", "consistency-digits"))


def test_the_demo_writes_a_table_a_picture_and_a_page(small, tmp_path, capsys):
    out = tmp_path / "demo"
    out.mkdir()
    (out / DEMO).write_text("{}")
    (out / "old.txt").write_text("of an earlier demo")
    run_demo(out)
    said = capsys.readouterr().out
    rows = json.loads((out / DEMO).read_text())["rows"]
    asked = [("teacher", steps) for steps in sorted(demo.TEACHER_STEPS, reverse=True)]
    assert [(r["sampler"], r["steps"]) for r in rows[: len(asked) + 1]] == [*asked, ("dmd2", 1)]
    assert {1, 4, 8, 50} <= set(demo.TEACHER_STEPS)
    assert {r["sampler"] for r in rows[len(asked) + 1 :]} == {"consistency"}
    assert all(r["NFE"] == r["steps"] for r in rows)
    assert all(set(r) >= {MEASURE, "ms/image", "class accuracy"} for r in rows)
    assert "best in one step" in said
    assert (out / "samples.png").stat().st_size > 1000
    assert "dmd2-digits/report.html" in (out / "report.html").read_text()
    assert (out / "dmd2-digits" / "report.html").exists()
    assert not (out / "old.txt").exists()


@pytest.mark.slow
def test_from_scratch_trains_the_teacher_first(small, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STUDENTS", ("dmd2-digits",))
    out = tmp_path / "demo"
    run_demo(out, from_scratch=True)
    config = (out / "dmd2-digits" / "config.yaml").read_text()
    assert f"teacher: {out / 'teacher-digits' / 'export'}" in config


def test_a_training_that_fails_stops_the_demo(small, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "STUDENTS", ("dmd2-digits",))
    monkeypatch.setattr(demo, "SETTINGS", ("train.steps=none",))
    with pytest.raises(TrainingError, match="dmd2-digits ended with exit code 2"):
        run_demo(tmp_path / "demo")


def test_what_is_not_a_demo_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than a demo"):
        run_demo(tmp_path)
    with pytest.raises(UserError, match="something else than a demo"):
        run_demo(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot be written"):
        run_demo(tmp_path / "notes.txt" / "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
