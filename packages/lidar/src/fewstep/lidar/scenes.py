"""Training pairs out of sequences and their maps: a scan, thinned, and the scene around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Listed
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fewstep.core.data.epochs import epoch_indices
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.recipe import Batch
from fewstep.core.rng import Rng
from fewstep.lidar.data.augmentation import augment
from fewstep.lidar.data.crops import clean_scan, in_view, training_crop
from fewstep.lidar.data.farthest import farthest_points
from fewstep.lidar.data.maps import load_map
from fewstep.lidar.data.pairs import jittered, resized
from fewstep.lidar.data.sequence import SPLITS, Sequence, open_sequences
from fewstep.lidar.settings import LidarDataConfig, RefinerConfig
from fewstep.lidar.streets import make_streets, map_file, sequence_names

Float32 = npt.NDArray[np.float32]
WINDOWS = 8  # places tried for a window that holds enough of the scan
MAPS = 16  # kept in memory


class Pair(NamedTuple):
    """A thinned scan "m 3" and the scene it is completed to, "n 3" of any number, in metres."""

    scan: Float32
    scene: Float32


class Scenes:
    """The scans of some sequences with what surrounds them in the map."""

    def __init__(self, config: LidarDataConfig, sequences: Listed[Sequence]) -> None:
        self.config, self.sequences = config, list(sequences)
        self.items = [(drive, i) for drive, one in enumerate(self.sequences) for i in range(len(one))]
        check(bool(self.items), "domain.data: no scans in the sequences chosen")
        self._maps: OrderedDict[int, Float32] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.items)

    def map_of(self, drive: int) -> Float32:
        """Return the map of a sequence; the ones used last stay in memory."""
        if drive not in self._maps:
            folder, simulated = self.sequences[drive].folder, self.config.source == "simulated"
            self._maps[drive] = load_map(map_file(folder, self.config.map_voxel) if simulated else folder)
            while len(self._maps) > MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(drive)
        return self._maps[drive]

    def pair(self, index: int, rng: np.random.Generator, *, moved: bool) -> Pair:
        """Return a scan and its scene; ``moved``: after a random rotation, scale and flip of both.

        Raises UserError naming the scan when nothing of it is in range.
        """
        config, (drive, i) = self.config, self.items[index]
        sequence = self.sequences[drive]
        where = f"{sequence.folder}: scan {sequence.stem(i)}"
        cloud, labels = sequence.scan(i).xyz, sequence.labels(i)
        scan = cloud[
            clean_scan(cloud, labels, min_range=config.min_range, max_range=config.max_range, lowest=config.min_z)
        ]
        check(len(scan) > 0, f"{where} has no point between {config.min_range:g} and {config.max_range:g} m")
        scene = training_crop(self.map_of(drive), sequence.pose(i), max_range=config.max_range, lowest=config.min_z)
        scene = scene[in_view(scene, scan, max_range=config.max_range)] if len(scene) else scene
        if config.window > 0:
            scan, scene = _window(scan, scene, config, rng)
        check(len(scene) > 0, f"{where} has nothing of the map around it: are its poses those of the map?")
        if moved:
            motion = augment(rng.random(3), rng.standard_normal(3))
            scan, scene = motion(scan), motion(scene)
        thinned = scan[farthest_points(scan, config.points // config.tiling)]
        return Pair(thinned.astype(np.float32), scene.astype(np.float32))


def _window(
    scan: npt.NDArray[np.floating], scene: Float32, config: LidarDataConfig, rng: np.random.Generator
) -> tuple[npt.NDArray[np.floating], Float32]:
    """Return what lies around a random place: the first that holds enough of the scan, or the fullest of several."""
    best: npt.NDArray[np.bool_] | None = None
    centre = np.zeros(2)
    for _ in range(WINDOWS):
        if rng.random() < 0.5:  # half of the windows around points, which are dense near the sensor
            place = scan[rng.integers(len(scan)), :2].astype(np.float64)
        else:
            place = rng.uniform(-1, 1, 2) * (config.max_range - config.window / 2)
        inside = np.hypot(*(scan[:, :2] - place).T) < config.window
        if best is None or inside.sum() > best.sum():
            best, centre = inside, place
        if inside.sum() >= 2 * config.points // config.tiling:
            break
    around = np.hypot(*(scene[:, :2] - centre).T) < config.window
    return scan[best], scene[around]


def generator_of(rng: Rng, row: int) -> np.random.Generator:
    """Return numpy's generator for one sample of a step: a function of (seed, step, sample)."""
    return np.random.Generator(np.random.Philox(key=rng.select(row, row + 1).torch_seed("pair")))


