"""Where training puts Gaussians: by gradients on the image as gsplat does, or as a Markov chain.

Both act on a :class:`GaussianParameters` and one torch optimizer outside core's training loop, whose parameters are
fixed; there :func:`relocate_dead` keeps count and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.errors import check
from fewstep.core.rng import Rng
from fewstep.threed.gaussians.mcmc import DEAD, exploration, grown, relocated
from fewstep.threed.gaussians.parameters import GaussianParameters, Gaussians, named
from fewstep.threed.gaussians.render import choose


@dataclass(frozen=True)
class GrowthConfig:
    """When Gaussians split, are doubled and vanish; the numbers are those of photographs.

    grow_grad2d: the mean gradient on the image, in half images per unit of loss, from which one grows. Distillation has
    gradients of another scale than photographs: look at them, or begin between 1e-3 and 1e-2. grow_scale3d,
    prune_scale3d: standard deviations over the scene's size up to which one is doubled rather than split, and from
    which one vanishes (after the first reset). prune_opacity: up to which one vanishes; a reset leaves twice as much.
    """

    grow_grad2d: float = 2e-4
    grow_scale3d: float = 0.01
    prune_opacity: float = 0.005
    prune_scale3d: float = 0.1
    start: int = 500
    stop: int = 15_000
    every: int = 100
    reset_every: int = 3000


@dataclass(frozen=True)
class ChainConfig:
    """When dead Gaussians move and new ones come, 5 % at a time up to ``most``; noise is times the means' rate."""

    most: int = 1_000_000
    noise: float = 5e5
    dead: float = DEAD
    start: int = 500
    stop: int = 25_000
    every: int = 100


