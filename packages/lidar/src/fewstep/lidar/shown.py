"""Held-out scenes that students are looked at and measured on."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.denoiser import Cond
from fewstep.core.rng import Rng
from fewstep.lidar.data.pairs import jittered
from fewstep.lidar.metrics.distances import chamfer
from fewstep.lidar.metrics.occupancy import CompletionIoU, jsd_bev
from fewstep.lidar.scenes import Float32, Pair, Scenes, generator_of, scan_condition
from fewstep.lidar.settings import RefinerConfig

VOXEL = 0.5
SPREAD = 0.618034  # of the golden section: any number of scenes is spread over the drives


class ShownScenes:
    """Pairs of held-out scans: the same for every run of a config, however many are asked for."""

    def __init__(self, scenes: Scenes, seed: int, refiner: RefinerConfig | None = None) -> None:
        self.scenes, self.refiner = scenes, refiner
        self._pairs: list[Pair] = []
        where = f"windows of {scenes.config.window:g} m" if scenes.config.window else "whole scenes"
        self.protocol = (
            f"{where} of held-out scans; Chamfer distance: mean of both directed mean distances, metres; JSD BEV: root "
            f"of the Jensen-Shannon divergence of 0.5 m columns; IoU at {VOXEL} m over all scenes"
        )

    def _pair(self, i: int) -> Pair:
        while len(self._pairs) <= i:
            number = len(self._pairs)
            index = int((number * SPREAD) % 1 * len(self.scenes))
            own = generator_of(Rng(0, 0, (number,), "shown"), 0)
            self._pairs.append(self.scenes.pair(index, own, moved=False))
        return self._pairs[i]

    def conditions(self, n: int) -> Cond:
        """Return the conditions of the first ``n`` scenes; ``cond["scene"]`` "n" tells :meth:`evaluate` which."""
        pairs, config = [self._pair(i) for i in range(n)], self.scenes.config
        index = {"scene": torch.arange(n)}
        if self.refiner is None:
            return dict(scan_condition([pair.scan for pair in pairs], config.tiling)) | index
        return {"points": torch.from_numpy(np.stack([self._jittered(i) for i in range(n)]))} | index

    def _jittered(self, i: int) -> Float32:
        assert self.refiner is not None
        own = generator_of(Rng(0, 1, (i,), "shown"), 0)
        jitter, limit = self.refiner.jitter, self.refiner.jitter_limit
        return jittered(self._pair(i).scene, self.scenes.config.points, jitter, limit, own)

    def evaluate(self, samples: Float[Tensor, "n p 3"], cond: Cond) -> dict[str, float]:
        """Return the means over scenes of the metrics of the protocol."""
        truths = [torch.from_numpy(self._pair(int(i)).scene) for i in cond["scene"]]
        clouds = [sample.double().cpu() for sample in samples]
        overlap = CompletionIoU((VOXEL,))
        for made, truth in zip(clouds, truths, strict=True):
            overlap.update(made, truth)
        pairs = list(zip(clouds, truths, strict=True))
        return {
            "Chamfer distance": float(np.mean([chamfer(made, truth).value for made, truth in pairs])),
            "JSD BEV": float(np.mean([jsd_bev(made, truth) for made, truth in pairs])),
            f"IoU {VOXEL} m": overlap.value()[VOXEL],
        }
