"""The data of a method that needs none: cameras around the scene, drawn by the judge's own law."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras  # type: ignore[import-not-found]
from nerfstudio.cameras.rays import RayBundle  # type: ignore[import-not-found]
from nerfstudio.data.datamanagers.base_datamanager import (  # type: ignore[import-not-found]
    DataManager,
    DataManagerConfig,
)
from nerfstudio.data.datamanagers.random_cameras_datamanager import (  # type: ignore[import-not-found]
    RandomCamerasDataManager,
    TrivialDataset,
)
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs  # type: ignore[import-not-found]
from nerfstudio.pipelines.base_pipeline import VanillaPipeline  # type: ignore[import-not-found]

from fewstep.core.errors import check
from fewstep.threed.cameras import Camera, turntable
from fewstep.threed.nerfstudio.poses import to_nerfstudio
from fewstep.threed.nerfstudio.training import SceneTraining
from fewstep.threed.problems.scene import fixed_cameras, looks


@dataclass
class SceneCamerasConfig(DataManagerConfig):  # type: ignore[misc]
    """Cameras: ``samples`` a step; ``looks`` fixed ones of ``size`` pixels around a scene, to look and export from."""

    _target: type = field(default_factory=lambda: SceneCameras)
    samples: int = 4
    looks: int = 32
    size: int = 128


class Looks(TrivialDataset):  # type: ignore[misc]
    """Fixed cameras, and white pictures where other datasets have photographs."""

    def __init__(self, camera: Camera) -> None:
        super().__init__(to_nerfstudio(camera))
        self.camera = camera
        names = [Path(f"look-{index:03d}.png") for index in range(len(camera))]
        self._dataparser_outputs = DataparserOutputs(names, self.cameras, scene_box=self.scene_box)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.ones(self.camera.height, self.camera.width, 3), "image_idx": index}


class SceneCameras(RandomCamerasDataManager):  # type: ignore[misc]
    """Cameras in training, rays for nerfstudio's exporters of points; nothing else.

    A RandomCamerasDataManager by name only, which those exporters ask for.
    """

    config: SceneCamerasConfig

    def __init__(
        self, config: SceneCamerasConfig, device: Any = "cpu", test_mode: str = "val", world_size: int = 1, **_: Any
    ) -> None:
        check(config.data is None, "--data: scenes are distilled from a teacher and a prompt, without data")
        check(world_size == 1, "--machine.num-devices: a scene is trained on one device")
        check(min(config.samples, config.looks, config.size) >= 1, "samples, looks and size must be at least 1")
        self.config, self.device, self.test_mode = config, device, test_mode
        self.train_pixel_sampler = SimpleNamespace(num_rays_per_batch=4096)
        self.train_dataset = self.eval_dataset = Looks(turntable(config.looks, config.size, config.size))
        DataManager.__init__(self)

    def follow(self, training: SceneTraining) -> None:
        """Take the cameras from what is trained from now on."""
        self.training_of = training
        found = fixed_cameras(training.judge, looks(self.config.looks), self.config.size)
        self.train_dataset = self.eval_dataset = Looks(found.select(0, self.config.looks))

    def setup_train(self) -> None:
        """Nothing to set up."""

    def setup_eval(self) -> None:
        """Nothing to set up."""

    def next_train(self, step: int) -> tuple[Cameras | RayBundle, dict[str, Any]]:
        """Return the cameras of a step; rays of ``train_pixel_sampler.num_rays_per_batch`` pixels for exporters."""
        self.train_count += 1
        if self.test_mode == "val":
            camera = self.training_of.cameras(step, self.config.samples)
            return to_nerfstudio(camera).to(self.device), {"step": step, "camera": camera}
        wanted = self.train_pixel_sampler.num_rays_per_batch
        side = self.training_of.judge.size
        camera = self.training_of.cameras(self.train_count, -(-wanted // side**2))
        which = torch.arange(len(camera))[:, None]
        rays = to_nerfstudio(camera).to(self.device).generate_rays(which).flatten()
        return rays[:wanted], {}

    def next_eval(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """Return cameras no step of training has seen."""
        self.eval_count += 1
        camera = self.training_of.judge.cameras(self.training_of.draws(step, self.config.samples, "eval"))
        return to_nerfstudio(camera).to(self.device), {"step": step, "camera": camera}

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """Return one of the fixed cameras, in turns."""
        self.eval_count += 1
        return self.look(self.eval_count % self.config.looks)

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, Any]]]:
        """All fixed cameras, as `ns-eval` asks for them."""
        return [self.look(index) for index in range(self.config.looks)]

    def look(self, index: int) -> tuple[Cameras, dict[str, Any]]:
        """Return one fixed camera, as nerfstudio's and ours."""
        camera = self.train_dataset.camera.select(index, index + 1)
        return to_nerfstudio(camera).to(self.device), {"image_idx": index, "camera": camera}

    def get_train_rays_per_batch(self) -> int:
        """Return how many pixels a step renders."""
        return self.config.samples * self.training_of.judge.views * int(self.training_of.judge.size**2)

    def get_eval_rays_per_batch(self) -> int:
        """Return how many pixels a step renders."""
        return self.get_train_rays_per_batch()

    def get_datapath(self) -> Path:
        """Return where camera paths are kept: here, as there is no data."""
        return Path()


class ScenePipeline(VanillaPipeline):  # type: ignore[misc]
    """nerfstudio's pipeline, whose cameras are those of the model's judge."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.datamanager.follow(self.model.training_of)
