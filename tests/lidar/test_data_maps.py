"""Maps hold what stands still, once per cell, in the frame of the first scan."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lidar.data_bed import TURN, raises_line, random_pose, semantic_kitti
from numpy.testing import assert_allclose, assert_array_equal

from fewstep.core.errors import UserError
from fewstep.lidar.data.cells import CellSet, cell_keys
from fewstep.lidar.data.folder import MAP_FILE
from fewstep.lidar.data.maps import build_map, load_map, save_map
from fewstep.lidar.data.sequence import open_sequence
from fewstep.lidar.data.verb import BUILD_MAPS


def camera_poses(poses: list[np.ndarray]) -> list[np.ndarray]:
    """What ``poses.txt`` holds for the LiDAR's poses, with the calibration TURN."""
    return [TURN @ pose @ np.linalg.inv(TURN) for pose in poses]


def seen_from(world: np.ndarray, pose: np.ndarray) -> np.ndarray:
    return (world - pose[:3, 3]) @ pose[:3, :3]


def test_a_static_point_seen_from_everywhere_lands_in_one_cell(tmp_path):
    world = np.array([[10.05, 4.05, 1.05], [-20.35, 7.75, 0.25], [3.15, -12.45, -1.05]])
    poses = [np.eye(4), *(random_pose(i, reach=2.0) for i in range(6))]
    scans = [seen_from(world, pose) for pose in poses]
    folder = semantic_kitti(tmp_path / "00", scans, poses=camera_poses(poses), transform=TURN)
    found = build_map(open_sequence(folder), moving="keep")
    assert found.dtype == np.float32
    assert_allclose(found, world, atol=1e-5)


def test_what_moves_never_enters_whatever_its_instance(tmp_path):
    scan = 10.0 + np.arange(24.0).reshape(8, 3)
    labels = [40, 252, 252 + 5 * 65536, 259, 0, 1, 48 + 9 * 65536, 251]
    folder = semantic_kitti(tmp_path / "00", [scan], labels=[labels], poses=[np.eye(4)])
    assert_array_equal(build_map(open_sequence(folder)), scan[[0, 6, 7]])
    assert len(build_map(open_sequence(folder), moving="keep")) == 8


def test_the_vehicle_is_left_out_by_its_distance_alone(tmp_path):
    scan = np.array([[3.4, 0, 0, 0.99], [2.4, 2.4, 0, 5.0], [3.6, 0, 0, 0], [0, -2.5, 2.5, 0]])
    folder = semantic_kitti(tmp_path / "00", [scan], poses=[np.eye(4)])
    assert_allclose(build_map(open_sequence(folder), moving="keep"), [[3.6, 0, 0], [0, -2.5, 2.5]], rtol=1e-6)
    assert len(build_map(open_sequence(folder), moving="keep", min_range=0.0)) == 4


def test_consistency_keeps_what_scans_agree_on(tmp_path):
    wall = np.array([[10.05, 1.05, 0.05], [10.05, 2.05, 0.05]])
    car = [np.array([[5.05 + step, 0.05, 0.05], [5.06 + step, 0.06, 0.05]]) for step in range(4)]  # twice in one scan
    once = np.array([[30.05, 0.05, 0.05]])
    scans = [np.vstack([wall, car[i], once][: 3 if i == 2 else 2]) for i in range(4)]
    folder = semantic_kitti(tmp_path / "00", scans, poses=[np.eye(4)] * 4)
    sequence = open_sequence(folder)
    for seen, count in ((1, 7), (2, 2), (4, 2)):
        assert len(build_map(sequence, moving="consistency", seen=seen)) == count
    assert_allclose(build_map(sequence, moving="consistency"), wall, rtol=1e-6)
    with raises_line("no point is left"):
        build_map(sequence, moving="consistency", seen=5)


def test_the_first_point_of_a_cell_is_kept_in_the_order_of_scans(tmp_path):
    rng = np.random.default_rng(0)
    scans = [rng.uniform(-12, 12, (3000, 3)).astype(np.float32) for _ in range(5)]
    folder = semantic_kitti(tmp_path / "00", scans, poses=[np.eye(4)] * 5)
    everything = np.concatenate(scans)
    everything = everything[np.linalg.norm(everything.astype(float), axis=1) > 3.5]
    cells = np.floor(everything.astype(np.float64) / 0.8)
    first = np.sort(np.unique(cells, axis=0, return_index=True)[1])
    told: list[int] = []
    found = build_map(open_sequence(folder), voxel=0.8, moving="keep", progress=told.append)
    assert_array_equal(found, everything[first])
    assert told == [1, 2, 3, 4, 5]


