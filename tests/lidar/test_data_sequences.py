"""Scans, labels and poses of every layout, and what is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from lidar.cloud_bed import random_cloud
from lidar.data_bed import TURN, raises_line, random_pose, row, semantic_kitti
from numpy.testing import assert_allclose, assert_array_equal

from fewstep.lidar.clouds import write_cloud
from fewstep.lidar.data.kitti_raw import EARTH_M
from fewstep.lidar.data.poses import euler
from fewstep.lidar.data.sequence import SPLITS, Sequence, open_sequence, open_sequences
from fewstep.lidar.data.voxels import read_voxels

SCANS = [random_cloud(20 + i, seed=i).xyz for i in range(3)]
POSES = [np.eye(4), random_pose(1), random_pose(2)]


def test_lidar_poses_are_the_camera_s_seen_through_the_calibration(tmp_path):
    sequence = open_sequence(semantic_kitti(tmp_path / "00", SCANS, poses=POSES, transform=TURN))
    for index, pose in enumerate(POSES):
        assert_allclose(sequence.pose(index), np.linalg.inv(TURN) @ pose @ TURN, atol=1e-12)
    assert_allclose(sequence.pose(0), np.eye(4), atol=1e-12)
    forward = np.eye(4)
    forward[2, 3] = 2.0  # z of the camera is ahead
    (tmp_path / "00" / "poses.txt").write_text(f"{row(np.eye(4))}\n{row(forward)}\n{row(forward)}\n")
    assert_allclose(open_sequence(tmp_path / "00").pose(1)[:3, 3], [2, 0, 0], atol=1e-12)


def test_without_a_calibration_poses_are_as_written(tmp_path):
    sequence = open_sequence(semantic_kitti(tmp_path / "00", SCANS, poses=POSES))
    assert_allclose(sequence.pose(2), POSES[2], atol=1e-12)


@pytest.mark.parametrize("between", ["", "dataset"])
def test_a_sequence_is_found_from_its_root_and_by_itself(tmp_path, between):
    labels = [np.full(len(scan), 40 + 65536 * i) for i, scan in enumerate(SCANS)]
    for name in ("08", "01"):
        semantic_kitti(tmp_path / between / "sequences" / name, SCANS, labels=labels)
    assert [each.name for each in open_sequences(tmp_path)] == ["01", "08"]
    assert [each.name for each in open_sequences(tmp_path, names=["08"])] == ["08"]
    assert [each.name for each in open_sequences(tmp_path / between / "sequences")] == ["01", "08"]
    sequence = open_sequence(tmp_path / between / "sequences" / "08")
    assert isinstance(sequence, Sequence)
    assert (len(sequence), sequence.stem(2)) == (3, "000002")
    assert_array_equal(sequence.scan(1).xyz, SCANS[1])
    assert_array_equal(sequence.labels(1), labels[1])
    assert sequence.labels(1).dtype == np.uint32
    with raises_line("2 sequences are there"):
        open_sequence(tmp_path)
    with raises_line("no sequence '03'"):
        open_sequences(tmp_path, names=["03"])


def test_scans_sort_by_number_and_a_part_of_them_keeps_its_poses(tmp_path):
    folder = semantic_kitti(tmp_path / "00", SCANS[:2], poses=[random_pose(i) for i in range(12)], first=9)
    (folder / "velodyne" / "000009.bin").rename(folder / "velodyne" / "9.bin")
    sequence = open_sequence(folder)
    assert [sequence.stem(i) for i in range(2)] == ["9", "000010"]
    assert_allclose(sequence.pose(1), random_pose(10), atol=1e-12)


def test_labels_are_optional_but_one_per_point(tmp_path):
    folder = semantic_kitti(tmp_path / "00", SCANS, labels=[np.full(len(scan), 40) for scan in SCANS[:2]])
    sequence = open_sequence(folder)
    assert sequence.labels(2) is None
    np.full(19, 40, "<u4").tofile(folder / "labels" / "000000.label")
    with raises_line("76 bytes are not the labels of the 20 points of 000000.bin"):
        sequence.labels(0)
    (folder / "labels" / "000000.label").write_bytes(b"")
    with raises_line("is empty"):
        sequence.labels(0)


SHEARED = np.eye(4)
SHEARED[0, 1] = 0.01
MIRRORED = np.diag([1.0, -1, 1, 1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "poses.txt: poses cannot be read .*add the file"),
        ("", "no pose in it"),
        (f"{row(np.eye(4))}\n" * 2, "2 poses for 3 scans"),
        (f"{row(np.eye(4))}\n1 2 3\n", "line 2: 3 numbers; a pose has 12"),
        (f"{row(np.eye(4))}\n{row(np.eye(4))[:-3]}one\n", "line 2: not numbers"),
        (f"{row(np.eye(4) * np.nan)}\n", "line 1: a NaN"),
        (f"{row(SHEARED)}\n", "line 1: its 3x3 part is no rotation"),
        (f"{row(1.01 * np.eye(4))}\n", "line 1: its 3x3 part is no rotation"),
        (f"{row(1e300 * np.eye(4))}\n", "line 1: its 3x3 part is no rotation"),
        (f"{row(MIRRORED)}\n", "line 1: its 3x3 part mirrors"),
        ("\xff\xfe", "not text"),
    ],
)
def test_wrong_poses_are_told_where_they_are_needed(tmp_path, text, says):
    folder = semantic_kitti(tmp_path / "00", SCANS)
    if text is not None:
        (folder / "poses.txt").write_bytes(text.encode("latin-1"))
    sequence = open_sequence(folder)
    assert len(sequence.scan(0)) == 20
    with raises_line(says):
        sequence.pose(2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("P0: 1 2 3\n", "no 'Tr:' line"),
        ("Tr: 1 2 3\n", "'Tr' has 3 numbers, not 12"),
        (f"Tr: {row(SHEARED)}\n", "'Tr': its 3x3 part is no rotation"),
        (f"Tr: {row(MIRRORED)}\n", "mirrors"),
        ("Tr: a b c\n", "line 1: not numbers"),
    ],
)
def test_wrong_calibrations_are_refused(tmp_path, text, says):
    folder = semantic_kitti(tmp_path / "00", SCANS, poses=POSES)
    (folder / "calib.txt").write_text(text)
    with raises_line(says):
        open_sequence(folder).pose(0)


def drive(folder: Path, places: list[tuple[float, ...]], scans: int | None = None) -> Path:
    (folder / "velodyne_points" / "data").mkdir(parents=True)
    (folder / "oxts" / "data").mkdir(parents=True)
    for number, place in enumerate(places):
        rest = " 0" * 24
        (folder / "oxts" / "data" / f"{number:010d}.txt").write_text(" ".join(map(repr, place)) + rest)
        if scans is None or number < scans:
            SCANS[number].astype("<f4").tofile(folder / "velodyne_points" / "data" / f"{number:010d}.bin")
    return folder


def test_kitti_raw_poses_are_metres_on_the_ground(tmp_path):
    degree = math.degrees(1 / EARTH_M)  # a metre, at the equator or along a meridian
    start = (49.0, 8.0, 100.0, 0.0, 0.0, 0.0)
    east = (49.0, 8.0 + 3 * degree / math.cos(math.radians(49)), 101.0, 0.0, 0.0, 0.0)
    north = (49.0 + 5 * degree, 8.0, 100.0, 0.0, 0.0, math.pi / 2)
    folder = drive(tmp_path / "2011_09_26" / "2011_09_26_drive_0001_sync", [start, east, north])
    sequence = open_sequence(tmp_path, "kitti-raw", ("x", "y", "z"))
    assert sequence.name == folder.name
    assert sequence.labels(0) is None
    assert_array_equal(sequence.scan(1).xyz, SCANS[1])
    assert_allclose(sequence.pose(0), np.eye(4), atol=1e-8)
    assert_allclose(sequence.pose(1)[:3, 3], [3, 0, 1], atol=1e-5)
    assert_allclose(sequence.pose(2)[:3, 3], [0, 5, 0], atol=1e-5)
    assert_allclose(sequence.pose(2)[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-8)


def test_angles_turn_about_x_then_y_then_z():
    quarter = math.pi / 2
    assert_allclose(euler(quarter, 0, 0) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    assert_allclose(euler(0, quarter, 0) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    assert_allclose(euler(quarter, quarter, 0) @ [0, 1, 0], [1, 0, 0], atol=1e-12)
    assert_allclose(euler(quarter, quarter, quarter) @ [0, 1, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("where", [".", ".."])
def test_kitti_raw_poses_are_the_lidar_s_where_it_is_calibrated(tmp_path, where):
    start, turned = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0, math.pi / 2)
    folder = drive(tmp_path / "date" / "drive", [start, turned])
    # the LiDAR is one metre ahead of the inertial unit: a point at its place is at 0
    (folder / where / "calib_imu_to_velo.txt").write_text(
        "calib_time: 25-May-2012 16:47:16\nR: 1 0 0 0 1 0 0 0 1\nT: -1 0 0\n"
    )
    sequence = open_sequence(folder, "kitti-raw", ("x", "y", "z"))
    assert_allclose(sequence.pose(1)[:3, 3], [-1, 1, 0], atol=1e-8)  # turned on the spot, about the unit


def test_kitti_raw_that_is_wrong(tmp_path):
    folder = drive(tmp_path / "drive", [(49.0, 8.0, 0.0, 0.0, 0.0, 0.0)] * 2)
    (folder / "oxts" / "data" / "0000000001.txt").unlink()
    with raises_line("0000000001.txt: the pose of a scan cannot be read"):
        open_sequence(folder, "kitti-raw").pose(1)
    (folder / "oxts" / "data" / "0000000001.txt").write_text("49 8")
    with raises_line("2 numbers"):
        open_sequence(folder, "kitti-raw").pose(1)
    (folder / "oxts" / "data" / "0000000001.txt").write_text("90 8 0 0 0 0")
    with raises_line("latitude of 90"):
        open_sequence(folder, "kitti-raw").pose(1)
    (folder / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 -1\nT: 0 0 0\n")
    with raises_line("'R': its 3x3 part mirrors"):
        open_sequence(folder, "kitti-raw").pose(0)


def test_nuscenes_and_plain_folders_sort_naturally_and_are_seen_from_their_first_pose(tmp_path):
    for number in (10, 2, 1):
        write_cloud(tmp_path / f"scan_{number}.pcd.bin", random_cloud(number, ring="f4"))
        write_cloud(tmp_path / f"scan_{number}.ply", random_cloud(number, seed=1))
    (tmp_path / "notes.txt").write_text("none of the scans")
    np.save(tmp_path / "map_clean.npy", np.zeros((3, 3), np.float32))
    poses = [random_pose(i, reach=1e6) for i in range(3)]
    (tmp_path / "poses.txt").write_text(f"{row(poses[0])}\n\n{row(poses[1], 4)}\n{row(poses[2])}\n")
    sequence = open_sequence(tmp_path, "nuscenes")
    assert [sequence.stem(i) for i in range(3)] == ["scan_1", "scan_2", "scan_10"]
    assert [len(sequence.scan(i)) for i in range(3)] == [1, 2, 10]
    assert set(sequence.scan(0).fields) == {"intensity", "ring"}
    assert sequence.labels(0) is None
    assert_allclose(sequence.pose(0), np.eye(4), atol=1e-9)
    assert_allclose(sequence.pose(2), np.linalg.inv(poses[0]) @ poses[2], rtol=1e-9, atol=1e-9)
    everything = open_sequence(tmp_path, "folder")
    assert len(everything) == 6
    with raises_line("3 poses for 6 scans"):
        everything.pose(0)


def test_a_file_is_a_sequence_of_one(tmp_path):
    write_cloud(tmp_path / "one.ply", random_cloud(5))
    write_cloud(tmp_path / "two.ply", random_cloud(5))
    sequence = open_sequence(tmp_path / "one.ply")
    assert (len(sequence), sequence.stem(0), sequence.name, sequence.folder) == (1, "one", "one", tmp_path)
    assert_array_equal(sequence.pose(0), np.eye(4))


def test_where_no_scans_are(tmp_path):
    with raises_line("no such folder"):
        open_sequence(tmp_path / "nowhere")
    with raises_line("no layout 'kitti_raw' of LiDAR data: did you mean 'kitti-raw'"):
        open_sequence(tmp_path, "kitti_raw")
    for layout in ("semantickitti", "kitti-raw", "nuscenes", "folder"):
        with raises_line(f"no scans of the layout '{layout}' there"):
            open_sequence(tmp_path, layout)
    (tmp_path / "sequences" / "00" / "velodyne").mkdir(parents=True)
    with raises_line("no .bin there"):
        open_sequence(tmp_path)


def test_splits_share_no_sequence_and_leave_none_out():
    everything = [name for names in SPLITS.values() for name in names]
    assert sorted(everything) == [f"{number:02d}" for number in range(22)]
    assert SPLITS["val"] == ("08",)


def test_voxels_are_packed_from_the_highest_bit(tmp_path):
    occupied = np.zeros((256, 256, 32), bool)
    occupied[3, 5, 7] = occupied[3, 5, 8] = occupied[255, 255, 31] = True
    (tmp_path / "000000.bin").write_bytes(np.packbits(occupied).tobytes())
    labels = np.zeros((256, 256, 32), "<u2")
    labels[3, 5, 7] = 252
    (tmp_path / "000000.label").write_bytes(labels.tobytes())
    voxels = read_voxels(tmp_path / "000000.bin")
    assert_array_equal(voxels.occupied, occupied)
    assert_array_equal(voxels.labels, labels)
    assert voxels.invalid is None
    # bit 7 of byte 0 is voxel (0, 0, 0)
    assert (tmp_path / "000000.bin").read_bytes()[(3 * 256 + 5) * 4] == 0b00000001
    (tmp_path / "000000.invalid").write_bytes(b"12")
    with raises_line("2 bytes; a grid of 256x256x32 has 262144"):
        read_voxels(tmp_path / "000000.bin")
