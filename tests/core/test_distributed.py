"""One process with the whole batch, two with half each, and accumulation: the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from core.runs import LORA, child_environment, config_of, go, newest

from fewstep.core.errors import UserError
from fewstep.core.training.trackers import read_metrics
from fewstep.core.training.world import World

DOUBLE = "domain.dtype=float64"
RECIPES = ("dmd2", "f-distill", "consistency", "toy")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Everything two processes have to do, in one launch."""
    root = tmp_path_factory.mktemp("two")
    go(config_of(*LORA, "train.steps=4"), root / "grows")
    environment = {**child_environment(), "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [Path(__file__).with_name("two_processes.py"), root, ",".join(RECIPES)]
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def said(root: Path) -> list[dict]:
    return [json.loads((root / f"said-{rank}.json").read_text()) for rank in (0, 1)]


def assert_same(a: dict, b: dict, tolerance: float = 1e-12) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.slow
def test_processes_and_accumulation_change_nothing(tmp_path, two, name):
    go(config_of(DOUBLE, recipe=name), tmp_path / "one")
    go(config_of(DOUBLE, "train.micro_batch=4", recipe=name), tmp_path / "parts")
    one = newest(tmp_path / "one")
    assert_same(one, newest(tmp_path / "parts"))
    assert_same(one, newest(two / f"two-{name}"))
    assert_same(one, newest(two / f"shards-{name}"))  # networks divided over two processes, stopped and resumed
    for folder in (two / f"two-{name}", two / f"shards-{name}"):
        for ours, theirs in zip(read_metrics(tmp_path / "one"), read_metrics(folder), strict=True):
            for key in (key for key in ours if not key.startswith("time/")):
                assert theirs[key] == pytest.approx(ours[key], rel=1e-10, abs=1e-10), key


@pytest.mark.slow
def test_lora_roles_over_a_base_in_shards(tmp_path, two):
    for name in ("toy", "dmd2"):
        go(config_of(*LORA, recipe=name), tmp_path / name)
        assert_same(newest(tmp_path / name), newest(two / f"lora-{name}"))
    go(config_of(*LORA), two / "shrinks", resume=True)
    for folder in ("shrinks", "grows"):  # two processes and then one, one process and then two
        assert_same(newest(tmp_path / "toy"), newest(two / folder))


@pytest.mark.slow
def test_weights_kept_after_the_forward_are_not_stale(tmp_path, two):
    go(config_of(DOUBLE), tmp_path / "full")
    go(config_of(*LORA), tmp_path / "toy")
    for name in ("full", "toy"):
        assert_same(newest(tmp_path / name), newest(two / f"kept-{name}"))


@pytest.mark.slow
def test_two_processes_took_part(two):
    assert [each["size"] for each in said(two)] == [2, 2]


@pytest.mark.slow
def test_a_network_in_shards_is_divided(two):
    whole = sum(value.numel() for name, value in newest(two / "two-toy").items() if name.startswith("role.student/"))
    parts = [each["parameters"] for each in said(two)]
    assert sum(parts) == whole
    assert max(parts) < 0.7 * whole


@pytest.mark.slow
def test_memory_of_one_process_decides_for_all(tmp_path, two):
    assert [each["memory"] for each in said(two)] == ["", ""]
    go(config_of(DOUBLE), tmp_path / "one")
    assert_same(newest(tmp_path / "one"), newest(two / "memory"))


@pytest.mark.slow
def test_a_bad_loss_on_one_process_stops_all(two):
    for each in said(two):
        assert "TrainingError: step 3, phase 'critic' (trains critic): loss term 'denoising' is nan" in each["nan"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(two):
    assert [each["signal"] for each in said(two)] == ["", ""]
    (path,) = (two / "signal/checkpoints").iterdir()
    assert path.name in ("step-3", "step-4")


@pytest.mark.slow
def test_mistakes_are_said_by_all_processes(two):
    for each in said(two):
        assert "UserError: train.batch=9 cannot be divided among 2 processes" in each["batch"]
        assert "there is a run in it" in each["taken"]


def shipped() -> list[str]:
    folder = files("fewstep.core") / "launch"
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".yaml"))


def test_shipped_launch_configs_are_known():
    assert shipped() == ["cpu.yaml", "ddp.yaml", "fsdp2.yaml", "multi-node.yaml", "zero2.yaml"]


def environment_of(name: str) -> dict[str, str]:
    """What accelerate's own launcher puts into the environment of the processes."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = str(files("fewstep.core") / "launch" / name)
    config = load_config_from_file(path)
    assert config.num_processes >= 2
    assert config.mixed_precision == "no"  # the run's own setting decides
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", path, "train.py"]))
    assert args.num_processes == config.num_processes
    assert args.num_machines == (2 if name == "multi-node.yaml" else 1)
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


@pytest.mark.parametrize("name", shipped())
def test_shipped_launch_configs_mean_to_the_world_what_they_say(monkeypatch, name):
    from accelerate.utils import FullyShardedDataParallelPlugin

    for key, value in environment_of(name).items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    sharded, zero = (os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))
    plugin = FullyShardedDataParallelPlugin() if sharded else None
    stage = int(os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) if zero else 0
    set_up(monkeypatch, "FSDP" if sharded else "DEEPSPEED" if zero else "MULTI_GPU", stage, plugin)
    world = World()
    assert (world.shards, world.reshard) == (name == "fsdp2.yaml", True)
    assert world.zero_stage == (2 if name == "zero2.yaml" else 0)
    assert (world.rank, world.size, world.main) == (1, 2, False)


def test_zero_stage_three_is_refused(monkeypatch):
    set_up(monkeypatch, "DEEPSPEED", 3)
    with pytest.raises(UserError, match="use launch"):
        World()


def set_up(monkeypatch, kind: str, stage: int, fsdp: object = None) -> None:
    """Stand in for an accelerator and a process group as a launch makes them."""
    plugins = SimpleNamespace(fsdp_plugin=fsdp, deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    stand_in = SimpleNamespace(device=torch.device("cpu"), distributed_type=kind, state=plugins)
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: stand_in)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
