"""Who computes sparse convolutions: plain torch, or a library with kernels of its own where one is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor

from fewstep.core.errors import UserError, nearest
from fewstep.lidar.sparse.ops import convolve
from fewstep.lidar.sparse.sites import Pairs


class SparseBackend(Protocol):
    """An implementation of :func:`~fewstep.lidar.sparse.ops.convolve`; kernel maps stay this package's own."""

    name: str

    def convolve(self, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return the convolution of rows ``x`` "v ci" with ``weight`` "k ci co", differentiable in both."""


class TorchBackend:
    """The default: gather, matrix product, scatter; every device and dtype."""

    name = "torch"

    def convolve(self, x: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        """Return the convolution."""
        return convolve(x, weight, pairs)


def _spconv() -> SparseBackend:
    from fewstep.lidar.sparse.spconv import SpconvBackend

    return SpconvBackend()


BACKENDS: dict[str, Callable[[], SparseBackend]] = {"torch": TorchBackend, "spconv": _spconv}
_ACTIVE: ContextVar[SparseBackend | None] = ContextVar("backend", default=None)
_DEFAULT = TorchBackend()


def find_backend(name: str) -> SparseBackend:
    """Return a backend by name; UserError for one that does not exist or whose library is not installed."""
    if name not in BACKENDS:
        raise UserError(f"no sparse backend '{name}': {nearest(name, BACKENDS)}")
    return BACKENDS[name]()


def active_backend() -> SparseBackend:
    """Return the backend in force: plain torch unless :func:`using_backend` says otherwise."""
    return _ACTIVE.get() or _DEFAULT


@contextmanager
def using_backend(backend: SparseBackend) -> Iterator[None]:
    """Let a backend compute what is inside."""
    token = _ACTIVE.set(backend)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