class SceneSource:
    """Batches of pairs: ``x0`` "b n 3" the scenes, ``scan`` "b m 3", and ``anchor`` "b n 3", the scans tiled."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.scenes)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the pairs of a step, each a function of (seed, step, sample)."""
        config, scans, scenes = self.scenes.config, [], []
        for row, index in enumerate(epoch_indices(rng, len(self))):
            own = generator_of(rng, row)
            pair = self.scenes.pair(index, own, moved=config.augment)
            scans.append(pair.scan)
            scenes.append(resized(pair.scene, config.points, own))
        cond = scan_condition(scans, config.tiling, device)
        x0 = torch.from_numpy(np.stack(scenes)).to(device)
        return Batch(len(scans), cond, x0, device)


def scan_condition(scans: Listed[Float32], tiling: int, device: torch.device | str = "cpu") -> Cond:
    """Return the condition of thinned scans of one size: themselves, and tiled as what sampling starts around."""
    scan = torch.from_numpy(np.stack(scans)).to(device)
    return {"scan": scan, "anchor": scan.repeat(1, tiling, 1)}


class RefinerSource:
    """Batches for the refiner: ``points`` "b n 3", a jittered scene, and ``x0`` "b m 3", the scene itself."""

    def __init__(self, scenes: Scenes, refiner: RefinerConfig) -> None:
        self.scenes, self.refiner = scenes, refiner

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.scenes)

    def batch(self, rng: Rng, device: torch.device | str) -> Batch:
        """Return the pairs of a step, each a function of (seed, step, sample)."""
        config, refiner, given, wanted = self.scenes.config, self.refiner, [], []
        for row, index in enumerate(epoch_indices(rng, len(self))):
            own = generator_of(rng, row)
            scene = self.scenes.pair(index, own, moved=config.augment).scene
            given.append(jittered(scene, config.points, refiner.jitter, refiner.jitter_limit, own))
            wanted.append(resized(scene, refiner.target_points, own))
        points, x0 = (torch.from_numpy(np.stack(clouds)).to(device) for clouds in (given, wanted))
        return Batch(len(given), {"points": points}, x0, device)


def load_scenes(config: LidarDataConfig) -> tuple[Scenes, Scenes]:
    """Return the scans to train on and those held out; simulates them where they are simulated and not there yet.

    Raises UserError for data that is not there, or without maps.
    """
    if config.source == "simulated":
        root, layout = str(make_streets(config.simulation, config.map_voxel)), "semantickitti"
        train, held = sequence_names(config.simulation)
        train, held = config.sequences or train, config.held_out or held
    else:
        root, layout = config.path, config.source
        train, held = _split(root, layout, config)
    found = {one.name: one for one in open_sequences(root, layout, [*train, *held])}
    return Scenes(config, [found[name] for name in train]), Scenes(config, [found[name] for name in held])


def _split(root: str, layout: str, config: LidarDataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if config.sequences and config.held_out:
        return config.sequences, config.held_out
    there = [one.name for one in open_sequences(root, layout)]
    standard = [name for name in there if name in SPLITS["train"]], [name for name in there if name in SPLITS["val"]]
    if not all(standard):
        standard = there[:-1] or there, there[-1:]
    train, held = config.sequences or tuple(standard[0]), config.held_out or tuple(standard[1])
    if not train or not held:
        raise UserError(f"{root}: no sequences to train on and to hold out; name them in domain.data")
    return train, held
