"""The command that turns released checkpoints into networks of this package; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def convert_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint (.ckpt, .pt); nothing in it is run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the network")
    parser.add_argument("--refiner", action="store_true", help="take the refiner, not encoder and denoiser")
    parser.add_argument("--encoder", type=Path, metavar="FILE", help="where the scan encoder is, if in another file")
    parser.add_argument(
        "--prefix", default="", metavar="NAME", help="generator, DiffModel or model (the first there is)"
    )
    parser.add_argument("--resolution", type=float, default=0.05, metavar="M", help="edge of a voxel (0.05)")


def convert(args: Namespace) -> None:
    """Write the network and say what was found. Raises UserError for anything but a whole network or a new folder."""
    from fewstep.core.errors import check

    check(not args.out.exists(), f"{args.out}: exists already; remove it, or choose another folder")
    if args.refiner:
        check(not args.encoder and not args.prefix, "--refiner needs neither --encoder nor --prefix")
        _refiner(args)
    else:
        _denoiser(args)


def _denoiser(args: Namespace) -> None:
    from fewstep.lidar.models.checkpoint import Checkpoint
    from fewstep.lidar.models.files import save_denoiser
    from fewstep.lidar.models.released import denoiser_from, find_denoiser, find_encoder, prefixes

    with Checkpoint(args.file) as found, Checkpoint(args.encoder or args.file) as scans:
        prefix = find_denoiser(found, args.prefix, str(args.file))
        encoder = find_encoder(scans, prefix, str(scans.file))
        made = denoiser_from(found, prefix, encoder=scans, resolution=args.resolution, where=str(args.file))
        rest = ", ".join(name for name in prefixes(found) if name not in (prefix, encoder))
    facts = {"source": {"file": args.file.name, "encoder": scans.file.name, "prefix": prefix}}
    _write(args.out, lambda folder: save_denoiser(made, folder, facts))
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in (made.unet, made.encoder)]
    sys.stdout.write(
        f"{args.out}: denoiser '{prefix}' with {sizes[0]:,} parameters, encoder '{encoder}' with {sizes[1]:,}, "
        f"voxels of {args.resolution:g} m{f'; left out: {rest}' if rest else ''}\n"
    )


def _refiner(args: Namespace) -> None:
    from fewstep.lidar.models.checkpoint import Checkpoint
    from fewstep.lidar.models.files import save_refiner
    from fewstep.lidar.models.released import REFINER, prefixes, refiner_from

    with Checkpoint(args.file) as found:
        made = refiner_from(found, resolution=args.resolution, where=str(args.file))
        rest = ", ".join(name for name in prefixes(found) if name != REFINER)
    _write(args.out, lambda folder: save_refiner(made, folder, {"source": {"file": args.file.name, "prefix": REFINER}}))
    size = sum(weight.numel() for weight in made.parameters())
    sys.stdout.write(
        f"{args.out}: refiner '{REFINER}' with {size:,} parameters, {made.up_factor} points of each, "
        f"voxels of {args.resolution:g} m{f'; left out: {rest}' if rest else ''}\n"
    )


def _write(out: Path, save: Callable[[Path], None]) -> None:
    """Let ``save`` write into a folder beside ``out``, which gets that name when it is complete."""
    import shutil

    from fewstep.core.errors import UserError

    aside = out.parent / f".{out.name}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        save(aside)
        aside.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
