"""Gaussian-mixture data under any process, with classes: everything a teacher can be asked, without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.analytic.exact import ExactDenoiser, Level
from fewstep.core.analytic.flow_maps import Components, numerical_map, quantile_map
from fewstep.core.denoiser import Cond
from fewstep.core.errors import UserError, check
from fewstep.core.prediction import Clean, Kind
from fewstep.core.process import Process
from fewstep.core.rng import Rng

ALL_CLASSES = -1
"""The label of the full mixture: the unconditional prediction."""

Values = Tensor | Sequence[float]


class MixtureTeacher(ExactDenoiser):
    """The exact denoiser of data ``sum_k weights_k N(means_k, stds_k^2 I)`` (score-divergence theory, test bed B).

    ``weights``, ``stds``: "k" (weights are normalised); ``means``: "k *d". ``cond["label"]`` ("b", whole numbers) picks
    one of ``classes``, each a tuple of component indices (by default every component is a class); -1, or no label,
    is the full mixture, which is also what :meth:`null` gives. Raises UserError for sizes that do not fit.
    """

    def __init__(
        self,
        process: Process,
        weights: Values,
        means: Tensor | Sequence[Sequence[float]],
        stds: Values,
        *,
        classes: Sequence[Sequence[int]] | None = None,
        kind: Kind = Kind.X0,
    ) -> None:
        super().__init__(process, kind)
        self.weights, self.means, self.stds = _double(weights), _double(means), _double(stds)
        count = len(self.weights)
        check(self.means.ndim >= 2, "MixtureTeacher: means must have one row per component and the shape of a sample")
        check(
            len(self.means) == count and self.stds.shape == (count,),
            f"MixtureTeacher: {count} weights, {len(self.means)} means and {len(self.stds)} stds do not fit",
        )
        check(bool((self.weights > 0).all() and (self.stds > 0).all()), "MixtureTeacher: weights and stds must be > 0")
        self.weights = self.weights / self.weights.sum()
        self.shape = tuple(self.means.shape[1:])
        self.classes = tuple(tuple(c) for c in classes) if classes is not None else tuple((k,) for k in range(count))
        for members in self.classes:
            check(
                len(members) > 0 and all(0 <= k < count for k in members),
                f"MixtureTeacher: class {members} names components outside 0..{count - 1}, or none",
            )
        self._allowed = torch.zeros(len(self.classes) + 1, count, dtype=torch.bool)
        for label, members in enumerate(self.classes):
            self._allowed[label, list(members)] = True
        self._allowed[-1] = True  # row ALL_CLASSES

    def null(self, cond: Cond) -> Cond:
        """Return ``cond`` with every label -1, the full mixture."""
        if "label" not in cond:
            return cond
        return {**cond, "label": torch.full_like(cond["label"], ALL_CLASSES)}

    def of_class(self, label: int) -> MixtureTeacher:
        """Return the mixture of one class alone."""
        members = list(range(len(self.weights))) if label == ALL_CLASSES else list(self.classes[label])
        return MixtureTeacher(
            self.process, self.weights[members], self.means[members], self.stds[members], kind=self.kind
        )

    def _labels(self, cond: Cond | None, batch: int) -> Tensor:
        label = (cond or {}).get("label")
        if label is None:
            return torch.full((batch,), ALL_CLASSES)
        label = label.long()
        if bool(((label < ALL_CLASSES) | (label >= len(self.classes))).any()):
            raise UserError(f"MixtureTeacher: labels lie in -1..{len(self.classes) - 1}, got {label.tolist()}")
        return label

    def _log_weights(self, cond: Cond | None, x: Tensor) -> Float[Tensor, "b k"]:
        allowed = self._allowed.to(x.device)[self._labels(cond, len(x)).to(x.device)]
        logs = torch.where(allowed, self.weights.to(x).log(), -math.inf)
        return logs - logs.logsumexp(1, keepdim=True)

    def _parts(self, level: Level, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-joint densities "b k", ``x - alpha m`` "b k n", variances of x_t "b k 1" and alpha "b 1 1"."""
        x = level.core.flatten(1)
        alpha, sigma = level.alpha.reshape(-1, 1, 1), level.sigma.reshape(-1, 1, 1)
        offset = x[:, None] - alpha * self.means.to(x).flatten(1)
        variance = alpha**2 * self.stds.to(x)[:, None] ** 2 + sigma**2
        square = (offset**2 / variance).sum(2)
        logs = -(square + x.shape[1] * (2 * math.pi * variance[..., 0]).log()) / 2
        return self._log_weights(cond, x) + logs, offset, variance, alpha

    def responsibilities(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b k"]:
        """Return the posterior probability of each component."""
        return self._parts(self.level(x_t, t, cond), cond)[0].softmax(1)

    def exact_clean(self, level: Level, cond: Cond) -> Clean:
        """Return ``E[x0 | x_t]`` and ``E[eps | x_t]``."""
        logs, offset, variance, alpha = self._parts(level, cond)
        share = logs.softmax(1)[..., None]
        gain = self.stds.to(offset)[:, None] ** 2 * alpha / variance
        x0 = (share * (self.means.to(offset).flatten(1) + gain * offset)).sum(1)
        eps = (share * offset / variance).sum(1).reshape(level.core.shape)
        return Clean(x0.reshape(level.core.shape), level.sigma * eps)

    def exact_score(self, level: Level, cond: Cond) -> Tensor:
        """Return the gradient of the log-density."""
        logs, offset, variance, _ = self._parts(level, cond)
        return -(logs.softmax(1)[..., None] * offset / variance).sum(1).reshape(level.core.shape)

    def log_density(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, " b"]:
        """Return the log-density of ``x_t``, normalised, "b"."""
        return self._parts(self.level(x_t, t, cond), cond)[0].logsumexp(1)

    def _jacobian(self, share: Tensor, values: Tensor, scores: Tensor, diagonal: Tensor) -> Tensor:
        """Return the derivative of ``sum_k share_k values_k``: responsibilities move with the components' scores."""
        centred = values - (share * values).sum(1, keepdim=True)
        eye = torch.eye(values.shape[2], dtype=values.dtype, device=values.device)
        return torch.einsum("bki,bkj->bij", centred, share * scores) + (share * diagonal).sum(1)[..., None] * eye

    def score_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return the derivative of the score with respect to the flattened ``x_t``."""
        logs, offset, variance, _ = self._parts(self.level(x_t, t, cond), cond)
        scores = -offset / variance
        return self._jacobian(logs.softmax(1)[..., None], scores, scores, -1 / variance)

    def x0_jacobian(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b n n"]:
        """Return the derivative of ``x0`` with respect to the flattened ``x_t``: ``alpha/sigma^2 Cov[x0 | x_t]``."""
        logs, offset, variance, alpha = self._parts(self.level(x_t, t, cond), cond)
        gain = alpha * self.stds.to(offset)[:, None] ** 2 / variance
        posterior = self.means.to(offset).flatten(1) + gain * offset
        return self._jacobian(logs.softmax(1)[..., None], posterior, -offset / variance, gain)

    def flow_map(
        self, x_t: Float[Tensor, "b *d"], t: Float[Tensor, " b"], s: Float[Tensor, " b"], cond: Cond | None = None
    ) -> Float[Tensor, "b *d"]:
        """Return where the probability-flow ODE carries ``x_t`` from time ``t`` to time ``s``, earlier or later.

        In closed form for one component; by inverting distribution functions, to about 1e-12, in one dimension and for
        components of equal ``std`` whose means lie on a line; otherwise by an ODE solver at a relative tolerance of
        1e-10, on the CPU and in float64. Differentiable in ``x_t`` (once, in the last case).
        """
        anchor = (cond or {}).get("anchor")
        start = self.level(x_t, t, cond)
        end = self.level_of(start.core, s)
        labels = self._labels(cond, len(x_t)).to(x_t.device)
        moved = torch.empty_like(start.core)
        for label in set(labels.tolist()):
            rows = (labels == label).nonzero()[:, 0]
            part = self.of_class(label)._flow(*(Level(*(x[rows] for x in level)) for level in (start, end)))
            moved = moved.index_copy(0, rows, part)
        return self.process.offset(moved, s, anchor, sign=1.0)

    def _flow(self, start: Level, end: Level) -> Tensor:
        """Return the flow map of the full mixture on states without anchors."""
        means = self.means.to(start.core).flatten(1)
        spread = means - means[:1]
        line = spread[spread.square().sum(1).argmax()]
        length = line.norm()
        line = line / length.clamp_min(1e-300) if means.shape[1] > 1 else torch.ones_like(line)
        off_line = (spread - (spread @ line)[:, None] * line).abs().max()
        same = bool((self.stds == self.stds[0]).all())
        if means.shape[1] > 1 and not (same and bool(off_line <= 1e-12 * length)):
            return self._integrated(start, end)
        x = start.core.flatten(1)
        a, b = (level.alpha.reshape(-1, 1) for level in (start, end))
        before, after = (self._spread(level) for level in (start, end))
        offset = x - a * means[0]
        along = offset @ line
        places, logs = spread @ line, self.weights.to(x).log().double()
        moved = quantile_map(
            along, *(Components(logs, (c * places).double(), d.double()) for c, d in ((a, before), (b, after)))
        )
        across = (offset - along[:, None] * line) * after[:, :1] / before[:, :1]
        return (b * means[0] + moved[:, None] * line + across).reshape(start.core.shape)

    def _spread(self, level: Level) -> Float[Tensor, "b k"]:
        alpha, sigma = level.alpha.reshape(-1, 1), level.sigma.reshape(-1, 1)
        return (alpha**2 * self.stds.to(alpha) ** 2 + sigma**2).sqrt()

    def _integrated(self, start: Level, end: Level) -> Tensor:
        """Solve the ODE for ``x_t / |(alpha, sigma)|`` in the angle atan2(sigma, alpha), regular at both ends."""
        size = start.core[0].numel()
        lengths = [torch.hypot(level.alpha, level.sigma) for level in (start, end)]
        before, after = (torch.atan2(level.sigma, level.alpha).flatten() for level in (start, end))

        def field(x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            logs, offset, variance, alpha = self._parts(Level(x, cos, sin), None)
            share, gain = logs.softmax(1)[..., None], alpha * self.stds.to(x)[:, None] ** 2 / variance
            # components' velocities cos eps - sin x0
            pull = cos[..., None] * sin[..., None] / variance - sin[..., None] * gain
            values = pull * offset - sin[..., None] * self.means.to(x).flatten(1)
            return (share * values).sum(1), self._jacobian(share, values, -offset / variance, pull)

        moved = numerical_map((start.core / lengths[0]).reshape(-1, size), before, after, field)
        return moved.reshape(start.core.shape) * lengths[1]

    def sample(
        self, rng: Rng, cond: Cond | None = None, *, stream: str = "data", dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b *d"]:
        """Return one sample of the data law (of each sample's class) per sample of ``rng``."""
        noise = rng.normal(f"{stream}/noise", self.shape, dtype)
        edges = self._log_weights(cond, rng.uniform(f"{stream}/component")).exp().cumsum(1)
        u = rng.uniform(f"{stream}/component")
        picked = (u[:, None] >= edges / edges[:, -1:]).sum(1)
        std = self.stds.to(noise)[picked].reshape(-1, *([1] * len(self.shape)))
        return self.means.to(noise)[picked] + std * noise


def _double(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)
