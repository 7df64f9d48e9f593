"""Training pairs: functions of seed, step and sample; what is held out stays the same."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lidar.scene_bed import DATA, TINY, scenes

from fewstep.core.errors import UserError
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.lidar.judging import EMD_POINTS, IOU_VOXEL, judges
from fewstep.lidar.metrics.distances import chamfer
from fewstep.lidar.metrics.occupancy import CompletionIoU, agreement, jsd_bev
from fewstep.lidar.metrics.transport import emd
from fewstep.lidar.scenes import RefinerSource, SceneSource, load_scenes
from fewstep.lidar.settings import LidarDataConfig, RefinerConfig
from fewstep.lidar.shown import ShownScenes
from fewstep.lidar.streets import make_streets, streets_folder


def same(a: Batch, b: Batch) -> bool:
    assert a.cond.keys() == b.cond.keys()
    return torch.equal(a.x0, b.x0) and all(torch.equal(a.cond[name], b.cond[name]) for name in a.cond)


def test_a_batch_is_a_function_of_seed_step_and_sample():
    source = SceneSource(scenes()[0])
    first = source.batch(Rng.for_batch(3, 5, 3), "cpu")
    source.batch(Rng.for_batch(3, 6, 3), "cpu")
    assert same(source.batch(Rng.for_batch(3, 5, 3), "cpu"), first)
    assert same(SceneSource(scenes()[0]).batch(Rng.for_batch(3, 5, 3), "cpu"), first)
    part = source.batch(Rng.for_batch(3, 5, 3).select(1, 3), "cpu")
    assert same(part, first.select(1, 3))
    assert not torch.equal(source.batch(Rng.for_batch(4, 5, 3), "cpu").x0, first.x0)
    assert not torch.equal(source.batch(Rng.for_batch(3, 7, 3), "cpu").x0, first.x0)


def test_an_epoch_shows_every_scan_once():
    train = scenes(augment=False, window=0.0)[0]
    source, seen = SceneSource(train), []
    for step in range(3):
        seen += list(source.batch(Rng.for_batch(0, step, 2), "cpu").cond["scan"])
    assert len(train) == 6
    assert len({tuple(scan.flatten().tolist()) for scan in seen}) == 6


def test_sampling_starts_at_the_scan_tiled():
    batch = SceneSource(scenes()[0]).batch(Rng.for_batch(0, 0, 2), "cpu")
    assert batch.cond["scan"].shape == (2, 40, 3)
    assert batch.x0.shape == batch.cond["anchor"].shape == (2, 400, 3)
    assert torch.equal(batch.cond["anchor"].view(2, 10, 40, 3), batch.cond["scan"][:, None].expand(2, 10, 40, 3))


def test_scan_and_scene_are_of_one_place():
    """Every point of a thinned scan that stands still lies on the map, which is of cells of 0.1 m."""
    found = scenes(augment=False, window=0.0)[0]
    pair = found.pair(2, np.random.default_rng(0), moved=False)
    distances = np.linalg.norm(pair.scan[:, None] - pair.scene[None], axis=2).min(1)
    assert np.quantile(distances, 0.95) < 0.18
    assert np.linalg.norm(pair.scan, axis=1).min() > DATA.min_range
    assert max(np.linalg.norm(pair.scene, axis=1).max(), np.linalg.norm(pair.scan, axis=1).max()) <= DATA.max_range


def test_a_window_is_a_disc_that_scan_and_scene_share():
    found, whole = scenes(augment=False)[0], scenes(augment=False, window=0.0)[0]
    for seed in range(4):
        pair = found.pair(1, np.random.default_rng(seed), moved=False)
        full = whole.pair(1, np.random.default_rng(seed), moved=False).scene
        for cloud in (pair.scan, pair.scene):
            wide = np.linalg.norm(cloud[:, None, :2] - cloud[None, :, :2], axis=2).max()
            assert 0 < wide <= 2 * DATA.window + 1e-4
        assert len(pair.scene) < len(full)
        assert {tuple(point) for point in pair.scene} <= {tuple(point) for point in full}


def test_augmentation_moves_both_alike():
    found = scenes(window=0.0)[0]
    still = found.pair(1, np.random.default_rng(0), moved=False)
    moved = found.pair(1, np.random.default_rng(0), moved=True)
    assert still.scene.shape == moved.scene.shape
    lengths = [np.linalg.norm(pair.scene - pair.scene[0], axis=1)[1:] for pair in (still, moved)]
    ratio = lengths[1] / lengths[0].clip(1e-3)
    assert np.ptp(ratio[lengths[0] > 1]) < 1e-3  # a rotation, a flip, and one factor
    assert not np.allclose(still.scene, moved.scene, atol=0.5)


def test_held_out_scenes_are_fixed_and_held_out():
    train, held = scenes()
    assert {one.name for one in held.sequences} == {"02"}
    assert {one.name for one in train.sequences} == {"00", "01"}
    a, b = ShownScenes(held, 0), ShownScenes(scenes()[1], 9)  # whatever the seed of the run
    first = a.conditions(2)
    more = b.conditions(3)
    for name in ("scan", "anchor", "scene"):
        assert torch.equal(first[name], more[name][:2])


def test_shown_scenes_are_measured_as_the_metrics_measure():
    shown = ShownScenes(scenes()[1], 0)
    cond = shown.conditions(3)
    samples = cond["anchor"] + 0.1
    found = shown.evaluate(samples[1:], {name: value[1:] for name, value in cond.items()})
    truths = [torch.from_numpy(shown._pair(i).scene) for i in (1, 2)]
    clouds = list(samples[1:].double())
    overlap = CompletionIoU((0.5,))
    for made, truth in zip(clouds, truths, strict=True):
        overlap.update(made, truth)
    pairs = list(zip(clouds, truths, strict=True))
    assert found["Chamfer distance"] == pytest.approx(np.mean([chamfer(*pair).value for pair in pairs]))
    assert found["JSD BEV"] == pytest.approx(np.mean([jsd_bev(*pair) for pair in pairs]))
    assert found["IoU 0.5 m"] == pytest.approx(overlap.value()[0.5])
    assert 0 < found["Chamfer distance"] < 5


def test_judges_are_the_metrics_and_lower_is_better():
    batch = SceneSource(scenes()[0]).batch(Rng.for_batch(0, 0, 2), "cpu")
    near, far = batch.x0 + 0.02, batch.x0 + torch.tensor([1.5, 0.0, 1.0])
    rows = slice(None, None, 4)
    scene = [one[rows] for one in batch.x0]
    wanted = {
        "chamfer": [chamfer(near[i][rows], scene[i]).value for i in (0, 1)],
        "jsd": [jsd_bev(near[i][rows], scene[i]) for i in (0, 1)],
        "iou": [1 - agreement(near[i][rows], scene[i], IOU_VOXEL).iou for i in (0, 1)],
        "emd": [emd(near[i][rows], scene[i], size=EMD_POINTS) for i in (0, 1)],
    }
    found = judges(100)
    assert list(found) == list(wanted)
    for name, judge in found.items():
        values = judge(near, batch)
        assert values.tolist() == pytest.approx(wanted[name])
        assert (values < judge(far, batch)).all()


def test_the_refiner_is_given_a_jittered_scene():
    config = RefinerConfig(target_points=300, jitter=0.2, jitter_limit=0.3)
    train = scenes(augment=False, window=0.0)[0]
    batch = RefinerSource(train, config).batch(Rng.for_batch(0, 1, 2), "cpu")
    assert batch.cond["points"].shape == (2, 400, 3)
    assert batch.x0.shape == (2, 300, 3)
    assert same(RefinerSource(train, config).batch(Rng.for_batch(0, 1, 2), "cpu"), batch)
    calm = RefinerConfig(target_points=300, jitter=0.0)
    still = RefinerSource(train, calm).batch(Rng.for_batch(0, 1, 2), "cpu")
    off = batch.cond["points"] - still.cond["points"]
    assert float(off.abs().max()) == pytest.approx(0.3, abs=1e-4)
    assert float(off.std()) == pytest.approx(0.2, abs=0.03)  # clipped a little
    chosen = {
        tuple(point)
        for index in range(6)
        for point in train.pair(index, np.random.default_rng(0), moved=False).scene.tolist()
    }
    assert {tuple(point) for cloud in still.cond["points"].tolist() for point in cloud} <= chosen


def test_the_data_set_is_named_after_its_settings_and_made_once(monkeypatch, tmp_path):
    root = make_streets(TINY, 0.1)
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()}
    assert make_streets(replace(TINY, sequences=1), 0.1) == root  # fewer sequences are the same data set
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*") if file.is_file()} == before
    assert not [file for file in root.iterdir() if file.name.startswith(".")]
    assert streets_folder(replace(TINY, seed=1)) != root
    assert streets_folder(replace(TINY, sensor=replace(TINY.sensor, beams=21))) != root
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    again = make_streets(replace(TINY, sequences=1, held_out=1, scans=3), 0.1)
    for file in again.rglob("*"):
        if file.is_file():  # a file of the same settings has the same bytes, wherever and whenever it is made
            assert file.read_bytes() == (root / file.relative_to(again)).read_bytes()


def test_a_cache_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="FEWSTEP_CACHE"):
        make_streets(TINY, 0.1)


def test_real_layouts_are_split_like_the_benchmark_or_by_holding_the_last_out():
    root = str(make_streets(TINY, 0.1))
    train, held = load_scenes(LidarDataConfig(source="semantickitti", path=root, points=400))
    assert [one.name for one in train.sequences] == ["00", "01"]
    assert [one.name for one in held.sequences] == ["02"]
    own = LidarDataConfig(source="semantickitti", path=root, points=400, sequences=("02",), held_out=("01",))
    train, held = load_scenes(own)
    assert [[one.name for one in each.sequences] for each in (train, held)] == [["02"], ["01"]]


def test_what_is_missing_is_named(tmp_path):
    root = str(make_streets(TINY, 0.1))
    with pytest.raises(UserError, match="did you mean '02'"):
        load_scenes(LidarDataConfig(source="semantickitti", path=root, sequences=("00",), held_out=("002",)))
    shutil.copytree(root, tmp_path / "bare", ignore=lambda *_: ["map_clean.npy"])
    train, _ = load_scenes(LidarDataConfig(source="semantickitti", path=str(tmp_path / "bare"), points=400))
    with pytest.raises(UserError, match=r"map_clean\.npy: no map there.*build-maps"):
        train.pair(0, np.random.default_rng(0), moved=False)
    near, _ = load_scenes(LidarDataConfig(source="semantickitti", path=root, points=400, min_range=0.0, max_range=0.5))
    with pytest.raises(UserError, match=r"scan 000000 has no point between 0 and 0\.5 m"):
        near.pair(0, np.random.default_rng(0), moved=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"points": 405}, "multiple of tiling"),
        ({"points": 90}, "at least 100"),
        ({"path": "somewhere"}, "path belongs to real data"),
        ({"source": "nuscenes"}, "path belongs to real data"),
        ({"max_range": 3.0}, "min_range < max_range"),
        ({"window": 51.0}, "window"),
        ({"map_voxel": 0.0}, "map_voxel"),
        ({"map_voxel": 0.3, "source": "folder", "path": "somewhere"}, "map_voxel belongs to simulated"),
        ({"tiling": 0}, "tiling"),
    ],
)
def test_bad_settings_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        LidarDataConfig(**given)
