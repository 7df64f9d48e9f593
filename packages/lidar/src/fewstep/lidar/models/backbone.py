"""The denoiser as core sees it: noisy points in, their noise out; the partial scan is the condition."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError
from fewstep.core.networks.backbone import ExtensibleBackbone, entry
from fewstep.core.networks.embedding import ExtraInputs
from fewstep.core.rng import Rng
from fewstep.lidar.models.unet import NetworkConfig, ScanEncoder, Scene, SparseUNet
from fewstep.lidar.sparse.backend import find_backend, using_backend
from fewstep.lidar.sparse.sites import Sites, pack, voxelise

ENCODED = ("scan_voxels", "scan_features")


def time_features(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b w"]:
    """Return LiDiff's sinusoids of an unscaled index: sines, then cosines, frequencies ``1e4^(-i / (width/2 - 1))``."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float64) * (-math.log(1e4) / (half - 1)))
    angles = t.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class LidarBackbone(ExtensibleBackbone):
    """Scan encoder and denoiser on voxels of ``config.resolution``.

    Samples are points "b n 3" in metres. Condition: ``scan`` "b m 3", the partial scans; one of zeros is the
    unconditional one. :meth:`encode` replaces ``scan`` by its features, computed once for many calls.
    """

    lora_targets: tuple[str, ...] = ("linear", "shortcut", "head.0", "head.2", "scan.0", "scan.2", "joint.0", "joint.2")

    def __init__(self, config: NetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.backend = config, "torch"
        with Rng(seed, 0, ()).network_noise("init"):
            self.encoder = ScanEncoder(config)
            self.unet = SparseUNet(config, 3, gated=True)
        self.extra_inputs: ExtraInputs | None = None

    @property
    def network(self) -> nn.Module:
        """The denoising U-Net; adapters never touch the encoder."""
        return self.unet

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """Return the raw output "b n 3"; UserError when the condition lacks an entry."""
        points = x.flatten(0, 1)
        voxels = voxelise(points, samples_of(x), self.config.resolution)
        embedding = self._embedding(time, cond, x.dtype)
        with using_backend(find_backend(self.backend)):
            out: Tensor = self.unet(voxels.mean(points), voxels.sites, self._scene(cond), embedding)
        return voxels.slice(out).view_as(x)

    def _embedding(self, time: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor:
        features = time_features(time, self.config.time_width).to(dtype)
        if self.extra_inputs is None:
            return features
        added = self.extra_inputs(cond, lambda t: time_features(t, self.config.time_width).to(dtype), "LidarBackbone")
        told: Tensor = features + added
        return told

    def _scene(self, cond: Cond) -> Scene:
        """Return features of the scans, from the condition where they are there already.

        An unconditional scan is a single voxel. It has no statistics of its own to train by, so it is always encoded
        with the running ones, by itself.
        """
        if ENCODED[0] in cond:
            return _unpack(cond, self.config.resolution)
        scan = entry(cond, "scan", type(self).__name__)
        empty = (scan == 0).flatten(1).all(1)
        points, sample = scan.flatten(0, 1), samples_of(scan)
        if not bool(empty.any()):
            voxels = voxelise(points, sample, self.config.resolution)
            scene: Scene = self.encoder(voxels.mean(points), voxels.sites)
            return scene
        parts: list[Scene] = []
        full = ~empty[sample]
        if bool(full.any()):
            voxels = voxelise(points[full], sample[full], self.config.resolution)
            parts.append(self.encoder(voxels.mean(points[full]), voxels.sites))
        parts.append(self._nothing(empty.nonzero()[:, 0], scan))
        keys = torch.cat([part.sites.keys for part in parts])
        order = keys.argsort()
        features = torch.cat([part.features for part in parts])
        return Scene(Sites(keys[order], parts[0].sites.stride), features[order])

    def _nothing(self, samples: Tensor, like: Tensor) -> Scene:
        origin = like.new_zeros(len(samples), 3)
        voxels = voxelise(origin, samples, self.config.resolution)
        mode = self.encoder.training
        self.encoder.eval()
        try:
            scene: Scene = self.encoder(voxels.mean(origin), voxels.sites)
        finally:
            self.encoder.train(mode)
        return scene

    @torch.no_grad()
    def encode(self, cond: Cond) -> Cond:
        """Return the condition with ``scan_voxels`` and ``scan_features`` in place of ``scan``: for sampling, no graph.

        Both are padded to the largest scan of the batch (voxels of padding are marked by the least integer).
        """
        if ENCODED[0] in cond:
            return cond
        scene = self._scene(cond)
        rest = {name: value for name, value in cond.items() if name != "scan"}
        return rest | _pack(scene, len(cond["scan"]))

    def null(self, cond: Cond) -> Cond:
        """Return the condition with nothing scanned."""
        if ENCODED[0] not in cond:
            scan = entry(cond, "scan", type(self).__name__)
            return dict(cond) | {"scan": torch.zeros_like(scan)}
        voxels, features = (cond[name] for name in ENCODED)
        samples = torch.arange(len(voxels), device=voxels.device)
        with torch.no_grad():
            nothing = _pack(self._nothing(samples, features), len(voxels))
        wide = voxels.shape[1] - 1
        return dict(cond) | {
            ENCODED[0]: nn.functional.pad(nothing[ENCODED[0]], (0, 0, 0, wide), value=PADDING),
            ENCODED[1]: nn.functional.pad(nothing[ENCODED[1]], (0, 0, 0, wide)),
        }

    def with_extras(self, names: tuple[str, ...], seed: int) -> LidarBackbone:
        """Return a backbone around the same networks with embeddings of ``names`` added to that of the time."""
        out = copy.copy(self)
        out._modules = dict(self._modules)  # the copy gets a table of its own: what it adds is not seen by this one
        width = self.config.time_width
        old = self.extra_inputs or ExtraInputs((), width, width, seed)
        out.extra_inputs = old.extended(names, seed).to(next(self.unet.parameters()))
        out.extras = out.extra_inputs.names
        return out

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        from fewstep.lidar.models.files import save_denoiser

        save_denoiser(self, folder)

    def taps(self, where: str = "bottleneck") -> tuple[str, ...]:
        """Raise UserError: features live on voxels, of which every cloud has another number."""
        raise UserError("LidarBackbone gives no features to a discriminator: its voxels differ from cloud to cloud")


PADDING = torch.iinfo(torch.int64).min


def samples_of(x: Tensor) -> Int[Tensor, " p"]:
    """Return the cloud every row of a flattened "b n 3" belongs to."""
    return torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])


def _pack(scene: Scene, batch: int) -> dict[str, Tensor]:
    counts = torch.bincount(scene.sites.sample, minlength=batch)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(scene.sites), device=counts.device) - first[scene.sites.sample]
    most = int(counts.max())
    voxels = scene.sites.coords.new_full((batch, most, 3), PADDING)
    features = scene.features.new_zeros(batch, most, scene.features.shape[1])
    voxels[scene.sites.sample, place] = scene.sites.coords
    features[scene.sites.sample, place] = scene.features
    return {ENCODED[0]: voxels, ENCODED[1]: features}


def _unpack(cond: Cond, resolution: float) -> Scene:
    voxels, features = (cond[name] for name in ENCODED)
    real = voxels[..., 0] != PADDING
    keys = pack(voxels[real], samples_of(voxels)[real.flatten()])
    return Scene(Sites(keys, 16), features[real])
