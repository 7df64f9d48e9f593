"""The verbs the threed domain adds to the command line; loads no library until one runs."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import DOMAIN_VERBS, counts, positive, takes_settings
from fewstep.core.verb import Verb


def _eval_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("assets", type=Path, nargs="+", metavar="ASSET", help="folders, runs, or .ply of Gaussians")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what they should be (what their folders say)")
    parser.add_argument(
        "--views", type=positive, default=8, metavar="N", help="on a ring, at angles nobody trained (8)"
    )
    parser.add_argument("--size", type=positive, default=64, metavar="N", help="of the pictures, in pixels (64)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the numbers as JSON as well")
    parser.add_argument(
        "--clip", default="", metavar="MODEL",
        help="measure against prompts, whatever they say: a folder or hub id of CLIP",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="prompts that CLIP chooses from besides those of the assets"
    )
    model = parser.add_argument_group("for runs of networks")
    model.add_argument("--as-run", action="store_true", help="measure a scene's run so too, beside its teacher")
    model.add_argument("--checkpoint", type=positive, metavar="STEP", help="of those the run kept (the newest)")
    model.add_argument("-n", type=positive, default=256, metavar="N", help="number of samples (256)")
    model.add_argument("--steps", type=counts, metavar="K,K", help="step counts (those the student was trained for)")
    model.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    model.add_argument("--teacher-steps", type=counts, default=(1, 4, 20), metavar="K,K", help="(1,4,20)")
    model.add_argument("--solver", default="ddim", help="of the teacher (ddim)")


def _eval(args: Namespace) -> None:
    from fewstep.threed.cli.evaluating import evaluate

    evaluate(args)


METHODS = ("sds", "csd", "vsd", "ism")


def _degrees(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -90 < value < 90:
        raise ArgumentTypeError(f"'{text}' is not an angle between -90 and 90 degrees")
    return value


def _texels(text: str) -> int:
    value = int(text) if text.isdigit() else -1
    if value != 0 and not 16 <= value <= 8192:
        raise ArgumentTypeError(f"'{text}' is not 0 or a whole number from 16 to 8192")
    return value


def _texture_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--texture", type=_texels, default=0, metavar="N",
        help="bake the mesh's colours into a picture of N texels a side (0: into its vertices)",
    )  # fmt: skip


def _export_arguments(parser: ArgumentParser) -> None:
    DOMAIN_VERBS["export"].arguments(parser)
    _texture_argument(parser)


def _export(args: Namespace) -> None:
    from fewstep.threed.cli.exporting import export

    export(args)


def _generate_arguments(parser: ArgumentParser) -> None:
    what = parser.add_argument_group("of what")
    what.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a file of prompts: txt, csv, jsonl, parquet")
    what.add_argument("--image", type=Path, action="append", metavar="FILE", help="a picture with alpha, instead")
    how = parser.add_argument_group("how")
    how.add_argument("--student", default="", metavar="NAME|DIR", help="a network that makes assets (the shipped one)")
    how.add_argument("--method", choices=METHODS, help="optimise a scene for minutes instead; settings may follow")
    how.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs of --method there")
    how.add_argument("--elevation", type=_degrees, default=15.0, metavar="DEG", help="of the camera of --image (15)")
    how.add_argument("--fit", action="store_true", help="put what is in --image into the middle of the frame first")
    how.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help=".glb, .obj, .ply or .splat; or a folder for all"
    )
    parser.add_argument("--resolution", type=positive, default=96, metavar="N", help="of the mesh's grid (96)")
    _texture_argument(parser)
    takes_settings(parser)


def _generate(args: Namespace) -> None:
    from fewstep.threed.cli.generating import generate

    generate(args)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e4:
        raise ArgumentTypeError(f"'{text}' is not a positive number")
    return value


def _render_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("asset", type=Path, metavar="ASSET", help="a folder, a run, or a .ply of Gaussians")
    parser.add_argument(
        "-o", "--out", type=Path, action="append", required=True, metavar="FILE",
        help=".gif, .mp4, .html (a page one can turn) or .png (a sheet); may be given several times",
    )  # fmt: skip
    parser.add_argument("--views", type=positive, metavar="N", help="around it (48; a sheet 8)")
    parser.add_argument("--size", type=positive, metavar="N", help="of a picture, in pixels (256; in a sheet 128)")
    parser.add_argument("--elevation", type=_degrees, default=15.0, metavar="DEG", help="of the camera (15)")
    parser.add_argument("--distance", type=_positive_number, default=2.4, metavar="X", help="of the camera (2.4)")
    parser.add_argument("--fps", type=_positive_number, default=24.0, metavar="X", help="(24)")


def _render(args: Namespace) -> None:
    from fewstep.threed.cli.looking import render

    render(args)


def _view_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("asset", type=Path, metavar="ASSET", help="a folder, a run, or a .ply of Gaussians")
    parser.add_argument("--port", type=positive, default=8080, metavar="N", help="(8080)")


def _view(args: Namespace) -> None:
    from fewstep.threed.cli.looking import view

    view(args)


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo-threed"), metavar="DIR", help="(runs/demo-threed)")


def _demo(args: Namespace) -> None:
    from fewstep.threed.demo import run_demo

    run_demo(args.out)


VERBS = {
    "demo": Verb("distil a scene, make others at once, and look at them, in minutes", _demo_arguments, _demo),
    "render": Verb("write an asset as seen from all around: film, page or sheet", _render_arguments, _render),
    "view": Verb("show an asset in the browser", _view_arguments, _view),
    "generate": Verb("make assets of prompts or pictures", _generate_arguments, _generate),
    "export": Verb(DOMAIN_VERBS["export"].summary, _export_arguments, _export),
    "eval": Verb("measure assets against the truth and their views against each other", _eval_arguments, _eval),
}
