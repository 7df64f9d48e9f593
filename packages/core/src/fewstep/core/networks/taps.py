"""Features inside a network: outputs of named modules, caught while it runs and let go afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.denoiser import Backbone, Cond, Denoiser, NetworkDenoiser
from fewstep.core.errors import UserError, check, nearest
from fewstep.core.networks.adapters import AdapterView


class _AllCaught(Exception):
    """Ends a forward whose remaining part nobody needs."""


def _parse(name: str) -> tuple[str, int]:
    path, colon, index = name.partition(":")
    check(not colon or index.isdigit(), f"tap '{name}': after the colon comes the number of an output")
    return path, int(index or 0)


def _tensor_of(output: object, index: int) -> Tensor | None:
    if index:
        return _first_tensor(output[index]) if isinstance(output, tuple | list) and index < len(output) else None
    return _first_tensor(output)


def _first_tensor(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        return next((found for item in output if (found := _first_tensor(item)) is not None), None)
    sample = getattr(output, "sample", None)
    return sample if isinstance(sample, Tensor) else None


@contextmanager
def tapped(root: nn.Module, names: Sequence[str], stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of modules of ``root``, by name, of the last forward inside; no hook outlives the block.

    A module that returns several tensors gives its first; named ``path:1``, its second. ``stop``: the forward ends once
    all are there; what is inside the block is then left at that point. Raises UserError for a name ``root`` does not
    have, or a module that did not run.
    """
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            value = _tensor_of(output, _parse(name)[1])
            if value is None:
                raise UserError(f"the output of module '{name}' holds no tensor: tap another one")
            caught[name] = value
            if stop and len(caught) == len(set(names)):
                raise _AllCaught

        return hook

    modules = dict(root.named_modules())
    handles = []
    try:
        for name in names:
            path, _ = _parse(name)
            if path not in modules:
                raise UserError(f"no module '{path}' to tap in {type(root).__name__}: {nearest(path, modules)}")
            handles.append(modules[path].register_forward_hook(catch(name)))
        with suppress(_AllCaught):
            yield caught
        missing = [name for name in names if name not in caught]
        if missing:
            raise UserError(f"tapped module '{missing[0]}' did not run")
    finally:
        for handle in handles:
            handle.remove()


def backbone_of(denoiser: Denoiser) -> Backbone:
    """Return the network behind a denoiser or behind a view of one (another process); UserError when there is none."""
    inner: object = denoiser
    while not isinstance(inner, NetworkDenoiser):
        inner = getattr(inner, "inner", None)
        if not isinstance(inner, Denoiser):
            raise UserError(f"a {type(denoiser).__name__} is no network: it has no features to tap")
    return inner.backbone


def tap_root(backbone: Backbone) -> nn.Module:
    """Return the module that tap names are relative to."""
    return backbone.inner if isinstance(backbone, AdapterView) else backbone


def features(
    denoiser: Denoiser, names: Sequence[str], x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond
) -> list[Tensor]:
    """Return the outputs of the named modules of a denoiser's network at ``(x_t, t)``, batch first, with their graph.

    The forward ends at the last of them.
    """
    with tapped(tap_root(backbone_of(denoiser)), names, stop=True) as caught:
        denoiser.predict(x_t, t, cond)
    return [caught[name] for name in names]
