"""The mesh renderer of plane fields: each object's surface as triangles, with gradient, seen by its cameras."""

from __future__ import annotations

import torch

from fewstep.core.errors import check
from fewstep.core.tensors import scale_gradient
from fewstep.threed.cameras import Camera
from fewstep.threed.fields.normals import ScalarField
from fewstep.threed.fields.tetrahedra import extract_trainable
from fewstep.threed.planes.field import PlaneField, at_points, deformed
from fewstep.threed.views import Views

SURFACE_GRADIENT = 0.001  # of what reaches distance and deformation: PRD's, whose two renderers so pull alike


def mesh_views(
    field: PlaneField,
    camera: Camera,
    resolution: int = 64,
    *,
    background: float = 1.0,
    gradient: float = SURFACE_GRADIENT,
) -> Views:
    """Return what cameras see of the objects' meshes; as many per object, an object's next to each other.

    An object without surface gets a speck in the middle of its cube, from where it can grow. Raises UserError for
    cameras that do not divide.
    """
    from fewstep.threed.fields.mesh_rendering import render_mesh

    check(len(camera) % len(field) == 0, f"{len(camera)} cameras cannot be shared by {len(field)} objects")
    each, bound = len(camera) // len(field), field.config.bound
    device, dtype = field.geometry.device, field.geometry.dtype
    seen = []
    for index in range(len(field)):
        one = field.only(index)
        mesh = extract_trainable(
            _surface(one, gradient), resolution, bound=bound, device=device, dtype=dtype, ensure_surface=True
        )
        mesh = deformed(one, mesh, resolution, gradient)
        own = camera.select(index * each, (index + 1) * each)
        seen.append(render_mesh(mesh, own, at_points(one.colour), background=background))
    parts = ((view.rgb, view.alpha, view.depth, view.normal) for view in seen)
    return Views(*(torch.cat(found) for found in zip(*parts, strict=True)))


def _surface(field: PlaneField, gradient: float) -> ScalarField:
    return at_points(lambda points: scale_gradient(field.sdf(points), gradient))
