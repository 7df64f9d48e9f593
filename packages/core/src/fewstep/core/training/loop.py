"""The loop: runs any recipe on any domain, from a fresh folder or from its newest checkpoint that verifies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.core.domain import Problem
from fewstep.core.errors import UserError
from fewstep.core.recipe import Recipe
from fewstep.core.training.checkpoint import (
    Refused,
    candidates,
    clean_up,
    is_verified,
    prune,
    read_checkpoint,
    refusals,
    write_checkpoint,
)
from fewstep.core.training.feed import Feed
from fewstep.core.training.folder import CHECKPOINTS, CONFIG, PREVIEWS, check_new, check_run, describe, make_folder
from fewstep.core.training.lock import RunLock
from fewstep.core.training.progress import Progress, Stream
from fewstep.core.training.settings import RunConfig
from fewstep.core.training.showing import Show
from fewstep.core.training.stop import StopSignal
from fewstep.core.training.trackers import Tracker, check_trackers, open_trackers
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, whether a signal stopped it, updates skipped because they were not finite."""

    steps: int
    stopped: bool
    bad_updates: int


def train(
    config: RunConfig,
    problem: Problem,
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    world: World | None = None,
    stream: Stream | None = None,
) -> Outcome:
    """Train to ``train.steps`` in a run folder, new or (``resume``) its own.

    ``stream``: where progress is shown, standard error by default. SIGTERM and SIGINT end the run after the step at
    hand, with a checkpoint. Raises UserError for a folder that is taken or not a run, for a student without a plan for
    ``train.sample_steps``, and when no checkpoint can be resumed; TrainingError for what stops a run on its way.
    """
    world = world or World()
    shown = (stream or sys.stderr) if world.main else None
    check_trackers(config.train.trackers)
    world.on_main(lambda: check_run(run_dir) if resume else check_new(run_dir))
    trainer, show = Trainer(config, problem, recipe, world), Show(config, problem, recipe, world)
    with ExitStack() as stack:
        world.on_main(lambda: _enter_folder(run_dir, resume, stack))
        stack.enter_context(deterministic(config.train.deterministic))
        start = _restore(trainer, run_dir, resume, shown)
        world.on_main(lambda: describe(run_dir, config, {"processes": world.size, "device": str(world.device)}))
        run = _Run(trainer, show, run_dir, start, shown)
        stack.callback(run.close)
        stop = stack.enter_context(StopSignal())
        feed = stack.enter_context(Feed(problem.data, config, world))
        return run.go(feed, stop)


def _enter_folder(run_dir: Path, resume: bool, stack: ExitStack) -> None:
    make_folder(run_dir)
    stack.enter_context(RunLock(run_dir))
    if not resume and (run_dir / CONFIG).exists():  # another run came and went since the folder was looked at
        check_new(run_dir)
    clean_up(run_dir / CHECKPOINTS)


