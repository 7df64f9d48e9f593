"""DeepSpeed's ZeRO, stages 1 and 2: one engine per phase, over exactly the parameters the phase trains.

Networks run as they are, whole on every process; the engine's hooks on the parameters average the gradients, and each
process keeps the optimizer's state (stage 1), and the averaged gradients (stage 2), of its part of the parameters.
Trained weights have float32 masters there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError, check
from fewstep.core.training.optim import check_optimizer, make_optimizer
from fewstep.core.training.settings import OptimConfig
from fewstep.core.training.stepper import Stepper
from fewstep.core.training.world import World

_BUCKET = 5 * 10**7  # numbers per message


class _Trained(nn.Module):
    """What an engine holds: parameters, and no forward."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_of_phase = nn.ParameterList(parameters)


class ZeroStepper(Stepper):
    """An optimizer inside a DeepSpeed engine. UserError for optimizers ZeRO cannot divide and for shared parameters."""

    def __init__(self, config: OptimConfig, parameters: Sequence[nn.Parameter], world: World) -> None:
        check(config.name != "adamw8bit", "optim.name: adamw8bit cannot be divided by ZeRO: use adamw")
        for parameter in parameters:
            check(
                id(parameter) not in world.engines,
                "two phases train the same parameters, which DeepSpeed's ZeRO cannot: use ddp.yaml or fsdp2.yaml",
            )
            world.engines.add(id(parameter))
        self.parameters, self.world = list(parameters), world
        self.engine = _engine(make_optimizer(config, self.parameters), self.parameters, world.zero_stage)
        self.zero: Any = self.engine.optimizer
        self.optimizer: torch.optim.Optimizer = self.zero.optimizer
        self.flat: Tensor = self.zero.single_partition_of_fp32_groups[0]

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradients of one micro-batch, averaged over the processes as they arrive."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def reduce(self) -> Tensor:
        """Return the norm of the averaged gradients; nan where DeepSpeed says they are not finite."""
        norm: Tensor = self.zero.scaled_global_norm().to(self.world.device)
        return torch.where(norm < 0, torch.full_like(norm, math.nan), norm)

    def step(self, rate: float, factor: float) -> None:
        """Update this process's part and gather the weights."""
        if factor != 1:
            torch._foreach_mul_(self.zero.averaged_gradients[0], factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()

    def clear(self) -> None:
        """Forget the gradients, those of an update that was not made included."""
        self.zero.zero_grad(set_to_none=True)
        for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
            for group in kept:
                kept[group] = None

    def reset(self) -> None:
        """Forget the optimizer's state, and copy the weights into their masters."""
        self.optimizer.state.clear()
        self.zero.refresh_fp32_params()

    def tensors(self) -> dict[str, Tensor]:
        """Return the whole state by ``<parameter>.<name>``, as one process has it."""
        found: dict[str, Tensor] = {}
        sizes = [parameter.numel() for parameter in self.parameters]
        for name, value in sorted(self.optimizer.state.get(self.flat, {}).items()):  # one order for all processes
            if not isinstance(value, Tensor):
                continue
            parts = [value.clone()] * len(sizes) if value.ndim == 0 else self._parts(value, sizes)
            found |= {f"{index}.{name}": part for index, part in enumerate(parts)}
        return found

    def _parts(self, value: Tensor, sizes: list[int]) -> list[Tensor]:
        whole = self.world.gather(value)[: sum(sizes)]
        parts = torch.split(whole, sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def check(self, tensors: Mapping[str, Tensor], phase: str) -> None:
        """Raise UserError unless a state fits."""
        check_optimizer(self.parameters, tensors, phase)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take this process's part of a whole state, and copy the weights into their masters."""
        self.reset()
        state: dict[str, Tensor] = {}
        for name in sorted({key.partition(".")[2] for key in tensors}):
            values = [tensors[f"{index}.{name}"] for index in range(len(self.parameters))]
            if values[0].ndim == 0:
                state[name] = values[0].clone()
                continue
            own = self.flat.numel()
            whole = torch.cat([value.reshape(-1) for value in values])
            padded = torch.nn.functional.pad(whole, (0, own * self.world.size - whole.numel()))
            state[name] = padded[self.world.rank * own :][:own].to(self.flat)
        if state:
            self.optimizer.state[self.flat] = state


def _engine(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], stage: int) -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise UserError("launch config: distributed_type DEEPSPEED needs deepspeed: pip install deepspeed") from error
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: the loop cuts its own batches
        "gradient_accumulation_steps": 1,
        "steps_per_print": 2**62,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "round_robin_gradients": False,  # the flat order is the order of the parameters
            "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(
        model=_Trained(parameters), optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine
