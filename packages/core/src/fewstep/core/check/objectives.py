"""Gradients of what score distillation descends, from densities and scores alone: no loss of the library is used.

Objectives of a student ``k z + b`` at one noise level, q the teacher's law there and p the student's:

* the name of an f-divergence: ``E_p[f(q/p)]``;
* ``cross_entropy``: ``-E_p[log q]``, what SDS descends;
* ``score:a``: SiD with coefficient ``a``, ``G1/2 + (1 - a) G2`` of the squared score gap (score-divergence theory,
  section 4): G1 through the student's score at a held law, G2 through the law at held scores;
* ``held``: SIM, ``E_p[d(D)]`` at a held law, d the config's distance, D the gap in its space;
* ``expanded:name``: ``E_p[h(q/p) D^2]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.core.analytic import GaussianTeacher, gauss_grid, linear_generator_score, log_ratio
from fewstep.core.losses.distances import Distance, Power, PseudoHuber, SquaredL2, huber_scale
from fewstep.core.losses.divergence import find_divergence

NODES = 161


def objective_gradient(name: str, config: Any, law: GaussianTeacher, k: float, b: float, t: float) -> Tensor:
    """Return the derivatives of an objective with respect to ``(k, b)`` at time ``t``, "2"."""
    parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (k, b)]
    grid = gauss_grid(NODES)
    times = torch.full((len(grid.mass),), t, dtype=torch.float64)
    process, (z, e) = law.process, grid.noise
    anchor = {"anchor": torch.zeros_like(z)} if process.has_anchor else {}
    x_t = process.add_noise(parameters[0] * z + parameters[1], e, times, anchor.get("anchor"))
    p = linear_generator_score(process, parameters[0], parameters[1])
    held = x_t.detach()

    def gap(x: Tensor, fake: GaussianTeacher, space: str = "score") -> Tensor:
        return (
            fake.score(x, times, anchor) - law.score(x, times, anchor)
            if space == "score"
            else (fake.x0(x, times, anchor) - law.x0(x, times, anchor))
        )

    family, _, detail = name.partition(":")
    if family == "cross_entropy":
        value = -law.log_density(x_t, times, anchor)
    elif family == "score":
        first, second = gap(held, p).square().sum(1), gap(x_t, p.frozen()).square().sum(1)
        value = first / 2 + (1 - float(detail)) * second
    elif family == "held":
        value = _distance(config, z).value(gap(held, p, config.space))
    elif family == "expanded":
        ratio = log_ratio(law, p, x_t, times, anchor).exp()
        value = find_divergence(detail).h(ratio) * gap(x_t, p).square().sum(1)
    else:
        value = find_divergence(name).f(log_ratio(law, p, x_t, times, anchor).exp())
    return torch.stack(torch.autograd.grad(grid.mean(value), parameters))


def _distance(config: Any, like: Tensor) -> Distance:
    if config.distance == "l2":
        return SquaredL2()
    if config.distance == "power":
        return Power(config.power)
    return PseudoHuber(huber_scale(like) if config.huber_c is None else config.huber_c)
