"""`sample`, `eval` and `export`: what one does with a run's student."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.data.prompts import read_prompts
from fewstep.core.data.writing import write_text
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, nearest
from fewstep.core.report import build_report
from fewstep.core.report.tables import table
from fewstep.core.training.folder import ENVIRONMENT
from fewstep.core.training.opened import Drawn, Opened, draw_student, draw_teacher, open_run
from fewstep.core.training.showing import count, sample_steps
from fewstep.core.training.world import World

EVALUATION = "evaluation.json"
ROW = 10  # samples in a row of a picture


def _step_counts(opened: Opened, args: Namespace) -> tuple[int, ...]:
    return tuple(args.steps) if args.steps else sample_steps(opened.config)


def sample(args: Namespace) -> None:
    """Draw samples of the student, and of the teacher where asked for: one picture for all step counts."""
    opened = open_run(args.run, World(), step=args.checkpoint)
    cond, n = _asked_for(opened, args)
    rows: list[tuple[str, Tensor]] = []
    for steps in _step_counts(opened, args):
        rows += _in_rows(count(steps), draw_student(opened, n, args.seed, steps, cond).samples)
    for steps in args.teacher_steps or ():
        rows += _in_rows(f"teacher, {count(steps)}", draw_teacher(opened, n, args.seed, steps, cond=cond).samples)
    out = args.out or args.run / "samples.png"
    try:
        file = opened.problem.render(rows, out.with_suffix(""))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    print(file)


def _in_rows(label: str, images: Tensor) -> list[tuple[str, Tensor]]:
    return [(label if i == 0 else "", images[i : i + ROW]) for i in range(0, len(images), ROW)]


def _asked_for(opened: Opened, args: Namespace) -> tuple[Cond | None, int]:
    """Return the conditions of the prompts a user gives, one sample each, or None and the number of samples."""
    prompts = [*(args.prompt or ()), *(read_prompts(args.prompts) if args.prompts else ())]
    if not prompts:
        return None, args.n
    if opened.problem.from_text is None:
        raise UserError(f"{args.run}: this run's model takes no prompts: leave --prompt and --prompts out")
    return opened.problem.from_text(prompts), len(prompts)


def evaluate(args: Namespace) -> None:
    """Measure the student, and its teacher at several step counts, and print a table."""
    opened = open_run(args.run, World(), step=args.checkpoint)
    students = [(steps, draw_student(opened, args.n, args.seed, steps)) for steps in _step_counts(opened, args)]
    teachers = [
        (steps, draw_teacher(opened, args.n, args.seed, steps, args.solver))
        for steps in (args.teacher_steps if opened.has_teacher() else ())
    ]
    rows = [_row(opened, f"student, step {opened.step}", steps, drawn) for steps, drawn in students]
    rows += [_row(opened, f"teacher, {args.solver}", steps, drawn) for steps, drawn in teachers]
    marked = _judged(opened, students, teachers, rows)
    print("\n".join([table(rows), *marked]))
    for name, note in opened.problem.notes.items():
        print(f"{name}: {note}")
    out = args.out or args.run / EVALUATION
    result = {"run": str(args.run), "step": opened.step, "samples": args.n, "seed": args.seed, "rows": rows}
    _write(out, json.dumps(result | {"notes": opened.problem.notes}, indent=2) + "\n")
    build_report(args.run)


def _row(opened: Opened, who: str, steps: int, drawn: Drawn) -> dict[str, Any]:
    metrics = opened.problem.evaluate(drawn.samples, drawn.cond)
    return {"sampler": who, "steps": steps, "NFE": drawn.evaluations, **metrics, "ms/sample": drawn.ms_per_sample}


def _judged(
    opened: Opened,
    students: Sequence[tuple[int, Drawn]],
    teachers: Sequence[tuple[int, Drawn]],
    rows: Sequence[dict[str, Any]],
) -> list[str]:
    """Put a verdict into each student's row, beside the teacher of most steps; returns a line for each that is out."""
    if opened.problem.verdict is None or not teachers:
        return []
    marked, against = [], max(teachers, key=lambda each: each[0])[1]
    for (steps, drawn), row in zip(students, rows, strict=False):  # the students' rows come first
        mark, why = opened.problem.verdict(drawn.samples, against.samples)
        row["verdict"] = f"{mark} !" if mark else "kept"
        marked += [f"! {count(steps)}: {why}; its other numbers count for nothing"] if mark else []
    return marked


def export(args: Namespace) -> None:
    """Write the student as a standard artefact, and upload it where that is asked for."""
    opened = open_run(args.run, World(), step=args.checkpoint)
    out, write = args.out or args.run / "export", opened.problem.export
    if args.form is not None:
        forms = opened.problem.export_as
        if args.form not in forms:
            choice = nearest(args.form, forms) if forms else "this domain knows one form only: leave it out"
            raise UserError(f"--as {args.form}: {choice}")
        write = forms[args.form]
    write(opened.exported(), opened.plan(args.steps), out, card(opened, args.run))
    print(out)
    if args.push:
        print(push(out, args.push))


def push(folder: Path, name: str) -> str:
    """Upload a folder to a model repository of the hub, made private if it is new; returns its address.

    The token is the one ``hf auth login`` or HF_TOKEN provides; it is written nowhere. Raises UserError when the hub
    refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="A few-step student"))
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--push {name}: the hub refuses ({line}); the artefact is in {folder}") from error


def card(opened: Opened, run_dir: Path) -> Mapping[str, Any]:
    """Return the facts that go into an exported student's card; the command is the one the run was started with."""
    recipe = type(opened.recipe)
    facts = {
        "name": opened.config.name,
        "recipe": recipe.name,
        "paper": f"arXiv {recipe.paper}",
        "training steps": opened.step,
        "batch": opened.config.train.batch,
        "seed": opened.config.seed,
        "made by": shlex.join(_command(run_dir)),
    }
    measured = run_dir / EVALUATION
    if measured.is_file():
        facts["measured"] = json.loads(measured.read_text(encoding="utf-8"))["rows"]
    return facts | opened.problem.notes


def _command(run_dir: Path) -> list[str]:
    file = run_dir / ENVIRONMENT
    return list(json.loads(file.read_text(encoding="utf-8")).get("command", [])) if file.is_file() else []


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
