"""A session with nerfstudio, run by its own interpreter: `nerf_session.py TEACHER FOLDER` writes FOLDER/found.json.

It calls what `ns-train`, `ns-export` and `ns-eval` call, in one process, since each takes long to start.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

SMALL_FIELD = ("--pipeline.model.scene.kind", "neus", "--pipeline.model.scene.planes", 8, 4)
LOOKS = 12
SEED = 42  # nerfstudio's own, `--machine.seed`


def command(entry: Callable[[], None], *words: object) -> None:
    """Call a program of nerfstudio; its seconds go to the errors' stream, which a failed test shows."""
    sys.argv = [entry.__module__, *map(str, words)]
    start = time.monotonic()
    entry()
    print(f"{time.monotonic() - start:.1f} s: {entry.__module__} {words[0]}", file=sys.stderr, flush=True)


def refusal(entry: Callable[[], None], *words: object) -> str:
    """Return how a program of nerfstudio ends that should not do what it is asked."""
    try:
        command(entry, *words)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of anything a checkpoint holds of a model."""
    assert one.keys() == other.keys()
    return max(difference(one[name], other[name]) for name in one if one[name].numel())


@dataclass(frozen=True)
class Runs:
    """Short runs of `ns-train` with one teacher, in one folder."""

    teacher: Path
    folder: Path

    def words(self, method: str, name: str, steps: int, vis: str = "tensorboard") -> tuple[object, ...]:
        """What each run is told."""
        always = ("--machine.device-type", "cpu", "--output-dir", self.folder, "--timestamp", name, "--vis", vis)
        quiet = ("--logging.local-writer.enable", "False")
        sight = ("--pipeline.datamanager.looks", LOOKS, "--pipeline.datamanager.size", 40)
        of = ("--pipeline.model.teacher", self.teacher, "--prompt", "a blue sphere", "--max-num-iterations", steps)
        return (method, *always, *quiet, *sight, *of)

    def train(self, method: str, name: str, steps: int, *words: object, **kind: str) -> Path:
        """Train; returns the run's folder."""
        from nerfstudio.scripts import train

        command(train.entrypoint, *self.words(method, name, steps, **kind), *words)
        return self.folder / "fewstep" / method / name

    def resume(self, run: Path, name: str, steps: int, *words: object) -> Path:
        """Train on from the last checkpoint of a run; returns the new run's folder."""
        return self.train(run.parent.name, name, steps, *words, "--load-dir", run / "nerfstudio_models")

    @staticmethod
    def state(run: Path) -> dict[str, torch.Tensor]:
        """What the last checkpoint holds of the model."""
        last = max((run / "nerfstudio_models").glob("*.ckpt"))
        return torch.load(last, weights_only=True)["pipeline"]


def session(teacher: Path, folder: Path) -> dict[str, object]:
    runs = Runs(teacher, folder)
    return {**listed(), **gaussians(runs), **field(runs), **refused(runs)}


def listed() -> dict[str, object]:
    """What `ns-train --help` shows of our methods."""
    from nerfstudio.scripts import train

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        command(train.entrypoint, "--help")
    return {"listed": [name for name in ("fewstep-sds", "fewstep-csd", "fewstep-vsd") if name in shown.getvalue()]}


def gaussians(runs: Runs) -> dict[str, object]:
    """Train Gaussians, in one go and in two; export, evaluate, take them out."""
    from nerfstudio.scripts import eval as evaluation
    from nerfstudio.scripts import exporter

    from fewstep.threed.assets import read_asset
    from fewstep.threed.gaussians.ply import read_ply
    from fewstep.threed.nerfstudio.__main__ import main
    from fewstep.threed.nerfstudio.opening import open_run
    from fewstep.threed.nerfstudio.world import TO_Z_UP, turned
    from fewstep.threed.problems.scene import make_scene
    from fewstep.threed.settings import SceneConfig

    folder = runs.folder
    cloud = ("--pipeline.model.scene.count", 60, "--pipeline.model.scene.degree", 2)
    looked_at = ("--steps-per-eval-image", 3, "--steps-per-eval-batch", 3)
    whole = runs.train("fewstep-sds", "whole", 6, *cloud, *looked_at)
    part = runs.train("fewstep-sds", "part", 4, *cloud)
    rest = runs.resume(part, "rest", 2, *cloud)
    viewed = ("--viewer.quit-on-train-completion", "True", "--viewer.websocket-host", "127.0.0.1")
    csd = runs.train("fewstep-csd", "csd", 1, *cloud, *viewed, vis="viewer")
    start = make_scene(SceneConfig(count=60, degree=2), SEED)
    asset = open_run(whole)
    mine = asset.scene.gaussians()
    up = turned(mine, TO_Z_UP)

    given = ("--load-config", whole / "config.yml")
    command(exporter.entrypoint, "gaussian-splat", *given, "--output-dir", folder)
    exported = read_ply(folder / "splat.ply")
    command(evaluation.entrypoint, *given, "--output-path", folder / "eval.json")
    code = main([str(whole / "config.yml"), str(folder / "asset")])
    kept = read_asset(folder / "asset")
    return {
        "gaussians": len(mine),
        "moved": apart(runs.state(whole), runs.state(part)),
        "resumed": apart(runs.state(whole), runs.state(rest)),
        "first_step": difference(open_run(csd).scene.stored["means"], start.stored["means"]),
        "splat": max(difference(getattr(up, name), getattr(exported, name)) for name in vars(up)),
        "eval": json.loads((folder / "eval.json").read_text(encoding="utf-8"))["results"],
        "asset": [code, asset.prompt, kept.prompt, difference(kept.scene.gaussians().means, mine.means)],
        "by_rays": refusal(exporter.entrypoint, "pointcloud", *given, "--output-dir", folder),
    }


