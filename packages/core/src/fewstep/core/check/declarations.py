"""What methods claim of themselves, so that the claims can be checked.

The recipes that come with the package are in a table here. A recipe of one's own declares itself with a class
attribute ``claims``, a :class:`Claims`, or a function of its config that returns one; without it, only laws that hold
for any method are checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.core.recipe import Recipe

Family = Literal["generator", "trajectory", "denoising", "other"]
"""generator: samples judged under noise. trajectory: a map along trajectories. denoising: a posterior mean."""

Map = Literal["clean", "least_noise", "viewed", "phase", "two_steps", "segment"]
"""Where a trajectory student's prediction leads when it is exact; see :mod:`fewstep.core.check.oracles`."""


@dataclass(frozen=True)
class Claims:
    """What a recipe says of itself, under one config.

    ``family``: which laws apply. ``objective``: what the student descends, see
    :mod:`fewstep.core.check.objectives`. ``through``: whether gradients flow through teacher and fake score.
    ``terms``: the terms of the student's loss the claims are about (empty: all). ``at_rest``: no gradient where fake
    score and teacher agree. ``guided``: guidance acts as on one guided teacher. ``towards``: with an exact fake score,
    a Gaussian student moves towards a Gaussian teacher. ``inputs``: what the student's later inputs are made of, its
    own samples or data. ``bias``: how far, relative to a student far from it, the optimum may be off (default: 1e-6
    for posterior means, 0.1 for maps, which are taught in steps).
    ``map``: of an exact student. ``apart``: how far a network that starts as a copy of the teacher is moved from it,
    where the loss of two equal ones is a constant that shows nothing.
    ``negatives``: it needs a negative prompt in the condition.
    ``late``: laws are about the loss after all warm-ups, not about its first step. ``plain``: fields of the config set
    to values under which the claims are exact. ``instead``: fields set for all laws, which have no prepared data to
    stand in for them.
    """

    family: Family = "other"
    objective: str = ""
    through: bool | None = None
    terms: tuple[str, ...] = ()
    at_rest: bool = True
    guided: bool = True
    towards: bool = True
    inputs: Literal["samples", "data"] = "samples"
    bias: float | None = None
    map: Map | None = None
    apart: float = 0.0
    negatives: bool = False
    late: bool = True
    plain: dict[str, Any] = field(default_factory=dict)
    instead: dict[str, Any] = field(default_factory=dict)


def _sid(config: Any) -> Claims:
    return Claims("generator", f"score:{config.alpha:g}", True, ("sid",), plain={"normalise": False})


def _sim(config: Any) -> Claims:
    smooth = config.distance != "power" or config.power >= 2
    return Claims("generator", "held" if smooth else "", True, ("sim",), plain={"huber_c": 1.0})


def _uni(config: Any) -> Claims:
    objective = f"expanded:{config.divergence}" if config.path_term else ""
    plain = {"normalise": False, "normalise_weight": False, "ratio_low": 1e-9, "ratio_high": 1e9, "ratio_limit": 50.0}
    # in many dimensions the ratio is extreme, and its weight with it: the objective in one dimension says it all
    return Claims("generator", objective, True, ("uni_instruct",), towards=False, plain=plain)


def _f_distill(config: Any) -> Claims:
    plain = {"normalise": False, "normalise_weight": False, "ratio_low": 1e-9, "ratio_high": 1e9}
    objective = "" if config.divergence == "neyman" else config.divergence  # 1/r is all in the clamped tail
    return Claims("generator", objective, False, ("matching",), inputs=_inputs(config), plain=plain)


def _dmd2(config: Any) -> Claims:
    return Claims("generator", "reverse_kl", False, ("matching",), inputs=_inputs(config), plain={"normalise": False})


def _inputs(config: Any) -> Literal["samples", "data"]:
    return "samples" if config.backward_simulation else "data"


def _sds(config: Any) -> Claims:
    plain = config.variant in ("sds", "x0", "sjc") and config.rescale == 0 and config.normalizer == "none"
    negatives = config.variant == "nfsd" or config.negative_share is not None
    objective = "cross_entropy" if plain else ""
    return Claims("generator", objective, False, at_rest=False, guided=plain, towards=plain, negatives=negatives)


def _consistency(config: Any) -> Claims:
    leads: Map = "least_noise" if config.boundary == "jump" else "viewed"
    bias = 0.3 if config.mode == "training" else None  # pairs of one sample's own path, not of the trajectory
    return Claims("trajectory", map=leads, bias=bias, plain={"num_knots": 250})


def _tcd(config: Any) -> Claims:
    told = {"end_time": True} if config.end == "random" else {}
    return Claims("trajectory", map="phase", plain={"num_knots": max(250, config.num_knots), **told})


def _accvideo(config: Any) -> Claims:
    own = {} if config.segment_steps else {"segment_steps": 10}  # trajectories come with the data
    return Claims("trajectory", terms=("trajectory",), map="segment", plain={"segment_steps": 60}, instead=own)


_TABLE: dict[str, Claims | Callable[[Any], Claims]] = {
    "diffusion": Claims("denoising"),
    "sds": _sds,
    "vsd": Claims("generator", "reverse_kl", False),
    "diff-instruct": Claims("generator", "reverse_kl", False),
    "dmd2": _dmd2,
    "f-distill": _f_distill,
    "sid": _sid,
    "sim": _sim,
    "uni-instruct": _uni,
    # a shift of the samples follows the loser's part, against the teacher's; fake scores are exact of all samples here
    "distillation-dpo": Claims("generator", through=False, towards=False),
    "diffusion-dpo": Claims("other", guided=False, apart=0.02),
    # importance weights are clamped at e^10, which small samples can feel
    "tdm": Claims("generator", through=False, bias=2e-2),
    "ladd": Claims("generator", terms=("adversarial",), inputs="data"),
    "consistency": _consistency,
    "tcd": _tcd,
    "scm": Claims("trajectory", map="clean"),
    "progressive": Claims("trajectory", map="two_steps", late=False),
    "accvideo": _accvideo,
}


def claims_of(recipe: type[Recipe], config: Any) -> Claims:
    """Return what a recipe claims under a config: its own ``claims``, the table's, or what its roles suggest."""
    found = getattr(recipe, "claims", None) or _TABLE.get(recipe.name)
    if found is None:
        judges = {spec.name for spec in recipe.role_specs(config)} & {"fake_score", "discriminator"}
        return Claims("generator" if judges else "other")
    return found if isinstance(found, Claims) else found(config)
