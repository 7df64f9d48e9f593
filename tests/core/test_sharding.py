"""A text-to-image network under LoRA roles, divided over two processes: the numbers of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core.model_bed import NAMES, teacher
from core.runs import child_environment, go, newest
from core.sharding import STEPS, image_config, image_problem
from core.toys import ToyRecipe
from torch import nn

from fewstep.core.denoiser import NetworkDenoiser, Plain
from fewstep.core.networks.backbone import ExtensibleBackbone, listed_blocks
from fewstep.core.networks.reference import MLPBackbone
from fewstep.core.networks.roles import RolesConfig, build_roles
from fewstep.core.prediction import Kind
from fewstep.core.process import VP
from fewstep.core.recipe import RoleSpec


def joined(tensors: dict[str, torch.Tensor], role: str) -> torch.Tensor:
    names = sorted(name for name in tensors if name.startswith(f"role.{role}/") and "lora_B" in name)
    return torch.cat([tensors[name].reshape(-1) for name in names])


@pytest.mark.slow
def test_precise_factors_over_a_half_precision_base_in_shards(tmp_path):
    environment = {**child_environment(), "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [Path(__file__).with_name("sharded_processes.py"), tmp_path]
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for dtype, tolerance in (("fp32", 1e-5), ("bf16", 0.02)):  # bfloat16: three digits of every activation
        config = image_config(dtype, STEPS)
        problem = image_problem(config)
        go(config, tmp_path / f"one-{dtype}", problem=problem, recipe=ToyRecipe(config.recipe, problem.actors))
        alone, sharded = newest(tmp_path / f"one-{dtype}"), newest(tmp_path / dtype)
        assert alone.keys() == sharded.keys()
        assert all(
            value.dtype == sharded[name].dtype == torch.float32 for name, value in alone.items() if "lora" in name
        )
        for role in ("student", "critic"):  # lora_B starts from zero: what it is now is how far it moved
            moved = joined(alone, role)
            assert (joined(sharded, role) - moved).norm() < tolerance * moved.norm(), (dtype, role)
    whole = sum(p.numel() for p in problem.actors.module("student").network.parameters())
    held = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(held) == whole
    assert max(held) < 0.6 * whole


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_a_family_hold_its_weights_once(name):
    backbone = teacher(name).denoiser(None).backbone
    assert isinstance(backbone, ExtensibleBackbone)
    blocks = [backbone.network.get_submodule(path) for path in backbone.blocks()]
    inside = [id(p) for block in blocks for p in block.parameters()]
    assert len(inside) == len(set(inside))
    sizes = {id(p): p.numel() for p in backbone.network.parameters()}
    assert sum(sizes[each] for each in inside) > 0.4 * sum(sizes.values())


def test_adapters_leave_the_blocks_as_they_are():
    made = MLPBackbone(5, width=16, depth=2)
    before = made.blocks()
    assert before
    found = NetworkDenoiser(made, VP.linear(), Plain(Kind.EPS))
    roles = build_roles(found, [RoleSpec("student")], RolesConfig(mode="lora", rank=2), 0)
    assert roles["student"].backbone.blocks() == before


def test_lists_within_blocks_are_no_blocks():
    inner = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    network = nn.Module()
    network.first = nn.ModuleList([inner, nn.Identity()])
    network.second = nn.ModuleList([None, nn.Linear(2, 2)])  # as diffusers' middle blocks without attention
    assert listed_blocks(network) == ("first.0", "second.1")
