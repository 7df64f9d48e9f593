"""The planner against what training takes on a CPU, by the profiler's own record; laws of memory."""

from __future__ import annotations

import json
from functools import lru_cache

import pytest
import torch
from core.memory_bed import load_benchmark
from torch import nn

from fewstep.core.cli.main import DONE, USER_ERROR, main
from fewstep.core.domain import find_domain
from fewstep.core.planning import advice as advice_module
from fewstep.core.planning.advice import advise, needed
from fewstep.core.planning.kernels import GpuKernels
from fewstep.core.planning.plan import MemoryPlan, plan
from fewstep.core.planning.tracker import Tracker, highest
from fewstep.core.recipes import find_recipe
from fewstep.core.training.config import load_config
from fewstep.core.training.settings import RunConfig

bench = load_benchmark()
LORA = ("domain.roles.mode=lora", "domain.roles.rank=8")
DMD2 = ("recipe.name=dmd2", "recipe.fake_updates=1")
CHECKPOINTING = "domain.roles.checkpointing=true"
QUICK = ((*DMD2, *LORA, CHECKPOINTING), ("recipe.name=consistency",))  # of the peaks that are measured


def config_of(*overrides: str) -> RunConfig:
    """Two steps of the image domain, on its digits' teacher unless told otherwise."""
    return load_config(None, ["train.steps=2", "train.batch=64", *overrides], domain=find_domain("image"))


@lru_cache
def planned(*overrides: str) -> MemoryPlan:
    return plan(config_of(*overrides), granularity=1)


def took(config: RunConfig) -> int:
    specs = find_recipe(config.recipe_name).role_specs(config.recipe)
    problem = find_domain("image").build(config.domain, specs, config.seed, "cpu")
    return bench.measured(config, problem, find_recipe(config.recipe_name)(config.recipe, problem.actors))


def role(found: MemoryPlan, name: str):
    return next(each for each in found.roles if each.name == name)


def phase(found: MemoryPlan, name: str):
    return next(each for each in found.phases if each.name == name)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(case, marks=() if case in QUICK else pytest.mark.slow, id=" ".join(c.split("=")[-1] for c in case))
        for case in (
            *QUICK,
            DMD2,
            (*DMD2, *LORA),
            (*DMD2, "train.micro_batch=16", "recipe.guidance_scale=2"),
            ("recipe.name=tdm", *LORA),
            ("recipe.name=ladd",),
        )
    ],
)
def test_the_peak_is_what_the_profiler_sees(overrides):
    config = config_of(*overrides)
    assert plan(config, granularity=1).peak == pytest.approx(took(config), rel=0.1)


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        pytest.param("dmd2, LoRA, guidance", (CHECKPOINTING,), marks=pytest.mark.slow, id="dmd2"),
        pytest.param("fine-tuning, full", (), id="plain"),
    ],
)
def test_the_peak_with_attention_is_what_the_profiler_sees(case, extra):
    network = bench.NETWORKS["small"] | {"block_out_channels": (32, 64), "attention_head_dim": 2}
    config = bench.settings(["train.batch=2", *bench.CASES[case], *extra])
    found = plan(config, granularity=1, build=lambda world: bench.make_problem(network, config, world.device))
    seen = bench.measured(config, *bench.make_problem(network, config, torch.device("cpu")))
    assert found.peak == pytest.approx(seen, rel=0.03)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="without bfloat16 instructions CPUs convolve by unfolding, which takes memory that GPUs do not take",
)
def test_autocast_keeps_what_it_keeps_on_this_device():
    # on CPUs autocast leaves normalisations in the lower precision
    config = config_of(*DMD2, "train.precision=bf16")
    found = plan(config, granularity=1, kernels=GpuKernels(higher=frozenset(["mse_loss", "softmax"])))
    assert found.peak == pytest.approx(took(config), rel=0.1)


@pytest.mark.slow
def test_a_text_teacher_is_planned_from_its_configs():
    overrides = ("domain.teacher=tiny:sd", "domain.neighbours=0", "train.batch=8", *DMD2, *LORA)
    config = config_of(*overrides)
    found = plan(config, granularity=1)
    assert found.peak == pytest.approx(took(config), rel=0.1)
    assert {part.name for part in found.parts} == {"text_encoder", "vae"}


@pytest.mark.slow
def test_weights_are_not_read(tmp_path, monkeypatch):
    from fewstep.core.models.loading import tiny_folder

    folder = tmp_path / "bare"
    for file in tiny_folder("sd").rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            copy = folder / file.relative_to(tiny_folder("sd"))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    whole, bare = (
        planned(f"domain.teacher={name}", "domain.neighbours=0", "train.batch=4", *DMD2) for name in ("tiny:sd", folder)
    )
    assert whole == bare


@pytest.mark.slow
def test_activations_are_affine_in_the_micro_batch():
    two, four, eight = (
        phase(planned(*DMD2, f"train.micro_batch={micro}", "train.batch=64"), "student").activations
        for micro in (2, 4, 8)
    )
    assert eight - four == pytest.approx(2 * (four - two), rel=0.02)
    assert two < four < eight


@pytest.mark.slow
def test_lora_costs_in_proportion_to_the_rank():
    four, eight = (planned(*DMD2, "domain.roles.mode=lora", f"domain.roles.rank={rank}") for rank in (4, 8))
    for field in ("trained", "optimizer", "gradients", "average"):
        assert getattr(role(eight, "student"), field) == 2 * getattr(role(four, "student"), field)


