"""Optimizers whose state is not shaped like the parameters: eight bits, and counts that are no tensors."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.core.errors import UserError
from fewstep.core.training.optim import check_optimizer, make_optimizer, optimizer_tensors, restore_optimizer
from fewstep.core.training.settings import OptimConfig

SHAPES = ((64, 128), (8,))  # one that is quantised, one that is too small for it


class Quantised(torch.optim.Optimizer):
    """Momentum kept as bytes under a code book and one magnitude per block: the layout of bitsandbytes."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["qmap1"] = torch.linspace(-1, 1, 256)
                    state["state1"] = torch.full_like(p, 127, dtype=torch.uint8)
                    state["absmax1"] = torch.zeros(-(-p.numel() // 256))
                state["step"] += 1
                scale = state["absmax1"].repeat_interleave(256)[: p.numel()].view_as(p)
                mean = 0.9 * scale * state["qmap1"][state["state1"].long()] + 0.1 * p.grad
                flat = nn.functional.pad(mean.flatten(), (0, -p.numel() % 256)).view(-1, 256)
                state["absmax1"] = flat.abs().amax(1)
                scale = state["absmax1"].clamp_min(1e-12).repeat_interleave(256)[: p.numel()].view_as(p)
                state["state1"] = ((mean / scale + 1) * 127.5).round().to(torch.uint8)
                p.sub_(mean, alpha=group["lr"] / state["step"] ** 0.5)

    def load_state_dict(self, state_dict):
        """Every tensor as it is: torch's own would give code books the dtype of the parameter."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():
            self.state[parameters[index]] = dict(state)


@pytest.fixture(params=["real", "stand-in"])
def library(request, monkeypatch):
    if request.param == "real":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is an extra")
        return
    module = ModuleType("bitsandbytes")
    module.__spec__ = SimpleNamespace(name="bitsandbytes")
    module.optim = SimpleNamespace(AdamW8bit=Quantised)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)


def fresh():
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return parameters, make_optimizer(OptimConfig(name="adamw8bit", lr=1e-2), parameters)


def train(parameters, optimizer, steps):
    for _ in range(steps):
        sum((p**2).sum() for p in parameters).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_eight_bit_state_goes_through_a_file(tmp_path, library):
    parameters, optimizer = fresh()
    train(parameters, optimizer, 3)
    save_file({name: value.clone() for name, value in optimizer_tensors(optimizer).items()}, tmp_path / "state")
    kept = [p.detach().clone() for p in parameters]
    train(parameters, optimizer, 2)
    again, restored = fresh()
    with torch.no_grad():
        for p, value in zip(again, kept, strict=True):
            p.copy_(value)
    tensors = load_file(tmp_path / "state")
    assert tensors["0.state1"].dtype == torch.uint8
    check_optimizer(again, tensors, "student")
    restore_optimizer(restored, tensors)
    train(again, restored, 2)
    for p, q in zip(parameters, again, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("key", ["0.state1", "0.qmap1", "0.absmax1"])
def test_eight_bit_state_of_another_shape_is_refused(library, key):
    parameters, optimizer = fresh()
    train(parameters, optimizer, 1)
    tensors = optimizer_tensors(optimizer)
    with pytest.raises(UserError, match="phase 'student' has another shape"):
        check_optimizer(parameters, {**tensors, key: tensors[key][:-1]}, "student")


def test_eight_bits_without_the_library(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        fresh()
