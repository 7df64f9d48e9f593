"""How the parameters of a phase get from losses to their next values: backward, gradients over all processes, step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewstep.core.training.optim import check_optimizer, make_optimizer, optimizer_tensors, restore_optimizer
from fewstep.core.training.settings import OptimConfig
from fewstep.core.training.world import World


class Stepper:
    """One optimizer over ``parameters``, whole on every process or in shards (FSDP2)."""

    def __init__(self, config: OptimConfig, parameters: Sequence[nn.Parameter], world: World) -> None:
        self.parameters, self.world = list(parameters), world
        self.optimizer = make_optimizer(config, self.parameters)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradients of one micro-batch; ``last``: of the update."""
        torch.autograd.backward(loss)

    def reduce(self) -> Tensor:
        """Average the gradients over the processes; return their norm."""
        for parameter in self.parameters:
            if parameter.grad is None:  # as on a process whose samples did reach it
                parameter.grad = torch.zeros_like(parameter)
        self.world.average(self._gradients())
        return self.world.norm(self._gradients())

    def step(self, rate: float, factor: float) -> None:
        """Update with ``factor`` times the averaged gradients at a learning rate."""
        if factor != 1:
            torch._foreach_mul_(self._gradients(), factor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget the optimizer's state, and take the weights as they are now."""
        self.optimizer.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by ``<parameter>.<name>``, in shards where the parameters are; all processes together."""
        return optimizer_tensors(self.optimizer)

    def check(self, tensors: Mapping[str, Tensor], phase: str) -> None:
        """Raise UserError unless a state fits."""
        check_optimizer(self.parameters, tensors, phase)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave, and take the weights as they are now."""
        restore_optimizer(self.optimizer, tensors)

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]
