"""A session with nerfstudio, run by its own interpreter: `nerf_session.py TEACHER FOLDER` writes FOLDER/found.json.

It calls what `ns-train`, `ns-export` and `ns-eval` call, in one process, since each takes long to start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def command(entry: Callable[[], None], *words: object) -> None:
    sys.argv = [entry.__module__, *map(str, words)]
    entry()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def session(teacher: Path, folder: Path) -> dict[str, object]:
    from nerfstudio.scripts import eval as evaluation
    from nerfstudio.scripts import exporter, train

    from fewstep.threed.assets import read_asset
    from fewstep.threed.gaussians.ply import read_ply
    from fewstep.threed.nerfstudio.__main__ import main
    from fewstep.threed.nerfstudio.opening import open_run
    from fewstep.threed.nerfstudio.world import TO_Z_UP, turned

    torch.set_num_threads(2)

    def trained(method: str, name: str, steps: int, *words: object) -> Path:
        always = ("--machine.device-type", "cpu", "--vis", "tensorboard", "--output-dir", folder, "--timestamp", name)
        quiet = ("--logging.local-writer.enable", "False")
        sight = ("--pipeline.datamanager.looks", 12, "--pipeline.datamanager.size", 40)
        base = ("--pipeline.model.teacher", teacher, "--prompt", "a blue sphere", "--max-num-iterations", steps)
        command(train.entrypoint, method, *always, *quiet, *sight, *base, *words)
        return folder / "fewstep" / method / name

    cloud = ("--pipeline.model.scene.count", 60, "--pipeline.model.scene.degree", 2)
    whole = trained("fewstep-sds", "whole", 6, *cloud, "--steps-per-eval-image", 3, "--steps-per-eval-batch", 3)
    part = trained("fewstep-sds", "part", 4, *cloud)
    rest = trained("fewstep-sds", "rest", 2, *cloud, "--load-dir", part / "nerfstudio_models")
    command(exporter.entrypoint, "gaussian-splat", "--load-config", whole / "config.yml", "--output-dir", folder)
    asset, exported = open_run(whole), read_ply(folder / "splat.ply")
    mine, halfway, resumed = asset.scene.gaussians(), open_run(part).scene.gaussians(), open_run(rest).scene.gaussians()
    up = turned(mine, TO_Z_UP)
    found: dict[str, object] = {
        "prompt": asset.prompt,
        "gaussians": len(mine),
        "resumed": max(difference(getattr(mine, name), getattr(resumed, name)) for name in vars(mine)),
        "moved": difference(mine.means, halfway.means),
        "splat": max(difference(getattr(up, name), getattr(exported, name)) for name in vars(up)),
    }
    command(evaluation.entrypoint, "--load-config", whole / "config.yml", "--output-path", folder / "eval.json")
    found["eval"] = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["results"]

    small = ("--pipeline.model.scene.kind", "neus", "--pipeline.model.scene.planes", 8, 4)
    field = trained("fewstep-vsd", "field", 2, *small, "--pipeline.model.critic-rank", 2)
    given = ("--load-config", field / "config.yml", "--output-dir", folder)
    command(exporter.entrypoint, "pointcloud", *given, "--num-points", 3000, "--num-rays-per-batch", 4096)
    coarse = ("--resolution", 48, "--downscale-factor", 1, "--texture-method", "tsdf")
    command(exporter.entrypoint, "tsdf", *given, *coarse)
    found |= shapes(folder, open_run(field).scene)
    codes = [main([str(field), str(folder / "field.glb")]), main([str(whole / "config.yml"), str(folder / "asset")])]
    kept = read_asset(folder / "asset")
    found["command"] = [*codes, (folder / "field.glb").stat().st_size > 0, kept.prompt]
    found["kept"] = difference(kept.scene.gaussians().means, mine.means)
    return found


def shapes(folder: Path, scene: object) -> dict[str, float]:
    """Distances from the middle of the exported points, and how far mesh and scene are apart."""
    import numpy as np
    import trimesh

    from fewstep.threed.nerfstudio.world import to_z_up

    points = np.asarray(trimesh.load(folder / "point_cloud.ply").vertices)
    mesh = trimesh.load(folder / "tsdf_mesh.ply")
    mine = to_z_up(scene.mesh(48).vertices).numpy()
    return {
        "points": len(points),
        "points_off": float(np.abs(np.linalg.norm(points, axis=1) - np.linalg.norm(mine, axis=1).mean()).mean()),
        "mesh_off": float(np.abs(mesh.bounds - np.stack([mine.min(0), mine.max(0)])).max()),
    }


if __name__ == "__main__":
    import ctypes

    import libusb_package

    # open3d wants the system's libusb, which servers have not
    ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
    into = Path(sys.argv[2])
    report = session(Path(sys.argv[1]), into)
    (into / "found.json").write_text(json.dumps(report), encoding="utf-8")
