"""Numbers and pictures of a run reach every tracker; progress is readable with and without a terminal."""

from __future__ import annotations

import io
import json
import sys
import types

import pytest
from core.runs import config_of, go
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.core.errors import UserError
from fewstep.core.training import trackers
from fewstep.core.training.progress import Progress, clock
from fewstep.core.training.settings import tree
from fewstep.core.training.trackers import JsonLines, open_trackers, read_metrics


def test_metrics_are_json_lines_with_null_for_what_is_not_finite(tmp_path):
    tracker = JsonLines(tmp_path, 0)
    tracker.log(1, {"a": 1.5, "b": float("nan")})
    tracker.log(3, {"a": float("inf")})
    tracker.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "a": 1.5, "b": None}, {"step": 3, "a": None}]
    JsonLines(tmp_path, 2).close()
    assert read_metrics(tmp_path) == lines[:1]


def test_tensorboard_has_scalars_and_pictures(tmp_path):
    go(config_of("train.preview_every=6", "train.log_every=3"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = events.Scalars("loss/critic/denoising")
    assert [event.step for event in scalars] == [3, 6]
    logged = [line["loss/critic/denoising"] for line in read_metrics(tmp_path / "run")]
    assert [event.value for event in scalars] == pytest.approx(logged, rel=1e-6)
    assert [event.step for event in events.Images("preview")] == [0, 6]


class FakeService(types.ModuleType):
    """Stands in for wandb or trackio: remembers what it was told."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **settings):
        self.calls.append(("init", settings))
        return self

    def log(self, values, step):
        self.calls.append(("log", step, sorted(values)))

    def Image(self, path):
        return path

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_told_when_asked_for(tmp_path, monkeypatch, name):
    service = FakeService(name)
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    config = config_of(f"train.trackers=[{name}]", "train.preview_every=6", "train.log_every=6", "name=mine")
    go(config, tmp_path / "run")
    kinds = [call[0] for call in service.calls]
    assert kinds == ["init", "log", "log", "log", "finish"]  # two previews, one report
    assert service.calls[0][1]["config"] == tree(config)
    assert "mine" in service.calls[0][1]["name"]
    assert [call[1] for call in service.calls if call[0] == "log"] == [0, 6, 6]


def test_a_service_that_is_not_installed_is_said_before_anything_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'wandb' is not installed: pip install wandb"):
        go(config_of("train.trackers=[wandb]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_what_is_asked_for_is_opened(tmp_path):
    found = open_trackers(config_of(), tmp_path, 0)
    assert [type(tracker).__name__ for tracker in found] == ["JsonLines", "TensorBoard"]
    for tracker in found:
        tracker.close()


def test_plain_lines_without_a_terminal(tmp_path):
    _, text = go(config_of("train.log_every=3", "name=mine"), tmp_path / "run")
    first, second = text.splitlines()
    assert first.startswith("mine: step 3/6  critic/denoising ")
    assert second.startswith("mine: step 6/6  ")
    assert second.endswith("ETA 0:00")
    assert "\r" not in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    progress = Progress("mine", 2, 10, stream)
    for step in range(3, 11):
        progress.step()
        progress.report(step, {"loss/student/match": 0.125, "lr/student": 1.0})
    progress.say("done with it")
    progress.close()
    text = stream.getvalue()
    assert "10/10" in text
    assert "student/match 0.125" in text
    assert "mine: done with it\n" in text


def test_quiet_on_other_processes(capsys):
    progress = Progress("mine", 0, 3, None)
    progress.step()
    progress.report(1, {})
    progress.say("x")
    progress.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0:00"), (59.6, "1:00"), (61.0, "1:01"), (3661.0, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_previews_show_the_teacher_above_the_student(tmp_path):
    go(config_of("train.preview_every=3", "train.preview_samples=5", "train.sample_steps=[1,2]"), tmp_path / "run")
    pictures = sorted((tmp_path / "run/previews").iterdir())
    assert [path.name for path in pictures] == ["step-0000000.png", "step-0000003.png", "step-0000006.png"]
    rows = []
    for path in pictures:
        with Image.open(path) as image:
            assert image.size == (4, 15)  # three rows of five vectors of four
            rows.append([image.crop((0, 5 * i, 4, 5 * i + 5)).tobytes() for i in range(3)])
    assert rows[0][0] == rows[1][0] == rows[2][0]  # the teacher does not move
    assert rows[0][1] != rows[2][1]
