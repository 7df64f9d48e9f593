"""Meshes as files: .glb, .obj and .ply through trimesh, y up as this package and glTF have it."""

from __future__ import annotations

from pathlib import Path

import torch

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.threed.fields.meshes import Mesh

FORMATS = (".glb", ".obj", ".ply")


def export_mesh(mesh: Mesh, path: Path) -> None:
    """Write ``mesh`` in the format of ``path``'s suffix; a file of that name is replaced at once or not at all.

    Raises UserError for another suffix, an empty mesh, numbers that are not finite, or a folder that is not there.
    """
    import trimesh

    suffix = path.suffix.lower()
    check(suffix in FORMATS, f"{path}: meshes are written as {', '.join(FORMATS)}; give a name that ends in one")
    check(path.parent.is_dir(), f"{path}: the folder is not there; make it first")
    check(len(mesh.faces) > 0, f"{path}: the mesh has no triangles, so nothing was written")
    check(bool(mesh.vertices.isfinite().all()), f"{path}: the mesh has vertices that are not finite; train it again")
    colours = None
    if mesh.colours is not None:
        check(bool(mesh.colours.isfinite().all()), f"{path}: the mesh has colours that are not finite; train it again")
        rgb = (mesh.colours.detach().float().clamp(0, 1) * 255).round()
        colours = torch.cat([rgb, torch.full_like(rgb[:, :1], 255)], dim=1).to("cpu", torch.uint8).numpy()
    made = trimesh.Trimesh(
        mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy(), vertex_colors=colours, process=False
    )
    written = made.export(file_type=suffix[1:])
    content = written.encode() if isinstance(written, str) else bytes(written)
    try:
        write_whole(path, lambda aside: aside.write_bytes(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
