"""What a GPU's kernels keep and make, where the meta device would say something else: attention and autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# PyTorch's lists for CUDA ("CUDA Ops that can autocast to float16 / to float32"), those that networks here meet
LOWER = frozenset((
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "matmul",
    "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "addmm", "addbmm", "einsum", "scaled_dot_product_attention",
    "prelu",
))  # fmt: skip
HIGHER = frozenset((
    "layer_norm", "group_norm", "instance_norm", "softmax", "log_softmax", "softplus", "exp", "expm1", "log", "log2",
    "log10", "log1p", "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "cumsum", "cumprod", "norm", "renorm",
    "cosine_similarity", "cdist", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy_with_logits", "cross_entropy", "nll_loss", "kl_div",
))  # fmt: skip
WIDENED = frozenset(["sum", "prod"])  # the result is float32, the input is left as it is


class _FusedAttention(torch.autograd.Function):
    """Attention as fused kernels do it: no matrix of scores; output and logsumexp are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # kernels write tokens before heads, so that joining the heads afterwards copies nothing
        out = q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-2, -3)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, logsumexp = ctx.saved_tensors
        sums = [torch.empty_like(logsumexp)]  # of the output times its gradient
        if q.dtype != torch.float32:
            sums.append(torch.empty_like(q, dtype=torch.float32))  # the queries' gradient gathers in float32
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _only_plain() -> bool:
    kernels: Any = torch.backends.cuda
    return not (kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled())


class GpuKernels(TorchFunctionMode):
    """Stands in for fused attention, lists of values, and autocast to ``lower`` while :meth:`autocast` is entered.

    ``higher``: names of the operations autocast runs in float32. A backward pass that computes activations again does
    so under the mode and the autocast they were computed under at first.
    """

    def __init__(self, higher: frozenset[str] = HIGHER) -> None:
        super().__init__()
        self.higher = higher
        self.lower: torch.dtype | None = None
        self._latest: torch.dtype | None = None
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = []
        self._again: tuple[nn.Module, ExitStack] | None = None

    def __enter__(self) -> GpuKernels:
        if not self._hooks:
            self._hooks = [
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, always_call=True),
            ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def close(self) -> None:
        """Forget the hooks that watch for activations computed again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before(self, module: nn.Module, args: Any) -> None:
        # a backward pass leaves the mode and the autocast it belongs to behind
        if self._again is None and torch._C._current_graph_task_id() != -1:
            stack = ExitStack()
            stack.enter_context(self)
            if self._latest is not None:
                stack.enter_context(self.autocast(self._latest))
            self._again = module, stack

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._again is not None and self._again[0] is module:
            self._again[1].close()
            self._again = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is Tensor.tolist and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype, device="cpu").tolist()
        if self.lower is not None:
            args, given = self._cast(getattr(func, "__name__", ""), args, given)
        if func is F.scaled_dot_product_attention and not _only_plain():
            q, k, v = (*args, *(given[name] for name in ("query", "key", "value") if name in given))[:3]
            if q.is_meta and q.ndim > 2:
                return _FusedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return func(*args, **given)

    def _cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if (
            name in WIDENED
            and self.higher is HIGHER
            and args
            and isinstance(args[0], Tensor)
            and args[0].dtype == self.lower
        ):
            return args, {"dtype": torch.float32, **kwargs}
        if name not in LOWER and name not in self.higher:
            return args, kwargs
        to = self._lowered if name in LOWER else self._raised
        return tree_map(to, args), tree_map(to, kwargs)

    def _lowered(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_meta or x.dtype in (self.lower, torch.float64):
            return x
        if not x.is_floating_point():
            return x
        if not (x.dtype == torch.float32 and x.requires_grad and x.is_leaf and torch.is_grad_enabled()):
            return x.to(self.lower)
        known = self._casts.get(id(x))
        if known is None:  # PyTorch keeps casts of weights that train until the region ends
            known = self._casts[id(x)] = (x, x.to(self.lower))
        return known[1]

    def _raised(self, x: Any) -> Any:
        half = isinstance(x, Tensor) and x.is_meta and x.dtype in (torch.bfloat16, torch.float16)
        return x.float() if half else x

    @contextmanager
    def autocast(self, dtype: torch.dtype) -> Iterator[None]:
        """Run what is inside as under ``torch.autocast("cuda", dtype)``."""
        before, self.lower, self._latest = self.lower, dtype, dtype
        try:
            yield
        finally:
            self.lower = before
            if before is None:
                self._casts.clear()
