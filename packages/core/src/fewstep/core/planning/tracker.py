"""Follows the life of every storage that operations on the meta device make, without a byte being allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CUDA_GRANULARITY = 512  # bytes: PyTorch's CUDA allocator rounds every block up to a multiple of this

# results have the shape, dtype and strides of operands that agree in them
ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "square", "exp", "log", "sigmoid", "tanh", "silu", "gelu",
    "relu", "silu_backward", "gelu_backward", "sigmoid_backward", "tanh_backward", "reciprocal", "sin", "cos",
    "clamp", "clamp_min", "clamp_max", "addcmul", "addcdiv", "lerp",
))  # fmt: skip
IN_PLACE = frozenset((
    "add_", "sub_", "mul_", "div_", "neg_", "sqrt_", "zero_", "fill_", "copy_", "clamp_", "addcmul_", "addcdiv_",
    "lerp_", "normal_", "uniform_",
))  # fmt: skip
BLANK = frozenset(["zeros_like", "ones_like"])

Event = tuple[int, int]
"""A key of a storage, and its bytes: positive when it is made, negative when it is freed."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live bytes on the meta device while it is entered; ``events`` is what happened, in order.

    Sizes are rounded up to ``granularity``. Questions about values get an answer that leaves the code going: false, one
    or zeros; copies to the CPU are zeros. ``paused`` switches counting off.
    """

    def __init__(self, granularity: int = CUDA_GRANULARITY) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.granularity, self.paused = granularity, False
        self.live = 0
        self.events: list[Event] = []
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by address: reused once a storage is gone
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and _leaves(given.get("device")):
            return torch.zeros(args[0].shape, dtype=given.get("dtype") or args[0].dtype, device=given["device"])
        if func is torch.ops.aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        out = _shortcut(func, args, given)
        if out is None:
            out = func(*args, **given)
        if not self.paused:
            for value in tree_iter(out):
                if isinstance(value, Tensor) and value.is_meta:
                    self.add(value)
        return out

    def add(self, tensor: Tensor) -> int:
        """Count a tensor's storage unless it is known; returns its key."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._alive.get(address)
        if known is not None:
            return known[0]
        key, size = self._next, -(-storage.nbytes() // self.granularity) * self.granularity
        self._next += 1

        self._alive[address] = (key, weakref.ref(storage, partial(self._forget, address, key)))
        self._sizes[key] = size
        self._note(key, size)
        return key

    def _forget(self, address: int, key: int, _: object) -> None:
        del self._alive[address]
        self._note(key, -self._sizes.pop(key))

    def _note(self, key: int, change: int) -> None:
        self.live += change
        self.events.append((key, change))

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """Return the bytes of the distinct storages of tensors; counts those that were unknown."""
        return sum(self._sizes[key] for key in {self.add(tensor) for tensor in tensors})

    def keys_of(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        """Return the keys of the storages of tensors."""
        return frozenset(self.add(tensor) for tensor in tensors)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Count nothing that is made inside."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


def _shortcut(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what frequent operations give, much faster than the meta device does; None for all others."""
    name = func.overloadpacket.__name__
    if name in IN_PLACE and isinstance(args[0], Tensor) and args[0].is_meta:
        return args[0]
    if name in BLANK and args[0].is_meta:
        return torch.empty_like(args[0], **kwargs)
    if name == "native_group_norm" and args[0].is_meta:
        x, n, groups = args[0], args[3], args[6]
        return torch.empty_like(x), x.new_empty(n, groups), x.new_empty(n, groups)
    if name == "native_layer_norm" and args[0].is_meta:
        x, inner = args[0], len(args[1])
        rows = (*x.shape[: x.ndim - inner], *[1] * inner)
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows), x.new_empty(rows)
    if name not in ELEMENTWISE or "out" in kwargs:
        return None
    first = args[0]
    if not isinstance(first, Tensor) or not first.is_meta or not first.is_floating_point():
        return None
    for other in args[1:]:
        if isinstance(other, Tensor):
            same = other.dtype == first.dtype and other.shape == first.shape and other.stride() == first.stride()
            if not (same and other.is_meta):
                return None
    return torch.empty_like(first)


def _leaves(device: torch.device | None) -> bool:
    return device is not None and device.type != "meta"


def highest(events: Iterable[Event], start: int, marked: Callable[[int], bool]) -> tuple[int, int]:
    """Return the highest total reached from ``start`` bytes on, and how much of it lay in marked storages."""
    live = peak = start
    inside = at_peak = 0
    for key, change in events:
        live += change
        inside += change if marked(key) else 0
        if live > peak:
            peak, at_peak = live, inside
    return peak, at_peak
