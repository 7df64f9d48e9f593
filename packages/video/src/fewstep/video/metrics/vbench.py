"""The totals of VBench from scores of its dimensions (arXiv 2311.17982): arithmetic only, the scores are the user's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.core.errors import UserError, check, nearest

QUALITY = {  # the weight of each dimension
    "subject_consistency": 1.0,
    "background_consistency": 1.0,
    "temporal_flickering": 1.0,
    "motion_smoothness": 1.0,
    "dynamic_degree": 0.5,
    "aesthetic_quality": 1.0,
    "imaging_quality": 1.0,
}
SEMANTIC = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
RANGES = {  # of the normalisation; (0, 1) for all others
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
SHARES = 4, 1  # of quality and semantic in the total


@dataclass(frozen=True)
class VBenchTotal:
    """Quality, semantic and total score, 1 at most for dimensions within their ranges."""

    quality: float
    semantic: float
    total: float


def vbench_total(scores: Mapping[str, float], *, percent: bool = False) -> VBenchTotal:
    """Return the totals of all 16 dimensions' scores; they are in [0, 1], or in [0, 100] when ``percent``.

    Names are VBench's, with spaces or underscores. The totals are in [0, 1] either way. Raises UserError for dimensions
    that are missing, unknown or given twice, and for scores that are not in their range.
    """
    known, unit = (*QUALITY, *SEMANTIC), 100.0 if percent else 1.0
    found: dict[str, float] = {}
    for given, score in scores.items():
        name = given.strip().lower().replace(" ", "_")
        if name not in known:
            raise UserError(f"VBench has no dimension '{given}': {nearest(name, known)}")
        check(name not in found, f"VBench: the dimension '{name}' is given twice")
        check(math.isfinite(score) and 0 <= score <= unit, f"VBench: {name}={score:g} is not in [0, {unit:g}]")
        found[name] = _normalised(name, score / unit)
    missing = [name for name in known if name not in found]
    check(not missing, f"VBench: a total needs all 16 dimensions, missing: {', '.join(missing)}")
    quality = sum(weight * found[name] for name, weight in QUALITY.items()) / sum(QUALITY.values())
    semantic = sum(found[name] for name in SEMANTIC) / len(SEMANTIC)
    return VBenchTotal(quality, semantic, (SHARES[0] * quality + SHARES[1] * semantic) / sum(SHARES))


def _normalised(name: str, score: float) -> float:
    low, high = RANGES.get(name, (0.0, 1.0))
    return (score - low) / (high - low)
