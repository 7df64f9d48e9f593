"""`python -m fewstep.threed.nerfstudio RUN OUT`: the scene of a run of `ns-train` as a file or as an asset's folder.

A command of its own, and no part of `fewstep threed`: nerfstudio's configs are Python objects, which reading runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fewstep.core.cli.main import Parser, guarded
from fewstep.threed.assets import save_as, write_asset
from fewstep.threed.nerfstudio.opening import open_run


def main(words: Sequence[str] | None = None) -> int:
    """Write the scene; returns the exit code, that of `fewstep`'s commands."""
    return guarded(lambda: write_scene(sys.argv[1:] if words is None else words))


def write_scene(words: Sequence[str]) -> None:
    """Write the scene that ``words`` name; UserError for what is no run and cannot be written."""
    parser = Parser(prog="python -m fewstep.threed.nerfstudio", description=__doc__)
    parser.add_argument("run", type=Path, help="a run you trust: its config.yml, or the folder of that")
    parser.add_argument("out", type=Path, help=".ply or .splat, .glb or .obj; a name without a suffix: a folder")
    args = parser.parse_args(words)
    asset = open_run(args.run)
    if args.out.suffix:
        save_as(asset.scene, args.out)
    else:
        write_asset(asset.scene, args.out, {"name": asset.prompt, "run": str(args.run)}, prompt=asset.prompt)


if __name__ == "__main__":
    sys.exit(main())
