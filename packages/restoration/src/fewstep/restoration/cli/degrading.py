"""`fewstep restoration degrade`: good pictures made bad, and pairs of both; loads no library until it runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.core.cli.verbs import positive
from fewstep.restoration.cli.upscaling import check_name_part, file_arguments

if TYPE_CHECKING:
    from fewstep.restoration.cli.files import Job, Source
    from fewstep.restoration.pictures.picture import Picture
    from fewstep.restoration.pictures.reading import Header

PRESETS = ("realesrgan", "resshift", "osediff", "gfpgan", "gfpgan-colour", "bicubic-matlab")


def degrade_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``degrade``."""
    file_arguments(parser, ("png", "jpg", "webp", "tif"))
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help=f"published degradation ({PRESETS[0]})")
    parser.add_argument("-s", "--scale", type=positive, default=4, metavar="N", help="by which sides shrink (4)")
    parser.add_argument("--seed", type=int, default=0, help="with a file's name below its folder, fixes its result (0)")
    parser.add_argument("--pairs", action="store_true", help="write OUT/LR, and beside it OUT/HR, cropped to fit")


def degrade(args: Namespace) -> None:
    """Degrade what the inputs name; see the module. Raises UserError and TrainingError as `cli.files.finish` does."""
    from fewstep.core.errors import check
    from fewstep.restoration.cli.files import (
        check_target,
        finish,
        make_folder,
        place_of,
        plan_jobs,
        run_jobs,
        sources_of,
    )

    out, single, ending = place_of(args.inputs, args.out, "-degraded", single_file=not args.pairs)
    check(not args.pairs or args.out is not None, "--pairs: give the folder to write HR and LR into, --out")
    check_name_part(args.suffix)

    def targets(source: Source, header: Header) -> dict[str, Path]:
        smallest = min(header.size)
        check(smallest >= args.scale, f"{source.path}: a side of {smallest} pixels is below the scale {args.scale}")
        name = source.name.parent / f"{source.name.stem}{args.suffix or ending}.{args.ext}"
        paths = (
            {"LR": out / "LR" / name, "HR": out / "HR" / name} if args.pairs else {"LR": out if single else out / name}
        )
        for kind, path in paths.items():
            check_target(path, _header_of(header, kind), header.size)
        return paths

    jobs = plan_jobs(sources_of(args.inputs, out), targets, overwrite=args.overwrite)
    if args.json is not None:
        make_folder(args.json.parent)
    if any(job.status == "waiting" for job in jobs):
        make_folder(out.parent if single else out)
    run_jobs(jobs, _worker(args), "degrading")
    finish(jobs, args.json, {name: getattr(args, name) for name in ("preset", "scale", "seed")})


def _header_of(header: Header, kind: str) -> Header:
    """Return what is written: CMYK as RGB, low quality in the 8 bits that degradations round to."""
    from dataclasses import replace

    mode = "RGB" if header.mode == "CMYK" else header.mode
    return replace(header, mode=mode, bits=8 if kind == "LR" else header.bits)


def sample_id(name: str) -> int:
    """Return the number of a picture's random stream: a hash of its name below the folder that was given."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def _worker(args: Namespace) -> Callable[[Job], str]:
    from fewstep.restoration.pictures.reading import read_picture
    from fewstep.restoration.pictures.writing import write_picture

    def work(job: Job) -> str:
        good = read_picture(job.source.path)
        good, bad = degraded(good, args.preset, args.scale, args.seed, job.source.name.as_posix())
        if "HR" in job.targets:
            write_picture(job.targets["HR"], good)
        write_picture(job.targets["LR"], bad)
        (height, width), (rows, columns) = good.size, bad.size
        job.facts |= {"size": [width, height], "result_size": [columns, rows], "mode": bad.mode}
        return f"{job.targets['LR']}: {width}x{height} became {columns}x{rows}"

    return work


def degraded(picture: Picture, preset: str, scale: int, seed: int, name: str) -> tuple[Picture, Picture]:
    """Return a picture cropped to multiples of ``scale``, and degraded by a preset, a function of (seed, name).

    Gray pictures are degraded as three equal channels and come back by their luma, alpha is shrunk by antialiased
    bicubic interpolation. The degraded picture has 8 bits. Raises UserError for sides below ``scale``.
    """
    from dataclasses import replace

    from fewstep.core.rng import Rng
    from fewstep.restoration import degradations
    from fewstep.restoration.degradations import imresize, mod_crop
    from fewstep.restoration.degradations.noise import LUMA

    x = mod_crop(picture.colours[None], scale)
    alpha = None if picture.alpha is None else mod_crop(picture.alpha[None], scale)
    mode = "RGB" if picture.mode == "CMYK" else picture.mode
    good = replace(picture, colours=x[0], alpha=None if alpha is None else alpha[0], mode=mode)
    rng = Rng(seed, 0, (sample_id(name),))
    y = degradations.degrade(x.expand(-1, 3, -1, -1), degradations.preset(preset), rng, scale)
    if len(x[0]) == 1:
        y = (y * y.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    if alpha is not None:
        alpha = alpha if y.shape[2:] == x.shape[2:] else imresize(alpha, 1 / scale).clamp(0, 1)
    return good, replace(good, colours=y[0], alpha=None if alpha is None else alpha[0], bits=8)
