"""Pictures of solids to 3D: silhouette IoU and PSNR on unseen sides, of Gaussians and meshes, and CPU seconds of each.

`python benchmarks/threed_gsv3d.py [MODEL] [--sides 0 105] [--meshes]`: a shipped model's name or its folder.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.threed.cameras import Camera, orbit
from fewstep.threed.fields.mesh_rendering import render_mesh
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.image_to_3d import ImageTo3D, load_image_to_3d
from fewstep.threed.metrics.pictures import psnr, silhouette_iou
from fewstep.threed.orbit.supervision import render_clouds, visible
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.shapes import Prompt, build, render, split_prompts

ELEVATION = 15.0
LOOKS = (
    (22.0, 5.0),
    (67.0, 22.0),
    (112.0, -5.0),
    (157.0, 35.0),
    (202.0, 10.0),
    (247.0, 28.0),
    (292.0, 0.0),
    (337.0, 18.0),
)
SIZE = 64


def cameras(model: ImageTo3D, turn: float) -> Camera:
    """The unseen sides, in a world whose front is ``turn`` degrees on."""
    azimuth, elevation = torch.tensor(LOOKS).T
    full = torch.ones_like(azimuth)
    geometry = model.geometry
    return orbit(azimuth + turn, elevation, full * geometry.distance, full * geometry.fov_y_deg, SIZE, SIZE)


def photograph(model: ImageTo3D, prompt: Prompt, side: float) -> Tensor:
    """The picture a model sees of a prompt's solid, over white."""
    one, geometry = torch.ones(1), model.geometry
    camera = orbit(
        one * side, one * ELEVATION, one * geometry.distance, one * geometry.fov_y_deg, geometry.size, geometry.size
    )
    return render(build(prompt), camera.world_to_camera, camera.intrinsics, geometry.size, geometry.size).rgb


def silhouettes(mesh: Mesh, camera: Camera) -> Tensor:
    """Pixels whose centres a triangle covers, "b 1 h w"."""
    return render_mesh(mesh, camera, samples=1).alpha


def main() -> None:
    """Print one line per thing, and the means."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("model", nargs="?", default="orbit")
    given.add_argument("--sides", type=float, nargs="+", default=[0.0, 105.0])
    given.add_argument("--meshes", action="store_true")
    given.add_argument("--things", type=int, default=0, help="of each part, 0 for all")
    args = given.parse_args()
    model = load_image_to_3d(args.model)
    for part, prompts in zip(("training", "held out"), split_prompts(), strict=True):
        rows = []
        for prompt in prompts[: args.things or None]:
            for side in args.sides:
                row = measure(model, prompt, side, args.meshes)
                rows.append(row)
                print(f"{part:9} {prompt!s:18} from {side:3.0f}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))
        for name in rows[0]:
            values = torch.tensor([row.get(name, torch.nan) for row in rows])
            print(f"{part}: {name} mean {float(values.nanmean()):.3f}, least {float(values.min()):.3f}", flush=True)


def measure(model: ImageTo3D, prompt: Prompt, side: float, meshes: bool) -> dict[str, float]:
    """The numbers of one asset."""
    picture = photograph(model, prompt, side)
    since = time.process_time()
    cloud = visible(model.gaussians(picture, ELEVATION)[0])
    row = {"seconds": time.process_time() - since}
    true_camera = cameras(model, side)
    true = render(build(prompt), true_camera.world_to_camera, true_camera.intrinsics, SIZE, SIZE)
    with torch.no_grad():
        made = render_clouds([cloud], cameras(model, 0.0))
    row["iou"] = float(silhouette_iou(made.alpha[0], true.alpha).mean())
    row["psnr"] = float(psnr(made.rgb[0], true.rgb).mean())
    if meshes:
        since = time.process_time()
        try:
            mesh = GaussianScene(cloud).mesh(64)
        except UserError:
            return row | {"mesh_iou": 0.0, "mesh_seconds": time.process_time() - since}
        row["mesh_seconds"] = time.process_time() - since
        row["mesh_iou"] = float(silhouette_iou(silhouettes(mesh, cameras(model, 0.0)), true.alpha).mean())
    return row


if __name__ == "__main__":
    main()
