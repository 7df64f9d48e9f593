"""Assets on disk: a folder with a scene and its files for other programs, or one such file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewstep.core.errors import UserError, check
from fewstep.core.models.files import read_json
from fewstep.core.models.student import facts_table, replacing, write_json
from fewstep.threed.fields.export import FORMATS, export_mesh
from fewstep.threed.fields.meshes import Mesh
from fewstep.threed.fields.texture import bake
from fewstep.threed.fields.texture_files import export_textured
from fewstep.threed.gaussians.ply import read_ply, write_ply
from fewstep.threed.gaussians.splat import read_splat, write_splat
from fewstep.threed.metrics.cost import Cost
from fewstep.threed.planes.field import PlaneScene
from fewstep.threed.scenes.field import FieldScene
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.views import Scene

RESOLUTION = 96
ABOUT, WEIGHTS, MESH, SPLATS = "asset.json", "scene.safetensors", "mesh.glb", "splats.ply"
GAUSSIAN_FORMATS = (".ply", ".splat")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Asset:
    """A scene, the prompt it was made for ("" when nobody says), and what its folder says of it."""

    scene: Scene
    prompt: str = ""
    about: Mapping[str, Any] | None = None


def write_asset(
    scene: Scene,
    folder: Path,
    card: Mapping[str, Any],
    *,
    prompt: str = "",
    cost: Cost | None = None,
    resolution: int = RESOLUTION,
    texture: int = 0,
) -> None:
    """Write a scene into ``folder``, replacing what was there: its weights, a mesh, and Gaussians where it has some.

    A scene without a surface is written without a mesh, and its README says so. ``cost``: of making it; ``resolution``,
    ``texture``: of the mesh, as in :func:`save_as`. Raises UserError for a texture too small for the mesh.
    """
    with replacing(folder) as aside:
        state = {name: value.detach().cpu().contiguous() for name, value in scene.state_dict().items()}
        save_file(state, str(aside / WEIGHTS))
        spent = {} if cost is None else {"cost": asdict(cost)}
        write_json(aside / ABOUT, {"prompt": prompt, **scene.describe(), **spent})
        lines = [f"- `{WEIGHTS}`, `{ABOUT}`: the scene, for `fewstep threed render` and the like"]
        mesh = _unless_empty(lambda: scene.mesh(resolution), lines)
        if mesh is not None:
            _write_mesh(scene, mesh, aside / MESH, texture)
            lines.append(f"- `{MESH}`: a mesh with {'a texture' if texture else 'colours'}, y up")
        cloud = _unless_empty(scene.gaussians, lines)  # of some scenes they lie on the mesh
        if cloud is not None:
            write_ply(aside / SPLATS, cloud)
            lines.append(f"- `{SPLATS}`: its Gaussians in the usual layout, for any viewer of splats")
        facts = {**card, **({} if cost is None else {"made in": cost.words(), "made on": cost.device})}
        text = f"# {prompt or card.get('name', 'asset')}\n\n" + "\n".join(lines)
        (aside / "README.md").write_text(f"{text}\n\n| | |\n|---|---|\n{facts_table(facts)}\n", encoding="utf-8")


def _unless_empty(make: Callable[[], Made | None], lines: list[str]) -> Made | None:
    """Return what was made, or nothing, and say so, where a scene has none."""
    try:
        return make()
    except UserError as error:
        line = f"- not everything could be made: {error}"
        if line not in lines:
            lines.append(line)
        return None


def read_asset(path: Path) -> Asset:
    """Return the asset of a folder, of a run's folder, or of a file of Gaussians; UserError for anything else."""
    if path.is_file():
        suffix = path.suffix.lower()
        check(
            suffix in GAUSSIAN_FORMATS,
            f"{path}: assets are read from folders with {ABOUT} and from Gaussians in {', '.join(GAUSSIAN_FORMATS)}",
        )
        return Asset(GaussianScene(read_ply(path) if suffix == ".ply" else read_splat(path)))
    for folder in (path, path / "export"):
        if (folder / ABOUT).is_file():
            return _read_folder(folder)
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: this run has exported nothing yet; run `fewstep threed export {path}` first")
    raise UserError(f"{path}: no asset there: give a folder with {ABOUT}, a run's folder, or a .ply of Gaussians")


def _read_folder(folder: Path) -> Asset:
    about = read_json(folder / ABOUT)
    makers: dict[str, type[Scene]] = {"gaussians": GaussianScene, "field": FieldScene, "planes": PlaneScene}
    kind = about.get("kind")
    check(kind in makers, f"{folder / ABOUT}: kind '{kind}' is no scene this version knows ({', '.join(makers)})")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: no readable tensors there; export the scene again") from error
    try:
        scene = makers[str(kind)].rebuilt(about, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: {ABOUT} and {WEIGHTS} do not fit each other; export the scene again") from error
    return Asset(scene.eval(), str(about.get("prompt", "")), about)


def save_as(scene: Scene, path: Path, resolution: int = RESOLUTION, texture: int = 0) -> None:
    """Write a scene as one file by its suffix: Gaussians as .ply or .splat, a mesh as .glb or .obj.

    ``resolution``: of the mesh's grid. ``texture``: its colours go into a picture of so many texels a side (.obj: into
    files beside it); 0: into its vertices. Raises UserError for another suffix, for a texture too small for the mesh or
    asked of Gaussians, and where the scene has no Gaussians or no surface.
    """
    check_target(path, texture)
    suffix = path.suffix.lower()
    if suffix not in GAUSSIAN_FORMATS:
        _write_mesh(scene, scene.mesh(resolution), path, texture)
        return
    cloud = scene.gaussians()
    if cloud is None:
        raise UserError(f"{path}: this scene has no Gaussians; write a mesh (.glb or .obj)")
    (write_ply if suffix == ".ply" else write_splat)(path, cloud)


def check_target(path: Path, texture: int = 0) -> None:
    """Raise UserError for a file no scene can be written as: another suffix, Gaussians with a texture, no folder."""
    suffix = path.suffix.lower()
    known = (*GAUSSIAN_FORMATS, *(each for each in FORMATS if each not in GAUSSIAN_FORMATS))
    check(suffix in known, f"{path}: assets are written as {', '.join(known)}; give a name that ends in one")
    check(path.parent.is_dir(), f"{path}: the folder is not there; make it first")
    if texture and suffix in GAUSSIAN_FORMATS:
        raise UserError(f"{path}: Gaussians have no texture; leave it out, or write a mesh (.glb or .obj)")


def _write_mesh(scene: Scene, mesh: Mesh, path: Path, texture: int) -> None:
    if texture:
        export_textured(bake(mesh, scene.colour_field(), texture), path)
    else:
        export_mesh(mesh, path)
