"""`fewstep lidar complete`: a file, a folder, a sequence; what is there stays, what is bad is named."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from lidar.cloud_bed import ply
from lidar.scene_bed import TINY, denoiser_folder, lidar, nothing_half_written, one_line, points_in, refiner_folder

from fewstep.lidar.streets import make_streets

SMALL = ("--points", "400")
PLAN = {"times": [999.0], "mode": "renoise", "extras": {}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return denoiser_folder(tmp_path_factory.mktemp("networks") / "teacher")


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return denoiser_folder(tmp_path_factory.mktemp("networks") / "student", sampling=PLAN)


@pytest.fixture(scope="module")
def drive() -> Path:
    return make_streets(TINY, 0.1) / "sequences" / "02"


@pytest.fixture
def folder(drive, tmp_path) -> Path:
    shutil.copytree(drive / "velodyne", tmp_path / "scans")
    return tmp_path / "scans"


def test_a_file_becomes_a_denser_file(student, drive, tmp_path, capsys):
    scan, out = drive / "velodyne" / "000001.bin", tmp_path / "new" / "dense.ply"
    assert lidar("complete", scan, "-o", out, "--model", student, *SMALL) == 0
    said = capsys.readouterr()
    assert "1 step by its own plan, guidance 1" in said.err
    made = points_in(out)
    assert f"{len(made):,} in" in said.out
    assert 100 < len(made) <= 400
    raw = points_in(scan)
    near = raw[np.linalg.norm(raw, axis=1) < 50]
    assert made[:, 2].max() < near[:, 2].max()
    assert np.linalg.norm(made, axis=1).max() < 50
    assert nothing_half_written(out.parent, ["dense.ply"])


def test_names_and_formats(student, drive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(drive / "velodyne" / "000000.bin", "street.17.bin")
    assert lidar("complete", "street.17.bin", "--model", student, *SMALL) == 0
    assert lidar("complete", "street.17.bin", "-o", "many", "--format", "npy", "--model", student, *SMALL) == 0
    for suffix in ("bin", "pcd", "npy"):
        assert lidar("complete", "street.17.bin", "-o", f"x.{suffix}", "--model", student, *SMALL) == 0
    made = points_in(Path("street.17-complete.ply"))
    for file in ("many/street.17.npy", "x.bin", "x.pcd", "x.npy"):
        np.testing.assert_array_equal(points_in(Path(file)), made)


def test_a_folder_keeps_names_and_a_scan_is_what_it_is_alone(student, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert lidar("complete", folder, "-o", out, "--model", student, *SMALL) == 0
    assert "3 scans completed" in capsys.readouterr().out
    assert nothing_half_written(out, [f"{i:06d}.ply" for i in range(3)])
    alone = tmp_path / "alone.ply"
    assert lidar("complete", folder / "000002.bin", "-o", alone, "--model", student, *SMALL) == 0
    assert alone.read_bytes() == (out / "000002.ply").read_bytes()
    assert alone.read_bytes() != (out / "000001.ply").read_bytes()


def test_a_sequence_is_completed_by_its_scans(student, drive, tmp_path):
    out = tmp_path / "out"
    assert lidar("complete", drive, "-o", out, "--model", student, "--every", "2", "--format", "bin", *SMALL) == 0
    assert nothing_half_written(out, ["000000.bin", "000002.bin"])


def test_what_is_there_stays_until_it_is_forced(student, folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "000001.ply").write_text("mine")
    run = ("complete", folder, "-o", out, "--model", student, *SMALL)
    assert lidar(*run) == 0
    assert "2 scans completed, 1 were there already" in capsys.readouterr().out
    assert (out / "000001.ply").read_text() == "mine"
    assert lidar(*run) == 0
    assert "all 3 scans are completed already (--force" in capsys.readouterr().out
    assert lidar(*run, "--force") == 0
    assert len(points_in(out / "000001.ply")) > 100


def test_a_run_that_is_killed_leaves_whole_files_and_goes_on(student, folder, tmp_path, monkeypatch):
    import fewstep.core.data.writing as writing

    out, replace, calls = tmp_path / "out", writing.os.replace, []

    def interrupted(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(a, b)

    run = ("complete", folder, "-o", out, "--model", student, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", interrupted)
        assert lidar(*run) == 130
    assert nothing_half_written(out, ["000000.ply"])
    first = (out / "000000.ply").stat().st_mtime_ns
    assert lidar(*run) == 0
    assert nothing_half_written(out, [f"{i:06d}.ply" for i in range(3)])
    assert (out / "000000.ply").stat().st_mtime_ns == first


def test_steps_samplers_guidance_and_seeds_do_something(teacher, student, drive, tmp_path, capsys):
    scan = drive / "velodyne" / "000000.bin"

    def made(*options: object, model: Path = teacher) -> bytes:
        out = tmp_path / "out.ply"
        assert lidar("complete", scan, "-o", out, "--model", model, *SMALL, *options) == 0
        return out.read_bytes()

    usual = made("--steps", "2")
    assert "2 steps by variance-exploding" in capsys.readouterr().err
    assert made("--steps", "2") == usual
    others = [
        made("--steps", "1"),
        made("--steps", "2", "--seed", "1"),
        made("--steps", "2", "--sampler", "official"),
        made("--steps", "2", "--cond-weight", "3.5"),
        made("--steps", "2", "--max-range", "30"),
        made("--steps", "2", model=student),
    ]
    assert len({usual, *others}) == 7
    assert made("--steps", "2", "--sampler", "variance-exploding", model=student) == usual  # the same weights
    assert made("--steps", "2", "--cond-weight", "1") == usual
    made("--steps", "2", "--max-range", "30")
    assert np.linalg.norm(points_in(tmp_path / "out.ply"), axis=1).max() < 30


def test_a_refiner_multiplies_the_points(student, drive, tmp_path):
    scan, plain, refined = drive / "velodyne" / "000000.bin", tmp_path / "plain.npy", tmp_path / "refined.npy"
    run = ("complete", scan, "--model", student, *SMALL)
    assert lidar(*run, "-o", plain) == 0
    assert lidar(*run, "-o", refined, "--refine", refiner_folder(tmp_path / "refiner", 3)) == 0
    before, after = points_in(plain), points_in(refined)
    assert len(after) == 3 * len(before)
    assert np.abs(after.reshape(-1, 3, 3) - before[:, None]).max() <= 1


# ---------------------------------------------------------------- what cannot be used

FULL = np.random.default_rng(0).uniform(4, 20, (300, 4)).astype("<f4")


def scan_of(rows: np.ndarray) -> bytes:
    return rows.astype("<f4").tobytes()


def with_one(value: float) -> np.ndarray:
    rows = FULL.copy()
    rows[7, 1] = value
    return rows


HEAD = "element vertex {0}\nproperty {1} x\nproperty {1} y\nproperty {1} z"

BAD = {
    "odd.bin": (scan_of(FULL)[:-3], "not a whole number of rows"),
    "five.bin": (scan_of(np.zeros((3, 1))), "not a whole number of rows"),
    "empty.bin": (b"", "is empty"),
    "nan.bin": (scan_of(with_one(np.nan)), "1 of 300 points have a NaN or infinite coordinate"),
    "inf.bin": (scan_of(with_one(np.inf)), "--drop-invalid"),
    "far.bin": (scan_of(FULL + 1000), "0 of 300 points lie between 3.5 and 50 m"),
    "few.bin": (scan_of(FULL[:99]), "99 of 99 points lie between"),
    "long.ply": (ply(f"format binary_little_endian 1.0\n{HEAD.format(10**12, 'float')}", b"\0" * 24), "long.ply"),
    "words.ply": (b"no ply at all", "words.ply"),
    "scan.laz": (b"LASF", "no format of clouds"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_scan_is_refused_in_one_line(name, student, tmp_path, capsys):
    data, said = BAD[name]
    (tmp_path / name).write_bytes(data)
    assert lidar("complete", tmp_path / name, "-o", tmp_path / "out" / "x.ply", "--model", student, *SMALL) == 2
    line = one_line(capsys.readouterr().err, said)
    assert name in line
    assert nothing_half_written(tmp_path / "out")


def test_invalid_points_are_dropped_when_that_is_asked_for(student, tmp_path):
    (tmp_path / "nan.bin").write_bytes(scan_of(with_one(np.nan)))
    (tmp_path / "without.bin").write_bytes(scan_of(np.delete(FULL, 7, axis=0)))
    for name, options in (("nan", ["--drop-invalid"]), ("without", [])):
        run = ("complete", tmp_path / f"{name}.bin", "-o", tmp_path / f"{name}.ply", "--model", student, *SMALL)
        assert lidar(*run, *options) == 0
    assert (tmp_path / "nan.ply").read_bytes() == (tmp_path / "without.ply").read_bytes()


def test_any_honest_form_of_a_cloud_gives_the_same_points(student, tmp_path):
    xyz = FULL[:, :3]
    little, floats = "format binary_little_endian 1.0\n", HEAD.format(300, "float")
    text = "\n".join(" ".join(repr(float(v)) for v in row) for row in xyz)
    forms = {
        "big.ply": ply(f"format binary_big_endian 1.0\n{floats}", xyz.astype(">f4").tobytes()),
        "double.ply": ply(little + HEAD.format(300, "double"), xyz.astype("<f8").tobytes()),
        "words.ply": ply(f"format ascii 1.0\n{floats}", text.encode()),
        "float.ply": ply(little + floats, struct.pack("<900f", *xyz.ravel())),
        "rows.bin": scan_of(FULL),
    }  # fmt: skip
    made = set()
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        assert lidar("complete", tmp_path / name, "-o", tmp_path / "x.npy", "--model", student, *SMALL) == 0
        made.add((tmp_path / "x.npy").read_bytes())
    assert len(made) == 1
    (tmp_path / "five.bin").write_bytes(scan_of(np.concatenate([FULL, FULL[:, :1]], 1)))
    declared = ("--fields", "x,y,z,intensity,ring")
    assert (
        lidar("complete", tmp_path / "five.bin", "-o", tmp_path / "x.npy", "--model", student, *declared, *SMALL) == 0
    )
    assert {(tmp_path / "x.npy").read_bytes()} == made


def test_bad_scans_of_a_folder_are_skipped_counted_and_listed(student, folder, tmp_path, capsys):
    for name in ("odd.bin", "nan.bin", "far.bin"):
        (folder / name).write_bytes(BAD[name][0])
    out = tmp_path / "out"
    assert lidar("complete", folder, "-o", out, "--model", student, *SMALL) == 3
    said = capsys.readouterr()
    assert "3 scans completed" in said.out
    line = one_line(said.err, "3 of 6 scans skipped")
    assert all(name in line for name in ("odd", "nan", "far: 0 of 300"))
    assert said.err.count("skipped ") >= 3
    assert nothing_half_written(out, [f"{i:06d}.ply" for i in range(3)])


def test_two_scans_of_one_name_do_not_become_one_file(student, folder, tmp_path, capsys):
    (folder / "000001.ply").write_bytes(b"")
    assert lidar("complete", folder, "-o", tmp_path / "out", "--model", student, *SMALL) == 2
    one_line(capsys.readouterr().err, "several scans are called 000001")
    assert not (tmp_path / "out").exists()


def mistakes(tmp: Path, model: Path) -> dict[str, tuple[tuple[object, ...], str]]:
    """Commands on a good scan that cannot work, and what is said."""
    scan, out = tmp / "scan.bin", tmp / "out.ply"
    refiner = refiner_folder(tmp / "refiner")
    (tmp / "file").write_text("")
    (tmp / "none").mkdir()
    usual = (scan, "-o", out, "--model", model, *SMALL)
    return {
        "no input": ((tmp / "absent.bin", *usual[1:]), "absent.bin: no such file"),
        "no scans": ((tmp / "none", *usual[1:]), "no scans of the layout"),
        "unknown model": ((scan, "-o", out, "--model", "streets-studnt"), "no denoiser 'streets-studnt'"),
        "a refiner as model": ((scan, "-o", out, "--model", refiner), "describes a refiner, and a denoiser is wanted"),
        "a model as refiner": ((*usual, "--refine", model), "describes a denoiser, and a refiner is wanted"),
        "a folder of nothing": ((scan, "-o", out, "--model", tmp / "none"), "no denoiser"),
        "a file as folder": ((scan, "-o", tmp / "file" / "x.ply", *usual[3:]), "cannot be made"),
        "unknown format": ((scan, "-o", tmp / "x.laz", *usual[3:]), "x.laz: an unknown kind of file"),
        "over the input": ((scan, "-o", scan, *usual[3:]), "that is the input"),
        "points": ((*usual[:-1], "405"), "--points must be a multiple of 10"),
        "steps": ((*usual, "--steps", "0"), "not a whole number of at least 1"),
        "many steps": ((*usual, "--steps", "1000"), "--steps must be 1 to 999"),
        "range": ((*usual, "--max-range", "3"), "--max-range must be above"),
        "sampler": ((*usual, "--sampler", "ddim"), "invalid choice: 'ddim'"),
        "device": ((*usual, "--device", "abacus"), "--device abacus"),
        "fields": ((*usual, "--fields", "x,y"), "x, y and z must be among them"),
        "weight": ((*usual, "--cond-weight", "much"), "'much' is not a number"),
        "layout": ((tmp, "-o", tmp / "many", "--layout", "kiti", "--model", model), "no layout 'kiti'"),
    }


CASES = (
    "no input", "no scans", "unknown model", "a refiner as model", "a model as refiner", "a folder of nothing",
    "a file as folder", "unknown format", "over the input", "points", "steps", "many steps", "range", "sampler",
    "device", "fields", "weight", "layout",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_and_write_nothing(case, student, tmp_path, capsys):
    (tmp_path / "scan.bin").write_bytes(scan_of(FULL))
    cases = mistakes(tmp_path, student)
    assert tuple(cases) == CASES
    argv, said = cases[case]
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert lidar("complete", *argv) == 2
    one_line(capsys.readouterr().err, said)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before
    assert (tmp_path / "scan.bin").read_bytes() == scan_of(FULL)


def test_a_network_that_puts_nothing_near_the_scan_says_so(drive, tmp_path, capsys):
    import torch
    from lidar.scene_bed import NETWORK

    from fewstep.lidar.models.backbone import LidarBackbone
    from fewstep.lidar.models.files import save_denoiser

    wild = LidarBackbone(NETWORK, 0)
    with torch.no_grad():
        wild.unet.head[2].bias.fill_(1e4)
    save_denoiser(wild, tmp_path / "wild")
    scan = drive / "velodyne" / "000000.bin"
    assert lidar("complete", scan, "-o", tmp_path / "x.ply", "--model", tmp_path / "wild", "--steps", "1", *SMALL) == 2
    one_line(capsys.readouterr().err, "put no point where the scan is")
    assert not (tmp_path / "x.ply").exists()
