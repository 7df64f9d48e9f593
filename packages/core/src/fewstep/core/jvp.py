"""Directional derivatives of networks: forward mode through unmodified models, and central differences as a fallback.

Forward mode needs every operation inside to have a forward derivative. Fused attention has none, on CPUs either;
PyTorch's plain attention kernel does, and is what :func:`directional_derivative` selects while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.errors import UserError
from fewstep.core.tensors import expand_to

Field = Callable[[Tensor, Tensor], Tensor]
"""A function of ``x`` "b *d" and ``t`` "b" with values like ``x``."""


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Run what is inside with PyTorch's plain attention, the one kernel that has a forward derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def directional_derivative(
    function: Field,
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    x_direction: Float[Tensor, "b *d"],
    t_direction: Float[Tensor, " b"],
    *,
    plain_attention: bool = True,
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"]]:
    """Return ``function(x, t)`` and its derivative along ``(x_direction, t_direction)``, exact, without gradient graph.

    ``plain_attention``: select the attention kernel that can be differentiated. Raises UserError, saying what to do,
    when an operation inside (a fused or custom attention, a compiled graph) has no forward derivative.
    """
    directions = (x_direction.to(x.dtype), t_direction.to(t.dtype))
    kernels = differentiable_attention() if plain_attention else nullcontext()
    try:
        with torch.no_grad(), kernels:
            value, derivative = torch.func.jvp(function, (x, t), directions)[:2]
    except (NotImplementedError, RuntimeError) as error:
        if not _lacks_forward_mode(error):
            raise
        raise UserError(
            f"the network cannot be differentiated in forward mode ({str(error).splitlines()[0][:160]}): "
            "give it plain attention (no xformers or flash-attention processor, no torch.compile), "
            "or set jvp to 'finite_difference'"
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
