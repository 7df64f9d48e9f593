"""Optimizers of the phases: how they are made, the learning rate as a function of the step, their state as tensors."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.training.settings import OptimConfig
from fewstep.core.training.world import is_sharded

# bitsandbytes: the values a byte stands for, and the largest magnitude of every block of numbers
CODES, SCALES = ("qmap1", "qmap2"), ("absmax1", "absmax2")
BLOCKS = (256, 2048)  # numbers per block, in its versions so far


def make_optimizer(config: OptimConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of one phase (``config.for_phase(...)``)."""
    decay, fused = config.weight_decay, not any(is_sharded(p) or p.is_meta for p in parameters)
    common: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": decay}
    if config.name == "adamw8bit":
        return _eight_bit(parameters, common)
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, fused=fused, **common)
    if config.name == "adam":
        return torch.optim.Adam(parameters, fused=fused, **common)
    if config.name == "radam":
        return torch.optim.RAdam(parameters, **common)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=fused)


def _eight_bit(parameters: Sequence[nn.Parameter], common: Mapping[str, Any]) -> torch.optim.Optimizer:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("optim.name: adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw")
    if any(is_sharded(parameter) for parameter in parameters):
        raise UserError("optim.name: adamw8bit cannot update sharded parameters: use adamw with FSDP2")
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(parameters, **common)
    return made


def learning_rate(config: OptimConfig, update: int, step: int, steps: int) -> float:
    """Return the rate of one update: ``update`` counts those of the phase from 0, ``step`` those of the run."""
    rate = config.lr * min(1.0, (update + 1) / (config.warmup + 1))
    if config.schedule == "constant":
        return rate
    done = min(1.0, step / steps)
    return rate * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by ``<parameter>.<name>``, in shards where the parameters are; counts as int64."""
    found: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor | int):
                found[f"{index}.{name}"] = torch.as_tensor(value)
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` gave; rates are set anew at every step and are no state."""
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor | int]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        count = value.ndim == 0 and value.dtype == torch.int64
        state.setdefault(int(index), {})[name] = int(value) if count else like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_optimizer(parameters: Sequence[Tensor], tensors: Mapping[str, Tensor], who: str) -> None:
    """Raise UserError unless ``tensors`` fit the parameters of an optimizer, quantised state included."""
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        known = index.isdigit() and int(index) < len(parameters)
        if not known or not (value.ndim == 0 or _fits(name, value, parameters[int(index)])):
            raise UserError(f"the state '{name}' of the optimizer of phase '{who}' has another shape")


def _fits(name: str, value: Tensor, parameter: Tensor) -> bool:
    if name in CODES:
        return value.shape == (256,)
    if name in SCALES:
        return value.ndim == 1 and value.numel() in [-(-parameter.numel() // block) for block in BLOCKS]
    return value.shape == parameter.shape


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return ``value`` divided over the processes as ``parameter`` is."""
    if not is_sharded(parameter) or value.ndim == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    where: Any = parameter
    return distribute_tensor(value.to(where.device), where.device_mesh, where.placements)
