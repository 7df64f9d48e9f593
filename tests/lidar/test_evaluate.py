"""`fewstep lidar evaluate`: the numbers it prints and writes are those of the metrics, called by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lidar.scene_bed import TINY, denoiser_folder, lidar, one_line, points_in

from fewstep.lidar.data.crops import ground_truth
from fewstep.lidar.data.maps import load_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.metrics.scores import PROTOCOL, Scores
from fewstep.lidar.streets import make_streets

QUICK = ("--emd-points", "64", "--points", "400")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    plan = {"times": [999.0], "mode": "renoise", "extras": {}}
    return denoiser_folder(tmp_path_factory.mktemp("networks") / "student", sampling=plan)


@pytest.fixture
def drive(tmp_path) -> Path:
    return Path(shutil.copytree(make_streets(TINY, 0.1) / "sequences" / "02", tmp_path / "02"))


def by_hand(drive: Path, clouds: dict[int, np.ndarray]) -> Scores:
    sequence, points = open_sequence(drive), load_map(drive)
    scores = Scores(emd_points=64)
    for i, cloud in clouds.items():
        scores.update(cloud, ground_truth(points, sequence.pose(i), sequence.scan(i).xyz, max_range=50))
    return scores


def test_the_numbers_are_those_of_the_completions(student, drive, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "deep" / "numbers.json"
    assert lidar("complete", drive, "-o", out, "--model", student, "--every", "2", "--points", "400") == 0
    capsys.readouterr()
    assert lidar("evaluate", drive, "--model", student, "--every", "2", "--json", file, *QUICK) == 0
    said = capsys.readouterr().out
    found = json.loads(file.read_text())
    wanted = by_hand(drive, {i: points_in(out / f"{i:06d}.ply") for i in (0, 2)})
    assert found["scans"] == 2
    assert found["scores"] == json.loads(json.dumps(wanted.table()["scores"]))
    assert found["per_scan"] == [dict(scan) for scan in wanted.scans]
    assert found["protocol"] == PROTOCOL
    assert PROTOCOL in said
    assert "2 scans of" in said
    assert "1 step by its own plan" in found["about"]
    assert found["evaluations"] == 1
    assert found["seconds"]["all"] > 0
    assert "seconds per scan" in said
    assert f"{found['scores']['chamfer_m']['mean']:.4g}"[:5] in said


def test_guidance_costs_two_evaluations_a_step(student, drive, tmp_path):
    file = tmp_path / "numbers.json"
    run = ("evaluate", drive, "--model", student, "--scans", "1", "--json", file, *QUICK)
    assert lidar(*run, "--cond-weight", "2", "--steps", "3") == 0
    assert json.loads(file.read_text())["evaluations"] == 6


def test_the_scan_itself_is_a_baseline(drive, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    assert lidar("evaluate", drive, "--model", "scan", "--json", file, "--legacy", *QUICK) == 0
    assert "the scan itself" in capsys.readouterr().out
    found = json.loads(file.read_text())["scores"]
    sequence = open_sequence(drive)
    raw = [sequence.scan(i).xyz for i in range(3)]
    wanted = by_hand(drive, {i: xyz[np.linalg.norm(xyz, axis=1) < 50] for i, xyz in enumerate(raw)}).table()["scores"]
    assert {name: found[name] for name in wanted} == json.loads(json.dumps(wanted))
    assert {"legacy_rmse_m", "legacy_iou_0.5m"} <= set(found)


def broken(drive: Path, how: str) -> str:
    """Break a sequence; returns what is to be said of it."""
    poses = (drive / "poses.txt").read_text().splitlines(keepends=True)
    if how == "no poses":
        (drive / "poses.txt").unlink()
        return "poses.txt: poses cannot be read"
    if how == "few poses":
        (drive / "poses.txt").write_text("".join(poses[:2]))
        return "2 poses for 3 scans"
    if how == "no rotation":
        lines = (drive / "calib.txt").read_text().splitlines()
        (drive / "calib.txt").write_text("\n".join(line.replace("Tr: ", "Tr: 2") for line in lines))
        return "'Tr': its 3x3 part is no rotation"
    if how == "no map":
        (drive / "map_clean.npy").unlink()
        return "no map there; make it with `fewstep lidar build-maps`"
    if how == "far map":
        np.save(drive / "map_clean.npy", np.load(drive / "map_clean.npy") + np.float32(10_000))
        return "nothing of the map lies in the scan's view"
    assert how == "no scans"
    shutil.rmtree(drive / "velodyne")
    return "no scans of the layout"


@pytest.mark.parametrize("how", ["no poses", "few poses", "no rotation", "no map", "far map", "no scans"])
def test_a_sequence_that_cannot_be_scored_is_refused_in_one_line(how, student, drive, tmp_path, capsys):
    said = broken(drive, how)
    assert lidar("evaluate", drive, "--model", student, "--json", tmp_path / "x.json", *QUICK) == 2
    one_line(capsys.readouterr().err, said)
    assert not (tmp_path / "x.json").exists()


def test_a_bad_scan_is_skipped_and_the_exit_code_says_so(student, drive, tmp_path, capsys):
    (drive / "velodyne" / "000001.bin").write_bytes(b"\0" * 33)
    file = tmp_path / "numbers.json"
    assert lidar("evaluate", drive, "--model", student, "--json", file, *QUICK) == 3
    said = capsys.readouterr()
    one_line(said.err, "1 of 3 scans skipped", "000001.bin: 33 bytes")
    assert json.loads(file.read_text())["scans"] == 2
    assert "2 scans of" in said.out


def test_labels_of_another_number_are_refused_where_they_are_used(drive, capsys):
    (drive / "labels" / "000001.label").write_bytes(b"\0" * 8)
    assert lidar("build-maps", drive, "--force") == 2
    one_line(capsys.readouterr().err, "000001.label: 8 bytes are not the labels of the")


def test_declared_columns_are_read(student, drive, tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(drive, wide)
    for file in (wide / "velodyne").iterdir():
        rows = np.fromfile(file, "<f4").reshape(-1, 4)
        np.concatenate([rows, rows[:, :1]], 1).tofile(file)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for folder, file, extra in ((drive, files[0], ()), (wide, files[1], ("--fields", "x,y,z,remission,ring"))):
        assert lidar("evaluate", folder, "--model", student, "--scans", "1", "--json", file, *extra, *QUICK) == 0
    assert json.loads(files[0].read_text())["scores"] == json.loads(files[1].read_text())["scores"]


def test_json_that_cannot_be_written_is_said_before_the_work(student, drive, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = ("evaluate", drive, "--model", student, "--scans", "1", *QUICK)
    assert lidar(*run, "--json", tmp_path / "file" / "x.json") == 2
    said = capsys.readouterr()
    one_line(said.err, "--json", "cannot be written")
    assert said.out == ""
