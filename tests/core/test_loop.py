"""The loop: what one step does is what one would write by hand, and what must stop a run stops it."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from core.runs import build, child_environment, config_of, differences, go, newest
from core.toys import CLASSES, DIM, ToyRecipe

from fewstep.core.errors import TrainingError, UserError
from fewstep.core.recipe import LossTerms
from fewstep.core.rng import Rng
from fewstep.core.sampling import run_plan
from fewstep.core.training import showing
from fewstep.core.training.feed import Feed
from fewstep.core.training.memory import keep_freed_memory
from fewstep.core.training.optim import learning_rate
from fewstep.core.training.settings import OptimConfig
from fewstep.core.training.showing import Show
from fewstep.core.training.trackers import read_metrics
from fewstep.core.training.trainer import Trainer
from fewstep.core.training.world import World

DOUBLE = ("domain.dtype=float64",)


def one_step(config, problem, recipe) -> Trainer:
    world = World()
    trainer = Trainer(config, problem, recipe, world)
    with Feed(problem.data, config, world) as feed:
        trainer.step(feed.get(0), feed)
    return trainer


def weights(problem, role):
    return {name: p.detach().clone() for name, p in problem.actors.module(role).named_parameters()}


def test_a_step_is_gradient_descent_on_the_batch_mean():
    config = config_of(*DOUBLE, "optim.name=sgd", "optim.lr=0.5")
    problem, recipe = build(config)
    before = weights(problem, "critic")
    batch = problem.data.batch(Rng(0, 0, tuple(range(8)), "data", batch=8), "cpu")
    loss = recipe.loss("critic", batch, Rng(0, 0, tuple(range(8)), "critic", batch=8), 0).total().mean()
    module = problem.actors.module("critic")
    gradients = dict(zip(before, torch.autograd.grad(loss, list(module.parameters())), strict=True))
    one_step(config, problem, recipe)
    for name, value in weights(problem, "critic").items():
        torch.testing.assert_close(value, before[name] - 0.5 * gradients[name], rtol=0, atol=1e-14)


def test_each_phase_moves_its_roles_and_nothing_else():
    config = config_of("recipe.critic_every=2")
    problem, recipe = build(config)
    before = {role: weights(problem, role) for role in ("teacher", "student", "critic")}
    trainer = one_step(config, problem, recipe)  # the student's phase is due at every second step only

    def moved(role):
        return any(not torch.equal(value, before[role][name]) for name, value in weights(problem, role).items())

    assert [moved(role) for role in before] == [False, False, True]
    with Feed(problem.data, config, trainer.world) as feed:
        trainer.step(feed.get(1), feed)
    assert [moved(role) for role in before] == [False, True, True]


def test_requires_grad_and_modes_are_exactly_those_of_the_phase():
    class Watching(ToyRecipe):
        def loss(self, phase, batch, rng, step):
            for role in ("teacher", "student", "critic"):
                module = self.actors.module(role)
                assert {p.requires_grad for p in module.parameters()} == {role == phase}
                assert {m.training for m in module.modules()} == {role == phase}
            return super().loss(phase, batch, rng, step)

    config = config_of("recipe.critic_every=2", "domain.network.dropout=0.1")
    problem, _ = build(config)
    one_step(config, problem, Watching(config.recipe, problem.actors))


@pytest.mark.parametrize("micro", ["auto", "8", "4", "2", "1"])
def test_accumulation_changes_nothing(tmp_path, micro):
    # plain descent, whose steps are as long as the gradients: the other optimizers hide a wrong scale
    settings = (*DOUBLE, "optim.name=sgd", "optim.lr=0.1", "train.grad_clip=0.7")
    go(config_of(*settings), tmp_path / "whole")
    go(config_of(*settings, f"train.micro_batch={micro}"), tmp_path / "parts")
    a, b = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-12, atol=1e-12, msg=name)


def test_clipping_bounds_the_step():
    for clip in (0.0, 1e-3):
        config = config_of(*DOUBLE, "optim.name=sgd", "optim.lr=1.0", f"train.grad_clip={clip}")
        problem, recipe = build(config)
        before = weights(problem, "critic")
        one_step(config, problem, recipe)
        change = math.sqrt(sum(float((v - before[n]).square().sum()) for n, v in weights(problem, "critic").items()))
        assert change > 1e-2 if clip == 0 else change == pytest.approx(clip, rel=1e-9)


def test_memory_that_does_not_suffice_halves_the_micro_batch_and_changes_nothing(tmp_path):
    class Hungry(ToyRecipe):
        sizes: ClassVar[list[int]] = []

        def loss(self, phase, batch, rng, step):
            self.count += 1  # a state that the failed attempt leaves behind
            self.sizes.append(batch.size)
            if batch.size > 3:
                raise torch.OutOfMemoryError("no memory")
            self.count -= 1
            return super().loss(phase, batch, rng, step)

    config = config_of(*DOUBLE)
    problem, _ = build(config)
    go(config, tmp_path / "small", problem=problem, recipe=Hungry(config.recipe, problem.actors))
    assert Hungry.sizes[:6] == [8, 4, 2, 2, 2, 2]
    assert set(Hungry.sizes[12:]) == {2}
    go(config, tmp_path / "large")
    a, b = newest(tmp_path / "large"), newest(tmp_path / "small")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-12, atol=1e-12, msg=name)


def test_no_memory_for_a_single_sample_says_so(tmp_path):
    class Starving(ToyRecipe):
        def loss(self, phase, batch, rng, step):
            raise torch.OutOfMemoryError("no memory")

    config = config_of()
    problem, _ = build(config)
    with pytest.raises(TrainingError, match="phase 'critic': out of memory with one sample at a time"):
        go(config, tmp_path / "run", problem=problem, recipe=Starving(config.recipe, problem.actors))


class Poisoned(ToyRecipe):
    """Goes wrong at some steps: in a term, or only in the gradient."""

    steps: tuple[int, ...] = (2,)
    where = "term"

    def loss(self, phase, batch, rng, step):
        terms = super().loss(phase, batch, rng, step)
        if phase != "student" or step not in self.steps:
            return terms
        one = torch.zeros_like(terms.terms["pull"])
        if self.where == "term":
            one[0] = math.inf
            return replace(terms, terms=dict(terms.terms) | {"pull": terms.terms["pull"] + one})
        weight = next(self.actors.module("student").parameters())
        # the square root of zero: a finite value with an infinite slope
        bad = (weight.flatten()[0] - weight.flatten()[0].detach()).sqrt() + one
        return replace(terms, terms=dict(terms.terms) | {"root": bad})


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("term", r"step 3, phase 'student' \(trains student\): loss term 'pull' is inf"),
        (
            "gradient",
            r"step 3, phase 'student' \(trains student\): gradient of 'student\.net\..* is not finite \(1 param",
        ),
    ],
)
def test_a_non_finite_number_stops_the_run_before_the_optimizer_moves(tmp_path, where, message):
    config = config_of("train.checkpoint_every=2")
    problem, _ = build(config)
    recipe = Poisoned(config.recipe, problem.actors)
    recipe.where = where
    with pytest.raises(TrainingError, match=message):
        go(config, tmp_path / "run", problem=problem, recipe=recipe)
    saved = newest(tmp_path / "run")  # after two steps, the last good ones
    for name, value in weights(problem, "student").items():
        assert torch.equal(value, saved[f"role.student/{name}"])
    assert all(bool(p.isfinite().all()) for p in problem.actors.module("critic").parameters())


def test_a_budget_of_bad_updates_is_counted_and_enforced(tmp_path):
    config = config_of("train.max_bad_steps=2")
    problem, _ = build(config)
    recipe = Poisoned(config.recipe, problem.actors)
    recipe.steps = (1, 3)
    outcome, text = go(config, tmp_path / "run", problem=problem, recipe=recipe)
    assert (outcome.steps, outcome.bad_updates) == (6, 2)
    assert "step 2: an update was not finite and was skipped (1 so far)" in text
    assert all(bool(p.isfinite().all()) for p in problem.actors.module("student").parameters())
    assert read_metrics(tmp_path / "run")[-1]["bad_updates"] == 2
    problem, _ = build(config)
    recipe = Poisoned(config.recipe, problem.actors)
    recipe.steps = (1, 3, 4)
    with pytest.raises(TrainingError, match=r"step 5, .*2 updates were allowed to fail"):
        go(config, tmp_path / "again", problem=problem, recipe=recipe)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (LossTerms({}), "no loss terms"),
        (LossTerms({"a": torch.zeros(8)}), "does not depend on anything this phase trains"),
        (LossTerms({"a": torch.zeros(7)}), r"'a' must give one value per sample, \[8\], got \[7\]"),
    ],
)
def test_losses_that_cannot_be_what_was_meant_are_refused(terms, message):
    class Wrong(ToyRecipe):
        def loss(self, phase, batch, rng, step):
            return terms

    config = config_of()
    problem, _ = build(config)
    with pytest.raises(UserError, match=message):
        one_step(config, problem, Wrong(config.recipe, problem.actors))


def test_the_global_generator_is_neither_used_nor_moved(tmp_path):
    config = config_of("domain.network.dropout=0.5", "train.preview_every=3", "train.eval_every=3")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    go(config, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    go(config, tmp_path / "b")
    assert differences(newest(tmp_path / "a"), newest(tmp_path / "b")) == []
    go(config_of("domain.network.dropout=0.5", "seed=1"), tmp_path / "c")
    assert differences(newest(tmp_path / "a"), newest(tmp_path / "c")) != []


def test_looking_does_not_touch_training(tmp_path):
    go(config_of(), tmp_path / "blind")
    go(config_of("train.preview_every=1", "train.eval_every=2", "train.sample_steps=[1,3]"), tmp_path / "seen")
    assert differences(newest(tmp_path / "blind"), newest(tmp_path / "seen")) == []
    assert len(list((tmp_path / "seen/previews").glob("*.png"))) == 7
    evals = [line for line in read_metrics(tmp_path / "seen") if "eval/1/distance" in line]
    assert [line["step"] for line in evals] == [2, 4, 6]
    assert all("eval/3/distance" in line for line in evals)


def test_samples_belong_to_their_conditions_however_many_are_drawn_at_once(monkeypatch):
    config = config_of("train.sample_steps=[2]", "seed=3")
    problem, recipe = build(config)
    seen = []
    problem.evaluate = lambda samples, cond: seen.append((samples, cond)) or {"n": float(len(samples))}
    problem.conditions = lambda n, seed: {"label": (torch.arange(n) // 2 + seed) % CLASSES}
    show = Show(config, problem, recipe, World())
    assert show.evaluate() == {"eval/2/n": 12.0}
    monkeypatch.setattr(showing, "CHUNK", 5)
    show.evaluate()
    (samples, cond), (again, _) = seen
    torch.testing.assert_close(again, samples, rtol=1e-6, atol=1e-4)
    rng = Rng(3, showing.EVALUATION_STEP, tuple(range(12)), "show", batch=12)
    plan = recipe.plan(config.recipe, problem.actors.process, 2)
    with torch.no_grad():
        own = run_plan(problem.actors.denoiser("student"), plan, rng.normal("noise", (DIM,)), cond, rng)
    torch.testing.assert_close(samples, own, rtol=1e-6, atol=1e-4)


def test_metrics_are_means_over_the_interval(tmp_path):
    go(config_of("train.log_every=1"), tmp_path / "fine")
    go(config_of("train.log_every=3"), tmp_path / "coarse")
    fine, coarse = read_metrics(tmp_path / "fine"), read_metrics(tmp_path / "coarse")
    assert [line["step"] for line in coarse] == [3, 6]
    for name in ("loss/critic/denoising", "loss/student/match", "loss/student/pull", "student/gap", "grad_norm/critic"):
        mean = sum(line[name] for line in fine[3:]) / 3
        assert coarse[1][name] == pytest.approx(mean, rel=1e-12)
    go(config_of("train.log_every=4"), tmp_path / "uneven")
    assert [line["step"] for line in read_metrics(tmp_path / "uneven")] == [4, 6]  # the last step is always told


def test_averages_follow_the_roles_that_moved(tmp_path):
    config = config_of(*DOUBLE, "train.ema.decay=0.75", "recipe.critic_every=2")
    problem, recipe = build(config)
    expected = {name: value.clone() for name, value in weights(problem, "student").items()}
    world = World()
    trainer = Trainer(config, problem, recipe, world)
    with Feed(problem.data, config, world) as feed:
        for step in range(4):
            trainer.step(feed.get(step), feed)
            if step % 2:  # the student moves at every second step
                live = weights(problem, "student")
                expected = {name: 0.75 * value + 0.25 * live[name] for name, value in expected.items()}
    for own, value in zip(trainer.averaged("student"), expected.values(), strict=True):
        torch.testing.assert_close(own, value, rtol=0, atol=1e-14)
    critic = zip(trainer.averaged("critic"), weights(problem, "critic").values(), strict=True)
    assert all(torch.equal(a, b) for a, b in critic)  # no average: its live weights


def test_a_new_round_forgets_optimizers_and_averages():
    class Rounds(ToyRecipe):
        def reset_optimizers(self, step):
            return step == 1

        def lr_factor(self, step):
            return 0.5 if step == 0 else 0.25

    config = config_of("optim.warmup=3", "optim.lr=1.0")
    problem, _ = build(config)
    world = World()
    trainer = Trainer(config, problem, Rounds(config.recipe, problem.actors), world)
    runner = trainer.runners["critic"]
    with Feed(problem.data, config, world) as feed:
        trainer.step(feed.get(0), feed)
        assert runner.stepper.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / 4)
        trainer.step(feed.get(1), feed)
        assert runner.stepper.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * 2 / 4)
        assert (runner.updates, len(runner.stepper.optimizer.state)) == (0, 0)
        averages = zip(trainer.averaged("student"), weights(problem, "student").values(), strict=True)
        assert all(torch.equal(average, live) for average, live in averages)
        trainer.step(feed.get(2), feed)
        assert runner.updates == 1


def test_learning_rates():
    def rates(steps=10, **settings):
        config = OptimConfig(lr=2.0, **settings)
        return [learning_rate(config, step, step, steps) for step in range(steps)]

    assert rates() == [2.0] * 10
    assert rates(warmup=3)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(schedule="linear") == pytest.approx([2 * (1 - i / 10) for i in range(10)])
    assert rates(schedule="cosine") == pytest.approx([1 + math.cos(math.pi * i / 10) for i in range(10)])


def test_optimizers_per_phase_are_those_of_the_config():
    config = config_of("optim.phases.critic.name=sgd", "optim.phases.critic.momentum=0.9", "optim.betas=[0,0.5]")
    trainer = Trainer(config, *build(config), World())
    critic, student = (trainer.runners[name].stepper.optimizer for name in ("critic", "student"))
    assert isinstance(critic, torch.optim.SGD)
    assert critic.param_groups[0]["momentum"] == 0.9
    assert isinstance(student, torch.optim.AdamW)
    assert student.param_groups[0]["betas"] == (0.0, 0.5)


@pytest.mark.parametrize("name", ["adamw", "adam", "radam", "sgd"])
def test_every_optimizer_trains(tmp_path, name):
    outcome, _ = go(config_of(f"optim.name={name}", "optim.weight_decay=0.01"), tmp_path / "run")
    assert outcome.steps == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_and_keeps_weights_in_float32(tmp_path, precision):
    config = config_of("train.steps=40", f"train.precision={precision}", "train.log_every=20")
    go(config, tmp_path / "run")
    first, last = read_metrics(tmp_path / "run")[0], read_metrics(tmp_path / "run")[-1]
    assert last["loss/critic/denoising"] < first["loss/critic/denoising"]
    assert {value.dtype for name, value in newest(tmp_path / "run").items() if name.startswith("role")} == {
        torch.float32
    }


def test_float16_overflow_lowers_the_loss_scale_and_is_not_a_bad_update(tmp_path):
    class Steep(ToyRecipe):
        def loss(self, phase, batch, rng, step):
            terms = super().loss(phase, batch, rng, step)
            factor = 1e33 if step < 3 else 1.0  # times 2^16 beyond float32 itself
            return replace(terms, weights=dict.fromkeys(terms.terms, factor))

    config = config_of("train.precision=fp16")
    problem, _ = build(config)
    recipe = Steep(config.recipe, problem.actors)
    trainer = Trainer(config, problem, recipe, World())
    start = weights(problem, "critic")
    scale = trainer.runners["critic"].scale
    with Feed(problem.data, config, trainer.world) as feed:
        trainer.step(feed.get(0), feed)
        assert scale.value == 2.0**15
        assert all(torch.equal(value, start[name]) for name, value in weights(problem, "critic").items())
        for step in range(1, 4):
            trainer.step(feed.get(step), feed)
    assert trainer.bad_updates == 0
    assert any(not torch.equal(value, start[name]) for name, value in weights(problem, "critic").items())
    scale.value = 1.0
    with pytest.raises(TrainingError, match="use precision bf16"):
        scale.overflowed("critic")


def test_deterministic_is_on_during_the_run_only(tmp_path):
    class Asking(ToyRecipe):
        seen: ClassVar[list[bool]] = []

        def loss(self, phase, batch, rng, step):
            self.seen.append(torch.are_deterministic_algorithms_enabled())
            return super().loss(phase, batch, rng, step)

    config = config_of("train.deterministic=true")
    problem, _ = build(config)
    go(config, tmp_path / "run", problem=problem, recipe=Asking(config.recipe, problem.actors))
    assert set(Asking.seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


class Signalling(ToyRecipe):
    """Sends its own process a signal at a step."""

    at, number = 2, signal.SIGTERM

    def after_step(self, step):
        super().after_step(step)
        if step == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    before = signal.getsignal(number)
    config = config_of("train.steps=50")
    problem, _ = build(config)
    recipe = Signalling(config.recipe, problem.actors)
    recipe.number = number
    outcome, text = go(config, tmp_path / "run", problem=problem, recipe=recipe)
    assert outcome.stopped
    assert outcome.steps in (3, 4)  # a signal during a step is seen by the next
    assert f"saved step {outcome.steps}, go on with `resume" in text
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{outcome.steps}"]
    assert signal.getsignal(number) is before
    assert go(config, tmp_path / "run", resume=True)[0].steps == 50


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(go(config_of(), tmp_path / "run")[0].steps))
    thread.start()
    thread.join()
    assert ended == [6]


def test_an_existing_folder_is_refused(tmp_path):
    config = config_of()
    go(config, tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(UserError, match="there is a run in it: use `resume"):
        go(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it is not empty"):
        go(config, tmp_path / "other")
    with pytest.raises(UserError, match="is a file"):
        go(config, tmp_path / "other/notes.txt")
    (tmp_path / "empty").mkdir()
    assert go(config, tmp_path / "empty")[0].steps == 6
    with pytest.raises(UserError, match="no run there"):
        go(config, tmp_path / "none", resume=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"Permission denied|no permission"):
            go(config_of(), tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        go(config_of(), tmp_path / "file/run")


def test_a_student_without_a_plan_for_the_steps_asked_for_stops_before_training(tmp_path):
    class OneStep(ToyRecipe):
        @classmethod
        def plan(cls, config, process, num_steps):
            raise UserError(f"made for 1 step, not {num_steps}")

    config = config_of("train.sample_steps=[4]")
    problem, _ = build(config)
    with pytest.raises(UserError, match="made for 1 step, not 4"):
        go(config, tmp_path / "run", problem=problem, recipe=OneStep(config.recipe, problem.actors))
    assert not (tmp_path / "run").exists()


def test_roles_that_cannot_be_trained_are_named():
    config = config_of()
    problem, recipe = build(config)
    problem.actors.module("critic").requires_grad_(False)
    with pytest.raises(UserError, match="role 'critic' is to be trained and all its parameters are frozen"):
        Trainer(config, problem, recipe, World())


def test_the_folder_says_what_the_run_was_made_with(tmp_path):
    go(config_of(), tmp_path / "run")
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["processes"] == 1
    assert not (tmp_path / "run/run.lock").exists()


def test_a_bad_sample_source_stops_the_run_with_its_own_error(tmp_path):
    config = config_of()
    problem, recipe = build(config)

    class Failing:
        def __len__(self):
            return 0

        def batch(self, rng, device):
            if rng.step == 3:
                raise TrainingError("too many unreadable samples")
            return problem_data.batch(rng, device)

    problem_data = problem.data
    problem.data = Failing()
    with pytest.raises(TrainingError, match="too many unreadable samples"):
        go(config, tmp_path / "run", problem=problem, recipe=recipe)


def test_freed_memory_is_kept_where_that_is_possible_and_the_user_has_not_chosen(monkeypatch):
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert not keep_freed_memory()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_train_as_others_do(tmp_path):
    """In a process of its own: the checks of shapes that tests run under cannot be compiled."""
    go(config_of(*DOUBLE), tmp_path / "eager")
    code = (
        "import sys; from pathlib import Path; from core.runs import config_of, go;"
        "go(config_of('domain.dtype=float64', 'train.compile=true'), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "compiled"], env=child_environment(), check=True)
    a, b = newest(tmp_path / "eager"), newest(tmp_path / "compiled")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.slow
def test_the_benchmark_of_the_loop_runs():
    script = Path(__file__).parents[2] / "benchmarks/step_overhead.py"
    command = [sys.executable, script, "--rounds", "1", "--batch", "4", "--clock", "cpu"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=True)
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[3:]}
    assert set(rows) == {"dmd2", "sid", "consistency"}
    for cells in rows.values():
        forwards, backwards, full, bare, ratio = map(float, cells[:5])
        assert forwards >= backwards >= 1
        assert ratio == pytest.approx(full / bare, rel=0.05)
