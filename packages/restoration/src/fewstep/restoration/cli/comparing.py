"""`fewstep restoration compare`: pictures of one scene side by side; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fewstep.core.cli.verbs import positive
from fewstep.core.errors import check
from fewstep.restoration.comparison.limits import ENLARGEMENTS, MAX_PICTURES, MAX_ZOOM


def _box(text: str) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise ArgumentTypeError(f"'{text}' is not x,y,w,h in whole pixels of the largest picture")
    left, top, width, height = map(int, parts)
    return left, top, width, height


def compare_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fewstep restoration compare``."""
    parser.add_argument("files", nargs="+", type=Path, metavar="PICTURE", help=f"2 to {MAX_PICTURES}, of one shape")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.png", help="a sheet of them (compare.png)")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="a page with a slider between any two")
    parser.add_argument("--labels", metavar="A,B,...", help="one per picture (the names of the files)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--crop", type=_box, metavar="X,Y,W,H", help="only this part, in pixels of the largest picture")
    part.add_argument(
        "--zoom", type=positive, default=1, metavar="N", help=f"only the middle 1/N of the sides (1, up to {MAX_ZOOM})"
    )
    parser.add_argument(
        "--enlarge",
        choices=ENLARGEMENTS,
        default="nearest",
        help="how smaller pictures get the largest's size (nearest)",
    )


def compare(args: Namespace) -> None:
    """Draw the pictures as a PNG, write the page where it is asked for, and print where they are.

    A sheet is drawn unless only a page is asked for. Raises UserError for what cannot be read, compared or written.
    """
    from fewstep.restoration.comparison.panels import make_panels
    from fewstep.restoration.pictures.reading import read_picture

    files: list[Path] = args.files
    check(2 <= len(files) <= MAX_PICTURES, f"{len(files)} pictures to compare: give 2 to {MAX_PICTURES}")
    labels = args.labels.split(",") if args.labels is not None else _names(files)
    check(len(labels) == len(files), f"--labels names {len(labels)} pictures, {len(files)} are given")
    out = args.out if args.out or args.html else Path("compare.png")
    for option, path, suffixes in (("-o", out, (".png",)), ("--html", args.html, (".html", ".htm"))):
        if path is not None:
            check(path.suffix.lower() in suffixes, f"{option} {path}: give a name that ends in {suffixes[0]}")
            same = [file for file in files if path.exists() and file.exists() and path.samefile(file)]
            check(not same, f"{option} {path}: one of the pictures to compare; give another name")
    pictures = [(label, read_picture(file)) for label, file in zip(labels, files, strict=True)]
    panels = make_panels(pictures, enlarge=args.enlarge, crop=args.crop, zoom=args.zoom)
    if out is not None:
        from fewstep.restoration.comparison.sheet import draw_sheet

        sys.stdout.write(f"{draw_sheet(panels, out)}\n")
    if args.html is not None:
        from fewstep.restoration.comparison.html import write_page

        sys.stdout.write(f"{write_page(panels, args.html)}\n")


def _names(files: list[Path]) -> list[str]:
    """Return the stems of files, with their folders where stems are equal."""
    stems = [file.stem for file in files]
    return [f"{f.parent.name}/{f.stem}" if stems.count(f.stem) > 1 else f.stem for f in files]
