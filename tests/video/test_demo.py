"""The demo from end to end on a handful of clips: every command it shows runs, and it says what it measured."""

from __future__ import annotations

import json

import pytest

from fewstep.core.cli.main import main
from fewstep.video import demo


@pytest.fixture
def small(monkeypatch):
    for name, value in {"CLIPS": 6, "IMAGES": 6, "HELD_OUT": 6, "STEPS": 2, "SAMPLES": 4, "SHOWN": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "TEACHER_STEPS", (3, 2))
    monkeypatch.setattr(demo, "STUDENT_STEPS", (2, 1))


@pytest.mark.slow
def test_the_demo_draws_trains_measures_and_films(small, tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "video", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("$ fewstep video ") == 4
    rows = json.loads((out / "demo.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["sampler"], row["steps"]) for row in rows] == [
        ("teacher", 3),
        ("teacher", 2),
        ("student", 2),
        ("student", 1),
    ]
    assert demo.verdict(rows) in said
    for file in ("clips.png", "clips.mp4", "clips.gif", "report.html", "student/report.html"):
        assert (out / file).is_file()
    again = main(["demo", "video", "--out", str(tmp_path)])
    assert again == 2
    assert capsys.readouterr().err.count("\n") == 1
