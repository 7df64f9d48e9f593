"""An interactive viewer in the browser, through viser (an extra)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fewstep.core.errors import UserError
from fewstep.threed.gaussians.harmonics import to_rgb
from fewstep.threed.gaussians.projection import covariances
from fewstep.threed.views import Scene

MISSING = (
    "the viewer needs viser: `pip install 'fewstep-threed[viewer]'`, or `fewstep threed render ASSET -o page.html`"
)


def serve(scene: Scene, port: int, *, seconds: float | None = None) -> None:
    """Show a scene at http://localhost:``port`` until interrupted, or for so long: Gaussians where it has some.

    Otherwise its mesh. Raises UserError where viser is not installed, and where there is neither.
    """
    try:
        import viser  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(MISSING) from None
    server: Any = viser.ViserServer(port=port)
    add_scene(server, scene)
    until = None if seconds is None else time.monotonic() + seconds
    try:
        while until is None or time.monotonic() < until:
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


def add_scene(server: Any, scene: Scene) -> None:
    """Put a scene into a viser server, y up."""
    server.scene.set_up_direction("+y")
    cloud = scene.gaussians()
    if cloud is not None:
        server.scene.add_gaussian_splats(
            "/asset",
            centers=cloud.means.detach().cpu().numpy(),
            covariances=covariances(cloud.quaternions, cloud.scales).detach().cpu().numpy(),
            rgbs=to_rgb(cloud.harmonics[:, 0]).clamp(0, 1).detach().cpu().numpy(),
            opacities=cloud.opacities.detach().cpu().numpy()[:, None],
        )
        return
    mesh = scene.mesh()
    import trimesh

    colours = None if mesh.colours is None else (mesh.colours.cpu().numpy() * 255).round().astype(np.uint8)
    made = trimesh.Trimesh(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy(), vertex_colors=colours, process=False)
    server.scene.add_mesh_trimesh("/asset", made)