@pytest.mark.slow
def test_optimizers_keep_what_is_known_of_them():
    expected = {"adamw": 8, "sgd": 0, "radam": 8}
    for name, each in expected.items():
        found = role(planned("recipe.name=consistency", f"optim.name={name}"), "student")
        assert found.optimizer == each * found.trained
    eight = role(planned("recipe.name=consistency", "optim.name=adamw8bit"), "student")
    assert 2 * eight.trained < eight.optimizer < 4 * eight.trained


@pytest.mark.slow
def test_a_shared_base_is_counted_once():
    full, lora = planned(*DMD2), planned(*DMD2, *LORA)
    base = role(full, "teacher").weights
    assert role(lora, "teacher").weights == base
    others = sum(4 * role(lora, name).trained for name in ("student", "fake_score"))
    assert sum(each.weights for each in lora.roles) == base + others
    assert sum(each.weights for each in full.roles) == 3 * base


@pytest.mark.slow
def test_recomputing_saves_activations_and_nothing_else():
    kept, again = planned(*DMD2), planned(*DMD2, CHECKPOINTING)
    assert phase(again, "student").activations < 0.8 * phase(kept, "student").activations
    assert phase(again, "student").resident == phase(kept, "student").resident


@pytest.mark.slow
def test_no_average_no_memory():
    with_one, without = planned("recipe.name=consistency"), planned("recipe.name=consistency", "train.ema.kind=none")
    assert with_one.resident - without.resident == role(with_one, "student").average > 0


@pytest.mark.slow
def test_processes_share_the_batch_and_sharding_the_rest():
    config = config_of(*DMD2)
    one, two = plan(config), plan(config, processes=2)
    assert two.peak < one.peak
    assert two.resident - two.data == one.resident - one.data
    assert one.sharded(1) == one.peak + 2 * one.unit
    assert one.sharded(2) > one.sharded(4) > one.sharded(1000)
    assert one.sharded(10**9) >= max(each.activations for each in one.phases)


@pytest.mark.slow
def test_advice_is_what_planning_with_it_gives():
    overrides = ["train.steps=2", "train.batch=64", *DMD2]

    def load(settings):
        return load_config(None, [*overrides, *settings], domain=find_domain("image"))

    found = plan(load([]))
    room = needed(found.peak // 2)
    advice = advise(load([]), load, found, room)
    assert [each.fits for each in advice] == [False] * (len(advice) - 1) + [True]
    assert needed(plan(load(advice[-1].settings)).peak) == advice[-1].need <= room
    needs = [each.need for each in advice]
    assert needs == sorted(needs, reverse=True)


@pytest.mark.slow
def test_sharding_is_advised_last(monkeypatch):
    monkeypatch.setattr(advice_module, "candidates", lambda config, found: ())
    config = config_of(*DMD2)
    found = plan(config)
    advice = advise(config, lambda settings: config, found, needed(found.sharded(4)))
    assert len(advice) == 1
    assert "4 processes" in advice[0].settings[0]


def test_the_tracker_follows_storages_not_tensors():
    tracker = Tracker(granularity=1)
    with tracker:
        x = torch.empty(10, device="meta")
        y = x[2:]
        assert tracker.live == 40
        z = y + 1
        assert tracker.live == 40 + 32
        del x
        assert tracker.live == 40 + 32
        del y
        assert tracker.live == 32
        z.add_(1)
        assert tracker.live == 32
        with tracker.pausing():
            w = z * 2
        assert tracker.live == 32
        assert not bool((w > 0).all())
        assert z.cpu().tolist() == [0.0] * 8
    assert highest(tracker.events, 0, lambda key: key == 1) == (72, 32)


def test_sizes_are_rounded_as_the_allocator_does():
    tracker = Tracker()
    with tracker:
        x = torch.empty(1, device="meta")
        assert tracker.live == 512
        x = torch.empty(129, device="meta")
        assert tracker.live == 1024
    assert x.numel() == 129


def test_attention_keeps_no_scores():
    q = torch.empty(1, 2, 1000, 8, device="meta", requires_grad=True)
    kernels, tracker = GpuKernels(), Tracker(granularity=1)
    with kernels, tracker:
        out = nn.functional.scaled_dot_product_attention(q, q, q)
        assert out.shape == q.shape
        assert tracker.live == 4 * (2 * 1000 * 8 + 2 * 1000)
        out.sum().backward()
    assert q.grad.shape == q.shape
    kernels.close()


def test_no_hooks_are_left_behind():
    from torch.nn.modules import module

    before = len(module._global_forward_pre_hooks)
    planned("recipe.name=consistency", "train.batch=2")
    assert len(module._global_forward_pre_hooks) == before


@pytest.mark.slow
def test_the_command_prints_tables_advice_and_json(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(["plan", "dmd2-digits", "--gpu-gib", "0.51", "--json", str(file), "train.batch=32"]) == DONE
    said = capsys.readouterr().out
    assert all(word in said for word in ("fake_score", "activations", "does not fit", "checkpointing"))
    numbers = json.loads(file.read_text())
    assert numbers["peak"] == max(each["peak"] for each in numbers["phases"])
    assert numbers["fits"] is False


def test_the_command_says_what_fits(capsys):
    assert main(["plan", "dmd2-digits", "--gpu-gib", "24", "train.batch=8"]) == DONE
    assert "fits into 24.00 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["no-such"], "no config"),
        (["dmd2-digits", "--gpu-gib", "-1"], "GiB"),
        (["dmd2-digits", "trian.batch=2"], "trian"),
    ],
)
def test_mistakes_are_one_line(given, word, capsys):
    assert main(["plan", *given]) == USER_ERROR
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1
