"""`fewstep restoration evaluate`: restored pictures, or models, measured against references."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.core.cli.verbs import positive
from fewstep.core.errors import TrainingError, UserError, check
from fewstep.restoration.cli.upscaling import strength

if TYPE_CHECKING:
    from fewstep.restoration.benchmark import Entry, Restores, Source
    from fewstep.restoration.evaluation import Scores

MEASURES = "psnr,ssim,gmsd,spectrum"
LEARNED = "lpips, lpips-vgg, dists, niqe, musiq, clipiqa, maniqa, maniqa-pipal"


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def evaluate_arguments(parser: ArgumentParser) -> None:
    """Add the options of ``fewstep restoration evaluate``."""
    parser.add_argument("restored", nargs="?", type=Path, metavar="RESTORED", help="a picture, or a folder of them")
    parser.add_argument("reference", nargs="?", type=Path, metavar="HR", help="its reference, or their folder")
    parser.add_argument("--template", metavar="{}x4", help="stem of a restored file (the reference's, or with _x4)")
    parser.add_argument("--crop", type=int, default=0, metavar="N", help="pixels cut from borders; classic: scale (0)")
    parser.add_argument(
        "--metrics", type=_names, default=_names(MEASURES), metavar="A,B", help=f"({MEASURES}); with pyiqa: {LEARNED}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers")
    models = parser.add_argument_group("instead of restored pictures")
    models.add_argument(
        "--model",
        action="append",
        metavar="NAME[@STEPS]",
        help="measure this model, or folder; several make one table; bicubic needs none",
    )
    models.add_argument("--hr", type=Path, metavar="FOLDER", help="pictures to degrade and restore")
    models.add_argument("--embedded", action="store_true", help="the held-out photos that come with the package")
    models.add_argument("-s", "--scale", type=positive, default=4, metavar="N", help="magnification (4)")
    models.add_argument("--preset", default="bicubic-matlab", metavar="NAME", help="degradation (bicubic-matlab)")
    models.add_argument("-n", type=positive, metavar="N", help="only the first N pictures")
    models.add_argument("--steps", type=positive, metavar="N", help="of the sampler (what a model was made for)")
    models.add_argument(
        "--sampler", choices=("auto", "deterministic", "ancestral"), default="auto", help="auto: the model's own (auto)"
    )
    models.add_argument("--noise", type=strength, metavar="0..1", help="strength of the noise (the model's own)")
    models.add_argument("--prompt", default="", metavar="TEXT", help="told to a Stable Diffusion (the model's own)")
    models.add_argument("--captions", action="store_true", help="tell it each picture's own, in NAME.txt beside it")
    models.add_argument("--seed", type=int, default=0, help="of degradation and noise (0)")
    models.add_argument("--device", default="", help="(cuda where there is one)")
    models.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")


def evaluate(args: Namespace) -> None:
    """Measure, print the table with its protocol and write it as JSON.

    Raises UserError for a mistake in use, TrainingError after the table when pictures had to be skipped.
    """
    if args.json:
        _can_write(args.json)
    if args.model:
        check(args.restored is None, f"--model restores by itself: leave {args.restored} out, give --hr or --embedded")
        check((args.hr is not None) != args.embedded, "--model: give either --hr FOLDER or --embedded")
        check(not (args.captions and args.embedded), "--captions: the embedded photos have none; give --hr FOLDER")
        _evaluate_models(args)
    else:
        only = "belongs to --model NAME: give that, or two pictures or folders"
        check(args.hr is None, f"--hr {only}")
        check(not (args.prompt or args.captions), f"--prompt and --captions {only}")
        check(not args.embedded, f"--embedded {only}")
        both = args.restored is not None and args.reference is not None
        check(both, "nothing to compare: give RESTORED and HR, two pictures or two folders, or --model NAME")
        _evaluate_files(args)


def _evaluate_files(args: Namespace) -> None:
    from fewstep.core.report.tables import table
    from fewstep.restoration.evaluation import Scores, comparable, listed, measures
    from fewstep.restoration.pairing import find_pairs
    from fewstep.restoration.pictures.reading import read_picture

    found = find_pairs(args.restored, args.reference, args.template)
    scores = Scores(measures(args.metrics, _device(args)), args.crop)
    transparent, skipped = [], []
    for pair in _progress(found.pairs):
        try:
            ours, theirs = read_picture(pair.restored), read_picture(pair.reference)
            scores.add(pair.name, scores.score(*comparable(ours, theirs)))
        except UserError as error:
            if len(found.pairs) == 1:
                raise UserError(_named(pair.name, error)) from error
            skipped.append(_skip(pair.name, error))
            continue
        if ours.alpha is not None or theirs.alpha is not None:
            transparent.append(pair.name)
    if not scores.rows:
        raise UserError(f"no picture could be measured: {listed(skipped)}")
    _print(table([{"picture": row["picture"], **scores.cells(row)} for row in scores.rows] + _mean_row(scores)))
    notes = []
    if found.alone:
        notes.append(f"{len(found.alone)} without a partner, not in the table: {listed(found.alone)}")
    if transparent:
        notes.append(f"alpha is ignored, colours count where they are transparent too: {listed(transparent)}")
    _print("", *scores.protocols(), *notes)
    _write(args.json, _result(scores, skipped) | {"pictures": scores.rows, "mean": scores.means(), "notes": notes})
    _raise_for(skipped, len(found.pairs))


def _evaluate_models(args: Namespace) -> None:
    from fewstep.core.report.tables import table
    from fewstep.restoration.benchmark import Entry, degradation, run
    from fewstep.restoration.evaluation import Scores, listed, machine, measures

    device, config = _device(args), degradation(args.preset)
    sources = _sources(args)[: args.n]
    chosen = measures(args.metrics, device)
    names = list(dict.fromkeys(args.model))
    entries = [Entry(_model(name, args, device), Scores(chosen, args.crop)) for name in names]
    _tell(entries, args)
    skipped = []
    for problem in _progress(
        run(entries, sources, config, scale=args.scale, seed=args.seed, device=device, prompt=args.prompt), len(sources)
    ):
        if problem:
            skipped.append(_skip("", UserError(problem)))
    first = entries[0].scores
    if not first.rows:
        raise UserError(f"no picture could be measured: {listed(skipped)}")
    if len(entries) == 1:
        rows = [{"picture": row["picture"], **first.cells(row), "seconds": row["seconds"]} for row in first.rows]
        _print(table(rows + _mean_row(first)), "")
    _print(table([_row(name, entry) for name, entry in zip(names, entries, strict=True)]), "")
    number = len(first.rows)
    notes = [
        f"x{args.scale} of {number} picture{'s' * (number > 1)} degraded by '{args.preset}', seed {args.seed}; "
        "bicubic is MATLAB's; alpha is ignored",
        f"seconds per picture: median without the first, restoring alone, on {machine(device)}, {args.precision}",
    ]
    if told := [name for name, entry in zip(names, entries, strict=True) if entry.told]:
        each = "each picture's caption, or " if args.captions else ""
        prompt = f"'{args.prompt}'" if args.prompt else "their own prompt"
        notes.append(f"told {each}{prompt}: {listed(told)}")
    _print(*notes, *first.protocols())
    models = {
        name: {"mean": e.scores.means(), "seconds": e.median_seconds, "steps": e.model.steps, "pictures": e.scores.rows}
        for name, e in zip(names, entries, strict=True)
    }
    about = {"scale": args.scale, "preset": args.preset, "seed": args.seed, "device": machine(device), "notes": notes}
    _write(args.json, _result(first, skipped) | about | {"precision": args.precision, "models": models})
    _raise_for(skipped, len(sources))


def _row(name: str, entry: Entry) -> dict[str, Any]:
    means = entry.scores.cells(entry.scores.means())
    return {"model": name, "steps": entry.model.steps, **means, "seconds": entry.median_seconds}


def _sources(args: Namespace) -> list[Source]:
    from fewstep.restoration.benchmark import folder_sources, tensor_sources

    if args.hr is not None:
        return folder_sources(args.hr, args.captions)
    from fewstep.restoration.data.photos import held_out

    return tensor_sources(held_out())


def _model(name: str, args: Namespace, device: str) -> Restores:
    from fewstep.restoration.benchmark import BICUBIC, Bicubic

    if name == BICUBIC:
        return Bicubic()
    from fewstep.restoration.restorer import Restorer

    name, steps = _steps(name, args.steps)
    settings = {"steps": steps, "sampler": args.sampler, "seed": args.seed, "precision": args.precision}
    settings["noise"] = args.noise
    model: Any = Restorer.load(name, device=device, **settings)
    made_for = ", ".join(f"x{scale}" for scale in model.scales)
    check(args.scale in model.scales, f"--scale {args.scale}: model '{name}' was made for {made_for}")
    restores: Restores = model
    return restores


def _tell(entries: Sequence[Entry], args: Namespace) -> None:
    """Mark the models that are to be told what pictures show, those that read words; UserError where none does."""
    from fewstep.restoration.restorer import Restorer

    if not (args.prompt or args.captions):
        return
    for entry in entries:
        if isinstance(entry.model, Restorer) and entry.model.reads_words:
            entry.model.check_words()  # now, and not after pictures were restored
            entry.told = True
    check(any(entry.told for entry in entries), "--prompt and --captions: none of these models reads words")


def _steps(name: str, steps: int | None) -> tuple[str, int | None]:
    """Return a model's name and its steps, which ``NAME@STEPS`` gives for this one alone."""
    before, at, after = name.rpartition("@")
    if not at or not after.isascii() or not after.isdigit() or Path(name).exists():
        return name, steps
    check(int(after) >= 1, f"--model {name}: steps must be at least 1")
    return before, int(after)


