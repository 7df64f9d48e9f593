"""`fewstep threed render` and `fewstep threed view`."""

from __future__ import annotations

from argparse import Namespace

from fewstep.threed.assets import read_asset
from fewstep.threed.looking.pictures import Ring
from fewstep.threed.looking.viewer import serve
from fewstep.threed.looking.writing import SHEET, write_looks


def render(args: Namespace) -> None:
    """Write an asset seen from all around into every file asked for."""
    asset = read_asset(args.asset)
    ring, sheet = (
        Ring(args.views or usual.views, args.size or usual.size, args.elevation, args.distance)
        for usual in (Ring(), SHEET)
    )
    write_looks(asset.scene, args.out, ring, sheet, fps=args.fps, title=asset.prompt or args.asset.stem)
    print("\n".join(map(str, args.out)))


def view(args: Namespace) -> None:
    """Show an asset in the browser until interrupted."""
    scene = read_asset(args.asset).scene
    print(f"http://localhost:{args.port} shows the asset; Ctrl-C ends")
    serve(scene, args.port)