def _restore(trainer: Trainer, run_dir: Path, resume: bool, stream: Stream | None) -> int:
    """Load the newest checkpoint that verifies and fits; returns its step. Says which ones it refused, and why."""
    if not resume:
        return 0
    world, refused = trainer.world, list[tuple[Path, str]]()
    for path, verdict in world.on_main(lambda: list(candidates(run_dir / CHECKPOINTS))):
        reason = verdict
        try:
            if not reason:
                snapshot = read_checkpoint(path)
                trainer.state.check_fit(snapshot)
        except Refused as error:
            reason = str(error)
        if world.any(bool(reason)):
            refused.append((path, reason or "another process cannot read it"))
            continue
        trainer.state.restore(snapshot)
        trainer.resume(int(snapshot.state["step"]), snapshot.state)
        if stream is not None:
            stream.write(f"{refusals(refused)}\n" if refused else "")
            stream.write(f"resuming from {path.name}\n")
        return trainer.step_count
    if refused:
        raise UserError(f"{run_dir}: no checkpoint can be resumed: {refusals(refused)}; start again with another --out")
    if stream is not None:
        stream.write("no checkpoint yet: starting from step 0\n")
    return 0


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Ask torch for deterministic kernels for what is inside."""
    if not on:
        yield
        return
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


class _Run:
    """The reports, pictures and checkpoints around a trainer's steps."""

    def __init__(self, trainer: Trainer, show: Show, run_dir: Path, start: int, stream: Stream | None) -> None:
        self.trainer, self.show, self.run_dir, self.start = trainer, show, run_dir, start
        self.world, self.config, self.settings = trainer.world, trainer.config, trainer.config.train
        self.progress = Progress(self.config.name, start, self.settings.steps, stream)
        self.trackers: list[Tracker] = open_trackers(self.config, run_dir, start) if self.world.main else []
        self.training_seconds = 0.0
        self._reported: dict[str, float] = {}
        self._bad = trainer.bad_updates

    def close(self) -> None:
        """Close what is open."""
        self.progress.close()
        for tracker in self.trackers:
            tracker.close()

    def go(self, feed: Feed, stop: StopSignal) -> Outcome:
        """Train to the last step, or until a signal."""
        if self.start == 0 and self.settings.preview_every:
            self._preview(0)
        stopped = False
        while self.trainer.step_count < self.settings.steps and not stopped:
            since = time.perf_counter()
            stopped = self.trainer.step(feed.get(self.trainer.step_count), feed, stop.requested)
            self.training_seconds += time.perf_counter() - since
            self.progress.step()
            self._after(self.trainer.step_count, stopped)
        done = self.trainer.step_count
        if stopped and done < self.settings.steps:
            self.progress.say(f"stopped by a signal; saved step {done}, go on with `resume {self.run_dir}`")
        return Outcome(done, stopped, self.trainer.bad_updates)

    def _after(self, step: int, stopped: bool) -> None:
        settings, last = self.settings, step == self.settings.steps
        if self.trainer.bad_updates > self._bad:
            self._bad = self.trainer.bad_updates
            self.progress.say(f"step {step}: an update was not finite and was skipped ({self._bad} so far)")
        if step % settings.log_every == 0 or last:
            self._report(step)
        if _due(step, settings.preview_every, last) and not stopped:
            self._preview(step)
        if _due(step, settings.eval_every, last) and not stopped:
            self._evaluate(step)
        if last or stopped or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
            self._save(step)

    def _report(self, step: int) -> None:
        done = step - self.start
        pace = {"time/seconds_per_step": self.training_seconds / done, "time/training": self.training_seconds}
        values = self.trainer.means.take() | pace | {"bad_updates": float(self.trainer.bad_updates)}
        self._reported = values
        for tracker in self.trackers:
            tracker.log(step, values)
        self.progress.report(step, values)

    def _preview(self, step: int) -> None:
        with self._looking():
            path, seen = self.show.preview(self.run_dir / PREVIEWS / f"step-{step:07d}", step, self._reported)
        for tracker in self.trackers:
            tracker.picture(step, path)
            if seen.values:
                tracker.log(step, seen.values)
        for line in seen.lines:
            self.progress.say(line)

    def _evaluate(self, step: int) -> None:
        with self._looking():
            values = self.show.evaluate()
        for tracker in self.trackers:
            tracker.log(step, values)
        self.progress.report(step, values)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Every role in eval mode, and the student's averaged weights in place."""
        self.trainer.cast.rest()
        average = self.trainer.emas.get("student")
        with torch.no_grad(), average.swap() if average is not None else nullcontext():
            yield
        self.world.settle()

    def _save(self, step: int) -> None:
        folder = self.run_dir / CHECKPOINTS
        snapshot = self.trainer.state.snapshot(self.trainer.counters())

        def publish() -> None:
            if not is_verified(folder / f"step-{step}"):
                write_checkpoint(folder, step, snapshot)
                prune(folder, self.settings.keep_checkpoints)

        self.world.on_main(publish)


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)
