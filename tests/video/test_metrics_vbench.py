"""VBench's totals: a published row is reproduced, and what is no full set of scores is refused."""

from __future__ import annotations

import pytest

from fewstep.core.errors import UserError
from fewstep.video.metrics.vbench import QUALITY, RANGES, SEMANTIC, vbench_total

ACCVIDEO = {  # AccVideo on HunyuanVideo, per cent
    "subject consistency": 94.46,
    "background consistency": 97.45,
    "temporal flickering": 99.18,
    "motion smoothness": 98.79,
    "dynamic degree": 75.00,
    "aesthetic quality": 62.08,
    "imaging quality": 65.64,
    "object class": 92.99,
    "multiple objects": 67.33,
    "human action": 95.60,
    "color": 94.11,
    "spatial relationship": 75.70,
    "scene": 54.72,
    "appearance style": 19.87,
    "temporal style": 23.71,
    "overall consistency": 27.21,
}


def test_a_published_row_is_reproduced():
    found = vbench_total(ACCVIDEO, percent=True)
    assert [round(100 * x, 2) for x in (found.quality, found.semantic, found.total)] == [84.58, 77.96, 83.26]


def test_percent_and_shares_give_the_same():
    shares = {name.replace(" ", "_"): score / 100 for name, score in ACCVIDEO.items()}
    assert vbench_total(shares).total == pytest.approx(vbench_total(ACCVIDEO, percent=True).total, rel=1e-12)


def test_the_ends_of_every_range_give_zero_and_one():
    names = (*QUALITY, *SEMANTIC)
    for end in (0, 1):
        found = vbench_total({name: RANGES.get(name, (0.0, 1.0))[end] for name in names})
        assert (found.quality, found.semantic, found.total) == pytest.approx((end, end, end))


def test_a_dimension_moves_the_total_by_its_weight():
    scores = {name: RANGES.get(name, (0.0, 1.0))[0] for name in (*QUALITY, *SEMANTIC)}
    assert vbench_total(scores | {"dynamic_degree": 1.0}).total == pytest.approx(0.8 * 0.5 / 6.5)
    assert vbench_total(scores | {"color": 1.0}).total == pytest.approx(0.2 / 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion_smothness": 50.0}, "did you mean 'motion_smoothness'"),
        ({"Motion Smoothness": 50.0}, "given twice"),
        ({"scene": 101.0}, "not in"),
        ({"scene": float("nan")}, "not in"),
    ],
)
def test_scores_that_are_none_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        vbench_total(ACCVIDEO | change, percent=True)


def test_missing_dimensions_are_named_and_percent_must_be_said():
    with pytest.raises(UserError, match="missing: scene"):
        vbench_total({name: score for name, score in ACCVIDEO.items() if name != "scene"}, percent=True)
    with pytest.raises(UserError, match="not in"):
        vbench_total(ACCVIDEO)
