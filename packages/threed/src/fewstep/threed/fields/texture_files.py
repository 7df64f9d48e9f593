"""Textured meshes as files: .glb with the picture inside, .obj beside its .mtl and .png, through trimesh."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.core.data.writing import write_whole
from fewstep.core.errors import UserError, check
from fewstep.threed.fields.texture import TexturedMesh

FORMATS = (".glb", ".obj")


def export_textured(mesh: TexturedMesh, path: Path) -> list[Path]:
    """Write ``mesh`` in the format of ``path``'s suffix and return its files, y up; each whole or not at all.

    Raises UserError for another suffix, numbers that are not finite, or a folder that is not there.
    """
    suffix = path.suffix.lower()
    check(suffix in FORMATS, f"{path}: textured meshes are written as {', '.join(FORMATS)}; give a name that ends so")
    check(path.parent.is_dir(), f"{path}: the folder is not there; make it first")
    check(
        bool(mesh.vertices.isfinite().all()) and bool(mesh.texture.isfinite().all()),
        f"{path}: the mesh has vertices or colours that are not finite; train it again",
    )
    values = (mesh.texture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    image = Image.fromarray(values.contiguous().numpy())
    contents = _glb(mesh, image, path) if suffix == ".glb" else _obj(mesh, image, path)
    for file, content in contents.items():
        try:
            write_whole(file, partial(_put, content))
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); choose another place") from None
    return list(contents)


def _put(content: bytes, file: Path) -> None:
    file.write_bytes(content)


def _glb(mesh: TexturedMesh, image: Image.Image, path: Path) -> dict[Path, bytes]:
    from trimesh.visual import material as materials

    make: Any = materials.PBRMaterial
    material = make(name=path.stem, baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    return {path: bytes(_made(mesh, material).export(file_type="glb", include_normals=True))}


def _obj(mesh: TexturedMesh, image: Image.Image, path: Path) -> dict[Path, bytes]:
    from trimesh.exchange import obj
    from trimesh.visual import material as materials

    make: Any = materials.SimpleMaterial
    write: Any = obj.export_obj
    shown = make(image=image, diffuse=[255, 255, 255, 255], ambient=[0, 0, 0, 255], specular=[0, 0, 0, 255])
    shown.name = path.stem
    text = write(_made(mesh, shown), include_normals=True, include_color=False, mtl_name=f"{path.stem}.mtl")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    material = (
        f"newmtl {path.stem}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.png\n"  # what trimesh reads too
    )
    return {
        path.with_name(f"{path.stem}.png"): buffer.getvalue(),
        path.with_name(f"{path.stem}.mtl"): material.encode(),
        path: text.encode(),
    }


def _made(mesh: TexturedMesh, material: Any) -> Any:
    import trimesh

    visual: Any = trimesh.visual.TextureVisuals
    return trimesh.Trimesh(
        mesh.vertices.detach().cpu().double().numpy(),
        mesh.faces.cpu().numpy(),
        vertex_normals=mesh.normals.detach().cpu().double().numpy(),
        visual=visual(uv=mesh.uv.detach().cpu().double().numpy(), material=material),
        process=False,
    )