def field(runs: Runs) -> dict[str, object]:
    """Train a field and its critic, in one go and in two; export its surface."""
    from nerfstudio.scripts import exporter

    from fewstep.threed.nerfstudio.__main__ import main
    from fewstep.threed.nerfstudio.opening import open_run

    small = (*SMALL_FIELD, "--pipeline.model.critic-rank", 2)
    whole = runs.train("fewstep-vsd", "whole", 2, *small)
    part = runs.train("fewstep-vsd", "part", 1, *small)
    rest = runs.resume(part, "rest", 1, *small)
    given = ("--load-config", whole / "config.yml", "--output-dir", runs.folder)
    texture = ("--target-num-faces", 500, "--num-pixels-per-side", 64)
    points = ("--num-points", 3000, "--num-rays-per-batch", 4096)
    command(exporter.entrypoint, "pointcloud", *given, *points)
    command(exporter.entrypoint, "tsdf", *given, *texture, "--resolution", 48, "--downscale-factor", 1)
    (runs.folder / "mesh.obj").rename(runs.folder / "tsdf.obj")
    command(exporter.entrypoint, "poisson", *given, *texture, *points)
    command(exporter.entrypoint, "cameras", *given)
    code = main([str(whole), str(runs.folder / "field.glb")])
    return {
        "critic_moved": critic_apart(runs.state(whole), runs.state(part)),
        "field_resumed": apart(runs.state(whole), runs.state(rest)),
        "glb": [code, (runs.folder / "field.glb").stat().st_size > 0],
        **shapes(runs.folder, open_run(whole).scene),
    }


def critic_apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of the critics of two checkpoints."""
    kept = [{name: value for name, value in state.items() if ".critic." in name} for state in (one, other)]
    return apart(*kept)


def shapes(folder: Path, scene: object) -> dict[str, object]:
    """Compare what was exported with the scene: how far points and meshes are from its surface and its bounds."""
    import numpy as np
    import trimesh

    from fewstep.threed.nerfstudio.world import to_z_up

    mine = to_z_up(scene.mesh(48).vertices).numpy()
    bounds = np.stack([mine.min(0), mine.max(0)])
    points = np.asarray(trimesh.load(folder / "point_cloud.ply").vertices)
    off = np.linalg.norm(points[::10, None] - mine[None], axis=-1).min(1)
    cameras = json.loads((folder / "transforms_train.json").read_text(encoding="utf-8"))
    return {
        "points": len(points),
        "points_off": float(off.max()),
        "meshes_off": {
            name: float(np.abs(trimesh.load(folder / name).bounds - bounds).max())
            for name in ("tsdf_mesh.ply", "tsdf.obj", "poisson_mesh.ply", "mesh.obj")
        },
        "cameras": len(cameras),
    }


def refused(runs: Runs) -> dict[str, object]:
    """What `ns-train` says to mistakes in our part of its settings."""
    from nerfstudio.scripts import train

    words = runs.words("fewstep-sds", "refused", 1)
    return {
        "data": refusal(train.entrypoint, *words, "--data", runs.folder),
        "teacher": refusal(train.entrypoint, *words, "--pipeline.model.teacher", runs.folder / "nothing"),
    }


if __name__ == "__main__":
    import ctypes

    import libusb_package

    # open3d wants the system's libusb, which servers have not
    ctypes.CDLL(str(libusb_package.get_library_path()), ctypes.RTLD_GLOBAL)
    into = Path(sys.argv[2])
    report = session(Path(sys.argv[1]), into)
    (into / "found.json").write_text(json.dumps(report), encoding="utf-8")
