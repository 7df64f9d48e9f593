"""From a raw scan to a dense scene: thin, tile, sample, crop, and refine where that is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.core.denoiser import Cond, Denoiser
from fewstep.core.errors import check
from fewstep.core.grids import time_grid
from fewstep.core.guidance import Guided
from fewstep.core.recipe import StepPlan
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.solvers import Counted
from fewstep.lidar.artefacts import find_network, sampling_of
from fewstep.lidar.data.crops import clean_scan
from fewstep.lidar.data.farthest import farthest_points
from fewstep.lidar.metrics.crop import crop_prediction
from fewstep.lidar.models.backbone import LidarBackbone
from fewstep.lidar.models.files import load_denoiser, load_refiner
from fewstep.lidar.models.refiner import Refiner
from fewstep.lidar.process import sample_scene, scene_denoiser
from fewstep.lidar.scenes import Float32, scan_condition

Sampler = Literal["auto", "official", "variance-exploding"]
FEWEST = 100  # points in range: fewer are no scan
TEACHER_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """How scans are completed.

    ``steps``: None for what the network was made for. ``guidance_scale``: None for what its folder says (1 without a
    word); scale 1 costs one evaluation a step, any other two. ``sampler``: ``auto`` walks a student's own plan and
    takes ``variance-exploding`` for teachers; ``official`` is the released one with its bias. ``points`` of the scene,
    a multiple of ``tiling``: the scan is thinned to ``points / tiling``. Ranges in metres. ``crop``: drop what lies out
    of range, or out of the scan's heights. ``seed``: of the noise; every scan gets the same, whatever came before.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    sampler: Sampler = "auto"
    points: int = 180_000
    tiling: int = 10
    min_range: float = 3.5
    max_range: float = 50.0
    min_z: float = -4.0
    crop: bool = True
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        check(self.steps is None or 1 <= self.steps <= 999, f"--steps must be 1 to 999, got {self.steps}")
        check(
            self.tiling >= 1 and self.points >= FEWEST and self.points % self.tiling == 0,
            f"--points must be a multiple of {self.tiling} and at least {FEWEST}, got {self.points}",
        )
        check(
            0 <= self.min_range < self.max_range <= 1000,
            f"--max-range must be above the {self.min_range:g} m left out around the sensor, and at most 1000, "
            f"got {self.max_range:g}",
        )


@dataclass
class Completion:
    """A completed scene "m 3" in metres, the thinned scan it was made from, and what it took.

    ``seconds`` by stage; ``steps`` of the sampler and ``evaluations`` of the network (guidance doubles them).
    """

    points: Float32
    scan: Float32
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    evaluations: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


class Completer:
    """A network, and a refiner if any, ready to complete scans one at a time.

    ``model`` and ``refiner``: names of shipped ones, or folders. Raises UserError for what cannot be loaded.
    """

    def __init__(
        self, model: str, config: CompletionConfig, *, refiner: str = "", device: torch.device | str = "cpu"
    ) -> None:
        folder = find_network(model, "denoiser")
        self.plan, recommended = sampling_of(folder)
        self.scale = recommended if config.guidance_scale is None else config.guidance_scale
        self.config, self.device, self.name = config, torch.device(device), model
        self.backbone: LidarBackbone = load_denoiser(folder).to(self.device)
        self.refiner: Refiner | None = None
        if refiner:
            self.refiner = load_refiner(find_network(refiner, "refiner")).to(self.device)

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        if self.config.steps is not None:
            return self.config.steps
        return len(self.plan.times) if self.plan is not None else TEACHER_STEPS

    def about(self) -> str:
        """Return one line on how scans are completed."""
        refined = ", refined" if self.refiner is not None else ""
        walk = "its own plan" if self._walks_plan else self._solver
        return f"{self.name}: {self.steps} step{'s' * (self.steps > 1)} by {walk}, guidance {self.scale:g}{refined}"

    @property
    def _walks_plan(self) -> bool:
        return self.plan is not None and self.config.sampler == "auto"

    @property
    def _solver(self) -> str:
        return "official" if self.config.sampler == "official" else "variance-exploding"

    def prepare(self, scan: npt.NDArray[Any]) -> Float32:
        """Return the points in range of a raw scan "n 3"; UserError when there are fewer than 100."""
        config = self.config
        inside = clean_scan(scan, min_range=config.min_range, max_range=config.max_range, lowest=config.min_z)
        found = int(inside.sum())
        check(
            found >= FEWEST,
            f"{found} of {len(scan)} points lie between {config.min_range:g} and {config.max_range:g} m of the sensor, "
            f"and a scan needs {FEWEST}: are these metres in the sensor's frame? --max-range widens it",
        )
        return np.asarray(scan[inside], np.float32)

    @torch.no_grad()
    def __call__(self, scan: npt.NDArray[Any]) -> Completion:
        """Return the completion of a raw scan "n 3" in the sensor's frame; UserError when too little is in range."""
        done = Completion(np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), steps=self.steps)
        with self._timed(done, "thin"):
            near = self.prepare(scan)
            done.scan = near[farthest_points(near, self.config.points // self.config.tiling)]
        with self._timed(done, "encode"):
            raw = scan_condition([done.scan], self.config.tiling, self.device)
            cond = self.backbone.encode(raw)
        with self._timed(done, "sample"), self._precision():
            made = self.sample(cond, done).float()
        with self._timed(done, "crop"):
            points = made[0].cpu().numpy()
            if self.config.crop:
                points = crop_prediction(points, near, self.config.max_range).astype(np.float32)
            check(len(points) > 0, f"{self.name} put no point where the scan is: is it trained, and for such scans?")
            done.points = points
        if self.refiner is not None:
            with self._timed(done, "refine"), self._precision():
                refined = self.refiner(torch.from_numpy(points)[None].to(self.device))
                done.points = refined[0].float().cpu().numpy()
        return done

    def sample(self, cond: Cond, done: Completion) -> Tensor:
        """Return the points "1 n 3" sampled under an encoded condition, and count evaluations into ``done``."""
        counted = Counted(scene_denoiser(self.backbone))
        denoiser: Denoiser = Guided(counted, self.scale)
        rng = Rng(self.config.seed, 0, (0,), "complete", self.device, 1)
        noise = rng.normal("noise", tuple(cond["anchor"].shape[1:]))
        if self.plan is not None and self._walks_plan:
            made = run_plan(denoiser, _with_steps(self.plan, self.steps, denoiser), noise, cond, rng)
        else:
            made = sample_scene(denoiser, cond, noise, rng, steps=self.steps, official=self._solver == "official")
        done.evaluations = counted.rows
        return made

    def _precision(self) -> torch.autocast:
        half = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)

    @contextmanager
    def _timed(self, done: Completion, stage: str) -> Iterator[None]:
        since = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        done.seconds[stage] = time.perf_counter() - since


def _with_steps(plan: StepPlan, steps: int, denoiser: Denoiser) -> StepPlan:
    """Return a student's plan, or with another number of steps the same kind of plan at even times."""
    if steps == len(plan.times):
        return plan
    return replace(plan, times=time_grid(denoiser.process, steps, "even"))
