"""`fewstep threed export`: a run's student as an artefact; of a scene, its mesh with a texture where asked for."""

from __future__ import annotations

from argparse import Namespace

from fewstep.core.cli import looking
from fewstep.core.errors import check
from fewstep.core.training.opened import open_run
from fewstep.core.training.world import World
from fewstep.threed.assets import write_asset
from fewstep.threed.settings import ThreedConfig
from fewstep.threed.views import Scene


def export(args: Namespace) -> None:
    """Write the student as every domain does, or a scene with a textured mesh."""
    if not args.texture:
        looking.export(args)
        return
    opened = open_run(args.run, World(), step=args.checkpoint)
    config: ThreedConfig = opened.config.domain
    check(config.student == "scene", f"--texture: this run trains '{config.student}', no scene; texture what it makes")
    check(args.form is None, f"--as {args.form}: a scene is written in one form only: leave it out")
    scene = opened.exported()
    assert isinstance(scene, Scene)
    out = args.out or args.run / "export"
    facts = looking.card(opened, args.run)
    write_asset(scene.cpu(), out, facts, prompt=config.prompt, texture=args.texture)
    print(out)
    if args.push:
        print(looking.push(out, args.push))
