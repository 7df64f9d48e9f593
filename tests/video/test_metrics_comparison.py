"""A comparison in which a frozen student has the best of every number, and wins nothing."""

from __future__ import annotations

import math

import pytest
import torch
from video.clip_bed import discs, noise, still

from fewstep.core.errors import UserError
from fewstep.video.metrics.comparison import Comparison, MotionLimits, Row, judge

TEACHER = discs(24, 0)
FLICKERING = still(TEACHER) * torch.tensor([1.0, 0.8]).repeat(8).reshape(1, 1, 16, 1, 1)


def cut(clips: torch.Tensor) -> torch.Tensor:
    """Stills of the first and of the last frame with one jump between them."""
    return torch.cat([still(clips[:, :, :8]), still(clips.flip(2)[:, :, :8])], 2)


@pytest.mark.parametrize(
    ("clips", "mark"),
    [
        (TEACHER, ""),
        (discs(24, 3), ""),
        (1.2 * discs(24, 3), ""),
        (still(TEACHER), "frozen"),
        (still(TEACHER) + torch.linspace(0, 0.3, 16).reshape(1, 1, 16, 1, 1), "frozen"),
        (cut(TEACHER), "frozen"),
        (torch.cat([still(TEACHER[:20]), 2 * TEACHER[20:]]), "frozen"),
        (discs(24, 3, speed=0.75), "slowed"),
        (TEACHER + 0.15 * noise(*TEACHER.shape).float(), "flickers"),
        (still(TEACHER) + 0.15 * noise(*TEACHER.shape).float(), "flickers"),
        (2.5 * discs(24, 3), ""),  # in more contrast, as fast
        (1.6 * discs(24, 3, speed=3), "restless"),
        (TEACHER.where(TEACHER < 0.5, torch.tensor(math.nan)), "not finite"),
    ],
)
def test_each_way_of_losing_motion_has_its_mark(clips, mark):
    assert judge(clips, TEACHER).mark == mark


def test_flicker_of_a_still_is_not_taken_for_motion():
    assert judge(FLICKERING, TEACHER).mark in ("frozen", "flickers")


def test_where_the_teacher_stands_still_so_may_the_student():
    assert judge(still(TEACHER), still(TEACHER)).mark == ""
    assert judge(TEACHER, still(TEACHER)).mark != ""


def test_limits_are_the_callers():
    slow = discs(24, 3, speed=0.75)
    assert judge(slow, TEACHER, MotionLimits(slow=0.05, still=0.01)).mark == ""
    assert judge(slow, TEACHER, MotionLimits(still=0.9, slow=0.9)).mark == "frozen"


def comparison() -> Comparison:
    metrics = {"flickering": 1.0, "frechet_frame": 0.1}
    return Comparison(
        [
            Row("frozen student", metrics, judge(still(TEACHER), TEACHER)),
            Row("good", {"flickering": 0.97, "frechet_frame": 0.3}, judge(discs(24, 3), TEACHER)),
            Row("other", {"flickering": 0.98, "frechet_frame": 0.4}, judge(discs(24, 4), TEACHER)),
            Row("broken", {"flickering": math.nan, "frechet_frame": math.nan}, judge(TEACHER, TEACHER)),
        ],
        {"flickering": "higher", "frechet_frame": "lower"},
        ["frechet_frame: of frames"],
    )


def test_a_frozen_student_wins_nothing_and_the_report_says_why():
    table = comparison()
    assert [table.best(metric).name for metric in ("flickering", "frechet_frame")] == ["other", "good"]
    lines = table.text().splitlines()
    (row,) = [line for line in lines if line.startswith("frozen student !")]
    assert "*" not in row
    assert [line for line in lines if line.startswith("! frozen student: frozen:") and "wins nothing" in line]
    assert sum(line.count("*") for line in lines) == 2
    assert lines[-1] == "frechet_frame: of frames"


def test_when_all_are_frozen_nobody_is_best():
    frozen = judge(still(TEACHER), TEACHER)
    table = Comparison([Row("a", {"x": 1.0}, frozen), Row("b", {"x": 2.0}, frozen)], {"x": "lower"})
    assert table.best("x") is None
    assert "*" not in table.text()


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(UserError, match="cannot be judged"):
        judge(TEACHER[:, :, :8], TEACHER)
    with pytest.raises(UserError, match="not finite"):
        judge(TEACHER, TEACHER * math.nan)
    with pytest.raises(UserError, match="lower or higher"):
        comparison().best("unknown")
