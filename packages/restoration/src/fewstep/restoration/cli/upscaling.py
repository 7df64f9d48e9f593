"""`fewstep restoration upscale`: pictures enlarged and restored; loads no library until it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.core.cli.verbs import positive

if TYPE_CHECKING:
    import torch

    from fewstep.restoration.cli.files import Job, Source
    from fewstep.restoration.pictures.reading import Header
    from fewstep.restoration.restorer import Restorer

MODEL = "photos-student"


def whole_number(text: str) -> int:
    """Return a whole number of at least 0 from the command line."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def strength(text: str) -> float:
    """Return a number from 0 to 1 from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"'{text}' is not a strength from 0 to 1")
    return value


def _tile(text: str) -> int | None:
    return None if text == "auto" else whole_number(text)


def file_arguments(parser: ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add what commands that turn pictures into pictures share: inputs, where and how results are written."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="images, and folders of images")
    parser.add_argument("-o", "--out", type=Path, metavar="PATH", help="a file for one image, a folder for many")
    parser.add_argument("--ext", choices=formats, default=formats[0], help=f"of files in folders ({formats[0]})")
    parser.add_argument("--suffix", default="", metavar="TEXT", help="put behind the names of files in folders")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what became of every file")


def upscale_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``upscale``."""
    file_arguments(parser, ("auto", "png", "jpg", "webp", "tif"))
    parser.add_argument("-s", "--scale", type=int, choices=(2, 3, 4, 8), default=4, help="magnification (4)")
    parser.add_argument("--model", default=MODEL, metavar="NAME|DIR", help=f"shipped, a run or an export ({MODEL})")
    parser.add_argument("--steps", type=positive, metavar="N", help="of the sampler (what the model was made for)")
    parser.add_argument("--sampler", choices=("auto", "deterministic", "ancestral"), default="auto", help="(auto)")
    parser.add_argument(
        "--noise",
        type=strength,
        metavar="0..1",
        help="strength of the noise sampling starts from: 1 as trained, 0 for none, smoother (the model's own)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="told to a Stable Diffusion (the model's own)")
    parser.add_argument("--captions", action="store_true", help="tell it each picture's own, in NAME.txt beside it")
    parser.add_argument(
        "--tile", type=_tile, metavar="auto|0|N", help="side in pixels of the input, 0 for no tiles (auto: by memory)"
    )
    parser.add_argument(
        "--overlap", type=whole_number, metavar="N", help="of tiles (twice what the model looks at, or 64)"
    )
    parser.add_argument(
        "--color-fix", choices=("wavelet", "adain", "lab", "none"), default="wavelet", help="to the input's (wavelet)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    parser.add_argument("--device", default="", help="(cuda where there is one)")


def upscale(args: Namespace) -> None:
    """Enlarge what the inputs name; see the module. Raises UserError and TrainingError as `cli.files.finish` does."""
    from fewstep.core.data.clips import find_clip_files
    from fewstep.core.errors import check
    from fewstep.restoration.cli.files import (
        check_target,
        finish,
        make_folder,
        place_of,
        plan_jobs,
        run_jobs,
        sources_of,
        suffix_for,
    )
    from fewstep.restoration.upscaling import UpscaleConfig

    config = UpscaleConfig(scale=args.scale, tile=args.tile, overlap=args.overlap, colour_fix=args.color_fix)
    out, single, ending = place_of(args.inputs, args.out, f"-x{args.scale}")
    if single and args.ext != "auto":
        named = out.suffix.lower().lstrip(".")
        alike = {"jpeg": "jpg", "tiff": "tif"}.get(named, named)
        check(alike == args.ext, f"--ext {args.ext}: --out {out} names another format; give one of them")
    check_name_part(args.suffix)

    def targets(source: Source, header: Header) -> dict[str, Path]:
        name = f"{source.name.stem}{args.suffix or ending}{suffix_for(source, header, args.ext)}"
        path = out if single else out / source.name.parent / name
        height, width = header.size
        return {"result": check_target(path, header, (height * args.scale, width * args.scale))}

    def clip_targets(source: Source) -> dict[str, Path]:
        name = f"{source.name.stem}{args.suffix or ending}.mp4"
        return {"result": out if single else out / source.name.parent / name}

    jobs = plan_jobs(
        sources_of(args.inputs, out),
        targets,
        overwrite=args.overwrite,
        clip_targets=clip_targets if find_clip_files() is not None else None,
    )
    if args.json is not None:
        make_folder(args.json.parent)
    if any(job.status == "waiting" for job in jobs):
        make_folder(out.parent if single else out)
        run_jobs(jobs, _worker(args, config), "upscaling")
    else:
        run_jobs(jobs, lambda job: "", "upscaling")
    names = ["model", "scale", "steps", "sampler", "noise", "seed", "prompt", "captions"]
    names += ["tile", "overlap", "color_fix", "precision"]
    finish(jobs, args.json, {name: getattr(args, name) for name in names})


def check_name_part(text: str) -> None:
    """Raise UserError for a part of file names that would lead into another folder."""
    from fewstep.core.errors import check

    check(not any(sign in text for sign in "/\\\0"), f"--suffix '{text}': must be a part of a file's name")


class _Restorers:
    """The model in the precision asked for, and in float32 for tiles that are not finite; both told the same words."""

    def __init__(self, args: Namespace, device: torch.device) -> None:
        from fewstep.core.errors import check

        self.args, self.device, self.caption = args, device, str(args.prompt)
        self.first = self._load(args.precision)
        self.words = bool(args.prompt or args.captions)
        if self.words:
            self.first.check_words()  # now, and not after files were made
        known = ", ".join(map(str, self.first.scales))
        check(args.scale in self.first.scales, f"--scale {args.scale}: model '{args.model}' was made for {known}")
        self.spare = self._spare if args.precision == "bf16" else None
        self._second: Restorer | None = None

    def _load(self, precision: Literal["fp32", "bf16"]) -> Restorer:
        from fewstep.restoration.restorer import Restorer

        args = self.args
        return Restorer.load(
            args.model,
            device=self.device,
            precision=precision,
            steps=args.steps,
            sampler=args.sampler,
            noise=args.noise,
            seed=args.seed,
        )

    def _spare(self) -> Restorer:
        self._second = self._second or self._load("fp32")
        if self.words:
            self._second.tell(self.caption)
        return self._second

    def look_at(self, path: Path) -> None:
        """Tell the model what a picture shows, where it is to be told anything."""
        from fewstep.core.data.captioned import sidecar_caption

        if self.words:
            self.caption = (sidecar_caption(path) if self.args.captions else None) or self.args.prompt
            self.first.tell(self.caption)


def _worker(args: Namespace, config: Any) -> Callable[[Job], str]:
    """Return what enlarges one picture and says so in a line."""
    from tqdm import tqdm

    from fewstep.core.tensors import find_device
    from fewstep.restoration import upscaling
    from fewstep.restoration.cli.clips import upscale_clip
    from fewstep.restoration.cli.files import is_video
    from fewstep.restoration.pictures.reading import read_picture
    from fewstep.restoration.pictures.writing import write_picture

    device = find_device(args.device)
    models = _Restorers(args, device)
    restorer, spare = models.first, models.spare

    def work(job: Job) -> str:
        models.look_at(job.source.path)
        if is_video(job.source.path):
            return upscale_clip(
                job, lambda picture: upscaling.upscale(picture, restorer, config, device=device, spare=spare).raster
            )
        picture = read_picture(job.source.path)
        terminal = sys.stderr.isatty()
        with tqdm(desc=job.source.name.name, unit="tile", leave=False, disable=not terminal, file=sys.stderr) as bar:

            def progress(done: int, of: int) -> None:
                bar.total = of
                bar.update(done - bar.n)

            done = upscaling.upscale(picture, restorer, config, device=device, spare=spare, progress=progress)
        target = job.targets["result"]
        write_picture(target, done.raster)
        (height, width), (rows, columns) = picture.size, done.raster.size
        job.facts |= {
            "size": [width, height],
            "result_size": [columns, rows],
            "mode": picture.mode,
            "bits": picture.bits,
            "tiles": done.tiles,
            "tile": done.side,
        }
        tiles = f"{done.tiles} tile{'s' if done.tiles > 1 else ''}"
        return f"{target}: {width}x{height} became {columns}x{rows}, {tiles},"

    return work
