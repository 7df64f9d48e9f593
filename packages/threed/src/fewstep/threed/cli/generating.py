"""`fewstep threed generate`: prompts, or pictures, to assets."""

from __future__ import annotations

import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fewstep.core.cli.training import train_new
from fewstep.core.data.prompts import read_prompts
from fewstep.core.errors import UserError, check
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.threed.assets import check_target, save_as, write_asset
from fewstep.threed.domain import DOMAIN
from fewstep.threed.image_to_3d import load_image_to_3d
from fewstep.threed.metrics.cost import Cost, measure_cost
from fewstep.threed.orbit.pixels import prepare, read_picture
from fewstep.threed.planes.shipped import find_planes
from fewstep.threed.scenes.splats import GaussianScene
from fewstep.threed.views import Scene


@dataclass(frozen=True)
class Made:
    """A scene, what it was made of, and what that took, loading left out."""

    scene: Scene
    prompt: str
    name: str
    cost: Cost


def generate(args: Namespace) -> None:
    """Make an asset of each prompt or picture, write it, and say what both took."""
    texts = [*(args.prompt or ()), *(read_prompts(args.prompts) if args.prompts else ())]
    check(bool(texts) != bool(args.image), "give prompts (--prompt, --prompts) or pictures (--image), one of the two")
    for text in texts:
        check(bool(text.strip()), "--prompt: an empty prompt says nothing of an object: give one, like 'a red cone'")
    single = len(texts or args.image) == 1
    out: Path = args.out
    check(single or not out.suffix, f"-o {out}: several assets need a folder, not a file")
    if out.suffix:
        check_target(out, args.texture)
    makers = _of_images(args) if args.image else _per_scene(args, texts) if args.method else _at_once(args, texts)
    for made in makers:
        with measure_cost() as writing:
            written = _write(made, out if single else out / made.name, args)
        print(f"{written}: made in {made.cost.words()}; written in {writing.words()}")


def _write(made: Made, path: Path, args: Namespace) -> Path:
    mesh = {"resolution": args.resolution, "texture": args.texture}
    if path.suffix:
        save_as(made.scene, path, **mesh)
    else:
        write_asset(made.scene, path, {"name": made.name}, prompt=made.prompt, cost=made.cost, **mesh)
    return path


def _at_once(args: Namespace, texts: list[str]) -> Iterator[Made]:
    model = find_planes(args.student)
    for text in texts:
        with measure_cost() as cost:
            (scene,) = model.scenes([text], args.seed)
        yield Made(scene, text, _slug(text), cost)


def _of_images(args: Namespace) -> Iterator[Made]:
    check(not args.method, "--method is for prompts: leave it out with --image")
    model = load_image_to_3d(args.student) if args.student else load_image_to_3d()
    for path in args.image:
        pixels = prepare(read_picture(path), model.geometry.size, fit=args.fit, name=str(path))
        with measure_cost() as cost:
            cloud = model.gaussians(pixels[None], args.elevation, args.seed)[0]
        yield Made(GaussianScene(cloud), "", path.stem, cost)


def _per_scene(args: Namespace, texts: list[str]) -> Iterator[Made]:
    for text in texts:
        with _run_folder(args, text) as run:
            with measure_cost(World().device) as cost:
                scene = _distilled(args, text, run)
            yield Made(scene, text, _slug(text), cost)


def _distilled(args: Namespace, text: str, run: Path) -> Scene:
    asked = [*args.overrides, f"domain.prompt={text}", f"seed={args.seed}"]
    given = Namespace(config=f"{args.method}-solids", overrides=asked, domain=DOMAIN.name, print_config=False, out=run)
    outcome = train_new(given)
    if outcome is None or outcome.stopped:
        raise UserError(f"stopped; go on with `fewstep threed resume {run}`, then `fewstep threed export {run}`")
    scene = open_run(run, World()).exported()
    assert isinstance(scene, Scene)
    return scene.eval()


@contextmanager
def _run_folder(args: Namespace, text: str) -> Iterator[Path]:
    """Give the folder of a scene's run: within --runs, or one that is thrown away when it went well."""
    if args.runs is not None:
        yield args.runs / _slug(text)
        return
    folder = Path(tempfile.mkdtemp(prefix="fewstep-scene-"))
    yield folder / "run"
    shutil.rmtree(folder)


def _slug(text: str) -> str:
    """Return a name for files of a prompt."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "asset"
