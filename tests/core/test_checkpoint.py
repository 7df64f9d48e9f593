"""Checkpoints: what is read is what was written, and anything else is refused with its reason."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core.runs import build, child_environment, config_of, differences, go, newest
from safetensors import SafetensorError

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.training import checkpoint
from fewstep.core.training.checkpoint import (
    Refused,
    Snapshot,
    checkpoints_in,
    is_verified,
    prune,
    read_checkpoint,
    verify,
    write_checkpoint,
)
from fewstep.core.training.lock import RunLock


def snapshot(value: float = 1.0) -> Snapshot:
    tied = torch.arange(6.0)
    tensors = {
        "role.student": {"a": torch.full((2, 3), value), "b": torch.tensor(True), "c": tied, "d": tied[2:]},
        "optimizer.student": {
            "0.step": torch.tensor(3.0),
            "0.exp_avg": torch.rand(4, 2, generator=torch.Generator()).T,
        },
        "recipe": {},
    }
    return Snapshot(tensors, {"note": [1, "x"]})


def test_what_is_read_is_what_was_written(tmp_path):
    written = snapshot()
    path = write_checkpoint(tmp_path, 12, written)
    assert path == tmp_path / "step-12"
    verify(path)
    read = read_checkpoint(path)
    assert read.state == {"format": 1, "step": 12, "note": [1, "x"]}
    assert read.tensors.keys() == written.tensors.keys()
    for file, tensors in written.tensors.items():
        assert read.tensors[file].keys() == tensors.keys()
        for name, value in tensors.items():
            assert read.tensors[file][name].dtype == value.dtype
            assert torch.equal(read.tensors[file][name], value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-12"]


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    order: list[str] = []
    sync, publish, synced_file = checkpoint._sync, checkpoint._publish, os.fsync
    monkeypatch.setattr(checkpoint, "_sync", lambda path: (order.append(path.name), sync(path)))
    monkeypatch.setattr(checkpoint, "_publish", lambda a, b: (order.append("rename"), publish(a, b)))
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), synced_file(handle)))
    write_checkpoint(tmp_path / "all", 3, snapshot())
    files = [f"{name}.safetensors" for name in ("role.student", "optimizer.student", "recipe")]
    tensors = [entry for name in files for entry in (name, "fsync")]
    # tensors, state, manifest, the folder's list of names; then the name; then the list that holds it
    assert order == [*tensors, "fsync", "fsync", ".writing-step-3", "fsync", "rename", "all", "fsync"]


def test_the_newest_are_kept(tmp_path):
    for step in (2, 10, 9, 100):
        write_checkpoint(tmp_path, step, snapshot())
    prune(tmp_path, 2)
    assert [step for step, _ in checkpoints_in(tmp_path)] == [100, 10]
    (tmp_path / "step-x").mkdir()
    (tmp_path / ".deleting-step-3").mkdir()
    (tmp_path / ".writing-step-5").mkdir()
    write_checkpoint(tmp_path, 100, snapshot(2.0))  # over the old one
    assert float(read_checkpoint(tmp_path / "step-100").tensors["role.student"]["a"][0, 0]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-100", "step-x"]


FILE = "role.student.safetensors"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, change) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "truncated": (lambda p: (p / FILE).write_bytes((p / FILE).read_bytes()[:-7]), f"{FILE} is truncated or changed"),
    "flipped": (lambda p: flip(p / FILE), f"{FILE} is damaged: its SHA-256 differs"),
    "state flipped": (lambda p: flip(p / "state.json"), "state.json is damaged"),
    "missing file": (lambda p: (p / FILE).unlink(), f"{FILE} cannot be read"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json: it was never finished"),
    "cut manifest": (lambda p: (p / "manifest.json").write_text('{"files": {'), "manifest.json cannot be read"),
    "odd manifest": (lambda p: (p / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
    "other format": (lambda p: edit(p, lambda m: m.update(format=2)), "format 2 is not one this version reads"),
    "no state": (lambda p: edit(p, lambda m: m["files"].pop("state.json")), "manifest.json lists no state.json"),
    "outside": (
        lambda p: edit(p, lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}})),
        "manifest.json names a file outside the checkpoint",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_reason(tmp_path, kind):
    damage, reason = DAMAGES[kind]
    path = write_checkpoint(tmp_path, 1, snapshot())
    damage(path)
    with pytest.raises(Refused, match=reason):
        verify(path)
    assert not is_verified(path)


@pytest.mark.parametrize("kind", DAMAGES)
def test_resume_goes_back_to_the_newest_that_verifies_and_says_what_it_refused(tmp_path, kind, trained):
    damage, reason = DAMAGES[kind]
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    damage(folder / "checkpoints/step-6")
    outcome, text = go(config_of("train.checkpoint_every=2", "train.keep_checkpoints=9"), folder, resume=True)
    assert outcome.steps == 6
    assert f"step-6 refused: {reason}" in text
    assert "resuming from step-4" in text
    assert differences(newest(folder), newest(trained)) == []


@pytest.fixture(autouse=True)
def fast_disk(request, monkeypatch):
    """Nobody pulls the plug here; the tests of the order of writes and of single checkpoints wait for the disk."""
    if "trained" in request.fixturenames:
        monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    go(config_of("train.checkpoint_every=2", "train.keep_checkpoints=9"), folder)
    return folder


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        (["domain.network.width=8"], "another teacher"),
        (["seed=3"], "seed 0, this run has 3"),
        (["optim.name=sgd"], "it belongs to another run: optimizers"),
        (["train.ema.kind=none"], None),
        (["optim.lr=1.0"], None),
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, trained, override, reason):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = config_of(*override, "train.steps=7")
    if reason is None:
        assert go(config, folder, resume=True)[0].steps == 7
        return
    with pytest.raises(UserError, match=f"no checkpoint can be resumed: step-6 refused: .*{reason}") as caught:
        go(config, folder, resume=True)
    assert "\n" not in str(caught.value)
    assert differences(newest(folder), newest(trained)) == []


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    with pytest.raises(UserError, match="recipe toy, this run has diffusion"):
        go(config_of(recipe="diffusion"), folder, resume=True)


def test_a_checkpoint_with_other_shapes_or_roles_is_refused(trained):
    from fewstep.core.training.trainer import Trainer
    from fewstep.core.training.world import World

    config = config_of()
    trainer = Trainer(config, *build(config), World())
    read = read_checkpoint(trained / "checkpoints/step-6")
    trainer.state.check_fit(read)
    student = dict(read.tensors["role.student"])
    name = next(iter(student))
    changes = {
        f"'{name}' is": {**student, name: student[name][:1]},
        f"has no tensor '{name}'": {key: value for key, value in student.items() if key != name},
        "has a tensor 'extra'": {**student, "extra": student[name]},
    }
    for reason, tensors in changes.items():
        with pytest.raises(Refused, match=reason):
            trainer.state.check_fit(Snapshot({**read.tensors, "role.student": tensors}, read.state))
    without = {file: tensors for file, tensors in read.tensors.items() if file != "role.critic"}
    with pytest.raises(Refused, match="no role 'critic'"):
        trainer.state.check_fit(Snapshot(without, read.state))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")],
)
@pytest.mark.parametrize("function", ["save_file", "_write_json", "_publish"])
def test_a_full_disk_is_said_and_the_old_checkpoint_is_intact(tmp_path, monkeypatch, error, function):
    def full(*args):
        raise error

    config = config_of("train.checkpoint_every=3")
    go(config_of("train.steps=3"), tmp_path / "run")
    before = newest(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, full)
        with pytest.raises(TrainingError, match="step-6: checkpoint not written, the disk is full; step-3 is intact"):
            go(config, tmp_path / "run", resume=True)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]
    assert differences(newest(tmp_path / "run"), before) == []
    assert go(config, tmp_path / "run", resume=True)[0].steps == 6


def test_a_kill_at_any_write_of_a_save_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    """A child is killed before, and half-way through, every write, rename and deletion of a save."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    config = config_of("train.steps=3")
    go(config_of("train.steps=2"), tmp_path / "start")
    go(config, tmp_path / "whole")
    expected = newest(tmp_path / "whole")
    script = Path(__file__).with_name("kill_saves.py")
    command = [sys.executable, script, tmp_path]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True, timeout=300)
    events = json.loads(done.stdout)
    assert len(events) > 20
    assert {name.split()[0] for name in events} == {"save_file", "_write_json", "_sync", "_publish", "_discard"}
    for number, event in enumerate(events):
        folder = tmp_path / f"killed-{number}"
        outcome, text = go(config, folder, resume=True)
        assert outcome.steps == 3, event
        assert "resuming from step-" in text, event
        assert differences(newest(folder), expected) == [], event
        assert not list((folder / "checkpoints").glob(".*")), event


def test_two_runs_in_one_folder_are_refused(tmp_path):
    go(config_of("train.steps=2"), tmp_path / "run")
    with RunLock(tmp_path / "run"), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        go(config_of(), tmp_path / "run", resume=True)
    assert go(config_of(), tmp_path / "run", resume=True)[0].steps == 6


@pytest.mark.parametrize(
    "owner",
    ["", "{", "[]", '{"pid": "x"}', '{"pid": 4194309, "started": 1.0}', f'{{"pid": {os.getpid()}, "started": 1.0}}'],
    ids=["empty", "cut", "list", "odd", "dead", "reused id"],
)
def test_a_stale_lock_is_recognised(tmp_path, owner):
    (tmp_path / "run.lock").write_text(owner)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_believed(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1.0}))
    with (
        pytest.raises(UserError, match="in use by process 1 on elsewhere; when that one is gone, delete"),
        RunLock(tmp_path),
    ):
        pass
