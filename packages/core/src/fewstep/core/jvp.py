"""Directional derivatives of networks: forward mode through unmodified models, and central differences as a fallback.

Forward mode needs every operation inside to have a forward derivative. Fused attention has none, on CPUs either;
PyTorch's plain attention kernel does, and is what :func:`directional_derivative` selects while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.core.errors import UserError
from fewstep.core.tensors import expand_to

Field = Callable[[Tensor, Tensor], Tensor]
"""A function of ``x`` "b *d" and ``t`` "b" with values like ``x``."""


NORMALISATIONS = frozenset(
    {F.group_norm, F.layer_norm, F.batch_norm, F.instance_norm, torch.group_norm, torch.layer_norm}
)


class _ContiguousNormalisation(TorchFunctionMode):
    """Gives normalisation layers a contiguous copy of their input; a copy's derivative is contiguous too."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in NORMALISATIONS and args and isinstance(args[0], Tensor):
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))


@contextmanager
def forward_differentiable() -> Iterator[None]:
    """Run what is inside with kernels that have a forward derivative: the same functions, more slowly."""
    with sdpa_kernel(SDPBackend.MATH), _ContiguousNormalisation():
        yield


def directional_derivative(
    function: Field,
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    x_direction: Float[Tensor, "b *d"],
    t_direction: Float[Tensor, " b"],
    *,
    plain_kernels: bool = True,
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
    """Return ``function(x, t)`` and its derivative along ``(x_direction, t_direction)``, exact, without gradient graph.

    ``plain_kernels``: select the kernels that can be differentiated. Raises UserError, saying what to do,
    when an operation inside (a fused or custom attention, a compiled graph) has no forward derivative.
    """
    directions = (x_direction.to(x.dtype), t_direction.to(t.dtype))
    kernels = forward_differentiable() if plain_kernels else nullcontext()
    try:
        with torch.no_grad(), kernels:
            value, derivative = torch.func.jvp(function, (x, t), directions)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if not _lacks_forward_mode(error):
            raise
        raise UserError(
            f"the network cannot be differentiated in forward mode ({str(error).splitlines()[0][:160]}): "
            "give it plain attention (no xformers or flash-attention processor, no torch.compile), "
            "or set recipe.derivative to finite_difference"
        ) from error
    return value, derivative


def _lacks_forward_mode(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(
        phrase in text for phrase in ("forward ad", "forward mode", "forward-mode", "jvp", "vmap", "functorch")
    )


def central_difference(
    function: Field,
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    x_direction: Float[Tensor, "b *d"],
    t_direction: Float[Tensor, " b"],
    *,
    step: float = 1e-3,
) -> Float[Tensor, "b *d"]:
    """Return the derivative along a direction by a central difference of two evaluations; error of order ``step^2``."""
    with torch.no_grad():
        ahead = function(x + step * x_direction, t + step * t_direction)
        behind = function(x - step * x_direction, t - step * t_direction)
    return (ahead - behind) / (2 * step)


def trajectory_difference(
    function: Field,
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    velocity: Float[Tensor, "b *d"],
    *,
    step: float = 1e-2,
) -> Float[Tensor, "b *d"]:
    """Return ``d function(x_t, t)/dt`` along a TrigFlow trajectory, by a central difference of two evaluations.

    The neighbours are ``cos h x +- sin h dx/dt`` at ``t +- h``: exact positions when the velocity field is constant in
    the rotating frame. The direction is the (guided) teacher's velocity; re-noising a data sample at ``t +- h`` instead
    would follow the conditional velocity, which is wrong under guidance.
    """
    h = torch.full_like(t, step, dtype=torch.float64)
    cos, sin = expand_to(h.cos(), x), expand_to(h.sin(), x)
    with torch.no_grad():
        ahead = function((cos * x + sin * velocity).to(x.dtype), t + h.to(t.dtype))
        behind = function((cos * x - sin * velocity).to(x.dtype), t - h.to(t.dtype))
    return (ahead - behind) / (2 * step)
