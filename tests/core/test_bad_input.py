"""Mistakes of a user: one line that says what and what to do, an exit code, no traceback, nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.core.cli.main import DONE, TRAINING_ERROR, USER_ERROR, main

TINY = ("recipe.name=diffusion", "domain.teacher=", "domain.network.widths=[8]", "train.steps=1", "train.batch=4")
FOLDER = ("domain.data.source=folder", "domain.data.size=8", "domain.data.channels=3", "domain.neighbours=0")


class Refused:
    """Runs a command that must fail, and looks at how it does."""

    def __init__(self, capsys, folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(self, *command: str, code: int = USER_ERROR, leaves: tuple[str, ...] = ()) -> str:
        """Return the one line that was said; nothing but ``leaves`` may be new in the folder."""
        before = sorted(self.folder.rglob("*"))
        self.capsys.readouterr()
        assert main(list(command)) == code
        said = self.capsys.readouterr()
        assert said.out == ""
        lines = said.err.splitlines()
        assert lines[-1].startswith("fewstep: ")
        assert "Traceback" not in said.err
        new = [str(path.relative_to(self.folder)) for path in sorted(self.folder.rglob("*")) if path not in before]
        assert [name for name in new if not name.startswith(leaves)] == [] if leaves else new == []
        return lines[-1]


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Refused(capsys, tmp_path)


def test_unknown_commands_verbs_and_options(refused):
    assert "did you mean 'doctor'?" in refused("docter")
    assert "did you mean 'export'?" in refused("image", "exprot", "x")
    assert "unknown argument '--fast'" in refused("list", "--fast")
    assert "'-3' is not a whole number" in refused("image", "sample", "x", "-n", "-3")
    assert "'x' is not a whole number" in refused("image", "eval", "x", "--steps", "1,x")


def test_unknown_keys_name_the_nearest(refused):
    assert "unknown key 'train.stpes', did you mean 'train.steps'?" in refused("image", "train", *TINY, "train.stpes=3")
    assert "did you mean 'domain.data.size'?" in refused("image", "train", *TINY, "domain.data.siez=3")
    Path("c.yaml").write_text("recipe: {name: diffusion}\ntrian: {steps: 3}\n")
    assert "c.yaml: unknown key 'trian', did you mean 'train'?" in refused("image", "train", "--config", "c.yaml")


def test_wrong_types_and_values_name_the_key(refused):
    assert "train.steps: expected a whole number, got 'many'" in refused("image", "train", *TINY, "train.steps=many")
    assert "train.batch must be at least 1" in refused("image", "train", *TINY, "train.batch=0")
    assert "domain.data.source: expected one of digits" in refused("image", "train", *TINY, "domain.data.source=faces")
    assert "no value given" in refused("image", "train", *TINY, "train.steps")


def test_unknown_recipes_configs_teachers_and_solvers(refused):
    assert "no recipe 'dmd3': did you mean 'dmd2'?" in refused("image", "train", "recipe.name=dmd3")
    line = refused("image", "train", "--config", "teacher-digit")
    assert "no config 'teacher-digit': did you mean 'teacher-digits'?" in line
    assert "no such config file" in refused("image", "train", "--config", "absent.yaml")
    assert "no teacher 'numbers'" in refused("image", "train", "recipe.name=consistency", "domain.teacher=numbers")
    Path("broken.yaml").write_text("recipe: {name: [}\n")
    assert "broken.yaml:1: not valid YAML" in refused("image", "train", "--config", "broken.yaml")


def test_a_config_of_another_domain(refused):
    Path("c.yaml").write_text("recipe: {name: diffusion}\ndomain: {name: video}\n")
    assert "for the domain 'video', not 'image'" in refused("image", "train", "--config", "c.yaml")


def test_missing_and_empty_folders(refused, tmp_path):
    settings = (*TINY, *FOLDER)
    assert "no folder" in refused("image", "train", *settings, "domain.data.path=absent")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("image", "train", *settings, "domain.data.path=empty")
    assert "domain.data.path is missing" in refused("image", "train", *settings)


def pictures(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(noise.integers(0, 255, (9, 10, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_too_many_unreadable_images_stop_the_run(refused, tmp_path):
    folder = pictures(tmp_path / "pictures")
    for index in (2, 3, 4):
        file = folder / f"{index}.png"
        file.write_bytes(file.read_bytes()[:50])
    line = refused("image", "train", *TINY, *FOLDER, f"domain.data.path={folder}", code=TRAINING_ERROR)
    assert "of 8 images cannot be read, more than domain.data.max_bad_share=0.01" in line
    assert ".png" in line


def test_a_few_unreadable_images_are_skipped_and_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder = pictures(tmp_path / "pictures")
    (folder / "3.png").write_bytes(b"no image")
    settings = (*TINY, *FOLDER, f"domain.data.path={folder}", "domain.data.max_bad_share=0.2", "train.batch=16")
    assert main(["image", "train", "--out", "run", *settings]) == DONE
    assert sum("3.png: skipped" in record.getMessage() for record in caplog.records) == 1


def test_odd_image_formats_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "odd"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 255, (12, 12, 4), dtype=np.uint8)
    Image.fromarray(values).save(folder / "alpha.png")
    Image.fromarray(values[..., :3]).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(values[..., 0]).save(folder / "gray.webp")
    Image.fromarray(values[..., 0].astype(np.uint16) * 256).save(folder / "deep.tiff")
    Image.fromarray(values[..., :3]).quantize(16).save(folder / "palette.gif")
    # without classes there is nothing to drop, and the network is unconditional
    settings = (*TINY, *FOLDER, f"domain.data.path={folder}", "domain.data.max_bad_share=0", "recipe.label_dropout=0.1")
    assert main(["image", "train", "--out", "run", *settings]) == DONE


def test_a_prediction_that_does_not_go_with_the_process(refused):
    line = refused("image", "train", *TINY, "domain.process.name=rectified-flow", "domain.process.prediction=eps")
    assert "prediction 'eps' does not go with" in line
    assert "use flow" in line


def test_roles_the_domain_cannot_give(refused):
    assert "start from a teacher and domain.teacher is empty" in refused(
        "image", "train", "recipe.name=consistency", "domain.teacher="
    )


def test_a_batch_that_its_micro_batches_do_not_divide(refused):
    line = refused("image", "train", *TINY, "train.micro_batch=3")
    assert "train.micro_batch=3 must divide train.batch=4" in line


def test_an_existing_run_folder(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "it is not empty" in refused("image", "train", "--out", "run", *TINY)
    (tmp_path / "run" / "config.yaml").write_text("x")
    assert "use `resume run`, or give another --out" in refused("image", "train", "--out", "run", *TINY)


def test_folders_that_are_no_runs(refused):
    for verb in ("resume", "sample", "eval", "export"):
        assert "no run there" in refused("image", verb, "absent")
    assert "no run there" in refused("doctor", "absent")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_to_write(refused, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "Permission denied" in refused("image", "train", "--out", "locked/run", *TINY)


def test_a_place_where_nothing_can_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused("image", "train", "--out", "file/run", *TINY)
    assert "give another --out" in line
    assert "is a file" in refused("image", "train", "--out", "file", *TINY)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["image", "train", "--out", "run", *TINY]) == DONE
    return tmp_path / "run"


def test_outputs_that_cannot_be_written(run, refused, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "choose another --out" in refused("image", "sample", "run", "-n", "1", "--out", "file/s.png")
    assert "choose another --out" in refused("image", "export", "run", "--steps", "2", "--out", "file/e")


def test_a_run_whose_checkpoints_are_damaged(run, refused):
    (file,) = run.glob("checkpoints/*/role.student.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    line = refused("image", "sample", "run", "-n", "1")
    assert "no checkpoint to load" in line
    assert "step-1" in line