@given(st.lists(st.lists(st.integers(-3, 60), max_size=30), max_size=25))
def test_a_set_of_cells_counts_in_how_many_additions_each_was(additions):
    cells = CellSet()
    order: dict[int, int] = {}
    for keys in additions:
        new = cells.add(np.array(keys, np.int64))
        expected = [i for i, key in enumerate(keys) if key not in order and key not in keys[:i]]
        assert new.tolist() == expected
        for key in dict.fromkeys(keys):
            order[key] = order.get(key, 0) + 1
    assert len(cells) == len(order)
    assert cells.counts.tolist() == list(order.values())


def test_a_set_of_cells_stays_in_few_runs():
    cells = CellSet()
    for start in range(0, 200_000, 200):
        cells.add(np.arange(start, start + 200))
    lengths = [len(keys) for keys, _ in cells._runs]
    assert sum(lengths) == len(cells) == 200_000
    assert len(lengths) <= 12
    assert all(long >= 2 * short for long, short in pairwise(lengths))


def test_cells_are_floors_and_differ():
    xyz = np.array([[0.05, 0.05, 0.05], [-0.05, 0.05, 0.05], [0.05, -0.05, 0.05], [0.05, 0.05, -0.05], [0.09, 0.01, 0]])
    keys = cell_keys(xyz, 0.1)
    assert len(set(keys[:4].tolist())) == 4
    assert keys[4] == keys[0]
    far = np.array([[104_857.5, -104_857.5, 0.0]])
    assert cell_keys(far, 0.1) != cell_keys(far[:, [1, 0, 2]], 0.1)
    with raises_line("more than 1048576 cells of 0.1 m"):
        cell_keys(far + 1, 0.1)
    assert len(cell_keys(np.zeros((0, 3)), 0.1)) == 0


def test_what_a_map_needs(tmp_path):
    scan = np.full((4, 3), 9.0)
    folder = semantic_kitti(tmp_path / "00", [scan] * 2, labels=[[40] * 4])
    sequence = open_sequence(folder)
    with raises_line("poses cannot be read"):
        build_map(sequence)
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n" * 2)
    with raises_line("scan 000001 has no labels .*'consistency' or 'keep'"):
        build_map(sequence)
    with raises_line("no way 'label' of leaving out what moves: did you mean 'labels'"):
        build_map(sequence, moving="label")
    with raises_line("must be above 0"):
        build_map(sequence, voxel=0.0)


def test_a_map_comes_back_and_what_is_none_is_refused(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    save_map(tmp_path / MAP_FILE, points)
    assert_array_equal(load_map(tmp_path), points)
    assert_array_equal(load_map(tmp_path / MAP_FILE), points)
    with raises_line("cannot be written"):
        save_map(tmp_path / "nowhere" / MAP_FILE, points)
    with raises_line("build-maps"):
        load_map(tmp_path.parent)
    for wrong, says in (
        (np.zeros((4, 4)), "is no map"),
        (np.full((4, 3), np.nan), "NaN"),
        (np.zeros((0, 3)), "no point"),
    ):
        np.save(tmp_path / MAP_FILE, wrong)
        with raises_line(says):
            load_map(tmp_path)


def command(*argv: str) -> None:
    parser = ArgumentParser()
    BUILD_MAPS.arguments(parser)
    BUILD_MAPS.run(parser.parse_args(list(argv)))


def test_the_command_builds_each_map_once(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("00", "01", "08"):
        scans = [rng.uniform(-20, 20, (50, 3)) for _ in range(2)]
        semantic_kitti(tmp_path / "sequences" / name, scans, labels=[[40] * 50] * 2, poses=[np.eye(4)] * 2)
    maps = {name: tmp_path / "sequences" / name / MAP_FILE for name in ("00", "01", "08")}
    command(str(tmp_path), "--sequences", "val,00")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(maps["08"]), str(maps["00"])]
    assert all("of 2 scans" in line for line in lines)
    assert not maps["01"].exists()
    save_map(maps["00"], np.ones((1, 3), np.float32))
    command(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert ["already" in line for line in lines] == [True, False, True]
    assert len(load_map(maps["00"])) == 1
    command(str(tmp_path / "sequences" / "00"), "--force", "--voxel", "0.5", "--moving", "keep")
    assert len(load_map(maps["00"])) > 50
    with pytest.raises(UserError, match="no sequence '07'"):
        command(str(tmp_path), "--sequences", "07")
    for wrong in (("--voxel", "0"), ("--voxel", "nan"), ("--seen", "0"), ("--sequences", ",")):
        with pytest.raises(SystemExit):
            command(str(tmp_path), *wrong)


def test_the_command_loads_no_library_until_it_runs():
    code = "import sys, fewstep.lidar.data.verb; print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