def _device(args: Namespace) -> str:
    from fewstep.core.tensors import find_device

    return str(find_device(args.device))


def _mean_row(scores: Scores) -> list[dict[str, Any]]:
    return [{"picture": f"mean of {len(scores.rows)}", **scores.cells(scores.means())}] if len(scores.rows) > 1 else []


def _result(scores: Scores, skipped: list[str]) -> dict[str, Any]:
    return {"protocol": scores.protocols(), "crop": scores.crop, "skipped": skipped}


def _progress(items: Any, total: int | None = None) -> Any:
    from tqdm import tqdm

    return tqdm(items, total=total, unit="picture", disable=not sys.stderr.isatty(), file=sys.stderr)


def _skip(name: str, error: UserError) -> str:
    from tqdm import tqdm

    line = _named(name, error)
    tqdm.write(f"skipped {line}", file=sys.stderr)
    return line


def _named(name: str, error: UserError) -> str:
    return str(error) if name in str(error) else f"{name}: {error}"


def _raise_for(skipped: list[str], of: int) -> None:
    from fewstep.restoration.evaluation import listed

    if skipped:
        raise TrainingError(f"{len(skipped)} of {of} pictures skipped: {listed(skipped)}")


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _can_write(path: Path) -> None:
    """Raise UserError when a file cannot be written: now, and not after hours of work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            check(not path.is_dir(), f"--json {path}: a folder; choose the name of a file")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from error


def _write(path: Path | None, result: dict[str, Any]) -> None:
    from fewstep.core.data.writing import write_text
    from fewstep.restoration.evaluation import finite

    if path is None:
        return
    try:
        write_text(path, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}); choose another file") from error