def parameter_groups(parameters: GaussianParameters, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a group for every parameter with its learning rate, for any torch optimizer; UserError for lost names."""
    known = list(parameters.params)
    check(sorted(rates) == sorted(known), f"rates of {', '.join(rates)}: must be of {', '.join(known)}")
    return [{"params": [parameters.params[name]], "lr": rates[name], "name": name} for name in known]


class GradientGrowth:
    """gsplat's DefaultStrategy. Every step: render, ``before_backward``, backward, optimizer, ``after_step``."""

    def __init__(
        self,
        parameters: GaussianParameters,
        optimizer: torch.optim.Optimizer,
        config: GrowthConfig | None = None,
        scene_scale: float = 1.0,
    ) -> None:
        from gsplat import DefaultStrategy

        self.config = config or GrowthConfig()
        self._params, self._optimizers = parameters.params, _by_name(parameters, optimizer)
        self._strategy = DefaultStrategy(
            prune_opa=self.config.prune_opacity,
            grow_grad2d=self.config.grow_grad2d,
            grow_scale3d=self.config.grow_scale3d,
            prune_scale3d=self.config.prune_scale3d,
            refine_start_iter=self.config.start,
            refine_stop_iter=self.config.stop,
            refine_every=self.config.every,
            reset_every=self.config.reset_every,
        )
        self._state = self._strategy.initialize_state(scene_scale)

    def before_backward(self, step: int, meta: dict[str, Any]) -> None:
        """Keep the gradients of where the Gaussians fall on the image; ``meta`` of the render, unpacked."""
        self._strategy.step_pre_backward(self._params, self._optimizers, self._state, step, meta)

    def after_step(self, step: int, meta: dict[str, Any], rng: Rng) -> None:
        """Split, double, remove and reset what the step's number says; the optimizer follows."""
        from gsplat.strategy.ops import reset_opa

        with _drawing(rng, "split", self._params):
            self._strategy.step_post_backward(
                self._params, self._optimizers, self._state, step, _as_installed(meta), packed=False
            )
        # gsplat 1.4 to 1.5 mean to, but their condition never holds; a second time would change nothing
        if 0 < step < self.config.stop and step % self.config.reset_every == 0:
            value = 2 * self.config.prune_opacity
            reset_opa(params=self._params, optimizers=self._optimizers, state=self._state, value=value)


class ChainGrowth:
    """3DGS-MCMC: gsplat's kernels on CUDA, plain torch anywhere. Every step: backward, optimizer, ``after_step``."""

    def __init__(
        self,
        parameters: GaussianParameters,
        optimizer: torch.optim.Optimizer,
        config: ChainConfig | None = None,
        backend: str = "auto",
    ) -> None:
        self.config = config or ChainConfig()
        self._parameters, self._optimizer = parameters, optimizer
        self._optimizers = _by_name(parameters, optimizer)
        self._theirs: tuple[Any, dict[str, Any]] | None = None
        if choose(backend, parameters.params["means"].device) == "gsplat":
            from gsplat import MCMCStrategy

            strategy = MCMCStrategy(
                cap_max=self.config.most,
                noise_lr=self.config.noise,
                refine_start_iter=self.config.start,
                refine_stop_iter=self.config.stop,
                refine_every=self.config.every,
                min_opacity=self.config.dead,
            )
            self._theirs = strategy, strategy.initialize_state()

    def before_backward(self, step: int, meta: dict[str, Any]) -> None:
        """Do nothing: a chain needs no gradients of its own."""

    def after_step(self, step: int, meta: dict[str, Any], rng: Rng) -> None:
        """Move the dead, add new ones and jitter, as the step's number says; the optimizer follows."""
        rate = float(self._optimizers["means"].param_groups[0]["lr"])
        params = self._parameters.params
        if self._theirs is not None:
            strategy, state = self._theirs
            with _drawing(rng, "chain", params):
                strategy.step_post_backward(params, self._optimizers, state, step, meta, lr=rate)
            return
        if self.config.start < step < self.config.stop and step % self.config.every == 0:
            relocate_dead(self._parameters, rng, self._optimizer, self.config.dead)
            count = len(params["means"])
            more = min(self.config.most, int(1.05 * count)) - count
            if more > 0:
                made, fresh = grown(self._parameters(), more, rng, self.config.dead)
                _put(self._parameters, self._optimizer, made, fresh)
        with torch.no_grad():
            params["means"] += exploration(self._parameters(), rate * self.config.noise, rng, self.config.dead)


@torch.no_grad()
def relocate_dead(
    parameters: GaussianParameters, rng: Rng, optimizer: torch.optim.Optimizer | None = None, dead: float = DEAD
) -> int:
    """Move Gaussians with opacities up to ``dead`` onto live ones, in place; return how many rows are new.

    Count, shapes and the parameters themselves stay, so it can happen between any two steps of any loop. What
    ``optimizer`` remembers of the new rows is forgotten.
    """
    made, fresh = relocated(parameters(), rng, dead)
    if bool(fresh.any()):
        _put(parameters, optimizer, made, fresh)
    return int(fresh.sum())


@torch.no_grad()
def _put(
    parameters: GaussianParameters, optimizer: torch.optim.Optimizer | None, made: Gaussians, fresh: Tensor
) -> None:
    """Store a cloud, in place where its size is the same; the optimizer forgets rows that are ``fresh``."""
    for name, value in named(made).items():
        old = parameters.params[name]
        now = old if old.shape == value.shape else nn.Parameter(value.detach().clone())
        state = optimizer.state.pop(old, {}) if optimizer is not None else {}
        for key, kept in state.items():
            if isinstance(kept, Tensor) and kept.shape == old.shape:
                state[key] = torch.cat([kept, kept.new_zeros(len(value) - len(kept), *kept.shape[1:])])
                state[key][fresh] = 0
        if now is old:
            old.copy_(value)
        parameters.params[name] = now
        if optimizer is None:
            continue
        if state:
            optimizer.state[now] = state
        for group in optimizer.param_groups:
            group["params"] = [now if each is old else each for each in group["params"]]


@dataclass(frozen=True)
class _Group:
    """One parameter's part of an optimizer, as gsplat wants to see an optimizer."""

    param_groups: list[dict[str, Any]]
    state: dict[Any, Any]


def _by_name(parameters: GaussianParameters, optimizer: torch.optim.Optimizer) -> dict[str, _Group]:
    """Return the part of the optimizer that holds each parameter; UserError where one has no group of its own."""
    found = {}
    for name, parameter in parameters.params.items():
        own = [group for group in optimizer.param_groups if len(group["params"]) == 1]
        own = [group for group in own if group["params"][0] is parameter]
        check(len(own) == 1, f"the optimizer has no group for '{name}' alone: make it with parameter_groups")
        found[name] = _Group(own, optimizer.state)
    return found


def _as_installed(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the meta with radii as the installed gsplat has them: both ways from 1.5, the larger before."""
    import gsplat

    version = tuple(int(part) for part in gsplat.__version__.split(".")[:2])
    if version < (1, 5) and meta["radii"].ndim == 3:
        return {**meta, "radii": meta["radii"].amax(dim=-1)}
    return meta


@contextmanager
def _drawing(rng: Rng, stream: str, params: nn.ParameterDict) -> Iterator[None]:
    """Let torch's own generators draw from a stream of ``rng``, the same in every process."""
    with Rng(rng.seed, rng.step, (0,), rng.scope, params["means"].device).network_noise(stream):
        yield
