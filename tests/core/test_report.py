"""Charts keep proportions; pages are self-contained, escaped, and say what is wrong with a folder that is no run."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from PIL import Image

from fewstep.core.errors import UserError
from fewstep.core.report import build_comparison, build_report
from fewstep.core.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, make_chart, nice_ticks


def points(line):
    return [tuple(float(v) for v in pair.split(",")) for pair in line.points.split()]


def test_a_straight_line_stays_straight_and_inside():
    (line,) = make_chart("x", {"a": [(float(i), 3.0 * i + 1) for i in range(11)]}).lines
    drawn = points(line)
    slopes = {round((b[1] - a[1]) / (b[0] - a[0]), 1) for a, b in itertools.pairwise(drawn)}
    assert len(slopes) == 1
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in drawn)
    assert drawn[0][1] > drawn[-1][1], "greater values are higher up"


def test_an_exponential_is_straight_on_the_logarithmic_axis():
    chart = make_chart("x", {"a": [(float(i), 10.0**i) for i in range(5)]})
    (line,), drawn = chart.lines, points(chart.lines[0])
    assert chart.log
    assert line.last == "1e+04"
    steps = [b[1] - a[1] for a, b in itertools.pairwise(drawn)]
    assert max(steps) - min(steps) < 0.2


def test_values_that_are_not_finite_leave_a_gap_and_no_trace():
    chart = make_chart("x", {"a": [(0.0, 1.0), (1.0, float("nan")), (2.0, 2.0)], "b": [(0.0, float("inf"))]})
    assert [line.name for line in chart.lines] == ["a"]
    assert "nan" not in chart.lines[0].points
    assert make_chart("x", {}).lines == ()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.7, 12.0), (1e-9, 2e-9), (5.0, 5.0)])
def test_ticks_are_few_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-12 <= t <= high + 1e-12 for t in ticks)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "previews").mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(folder / "previews" / "step-0000010.png")
    settings = {"name": "a <b> run", "recipe": {"name": "dmd2"}, "domain": {"name": "image"}}
    (folder / "config.yaml").write_text(json.dumps(settings | {"train": {"steps": 20, "batch": 8}}))
    rows = [{"step": s, "loss/student/matching": 1.0 / s, "eval/1/frechet": 30.0 / s} for s in (10, 20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"step": 3')  # the last line was being written
    return folder


def test_a_report_needs_nothing_else_and_escapes_what_it_shows(run):
    page = build_report(run).read_text()
    assert "a &lt;b&gt; run" in page
    assert "<b> run" not in page
    assert "data:image/png;base64," in page
    assert not re.search(r"(src|href)=[\"'](?!data:|https://arxiv)", page), (
        "no file beside the page, no foreign resource"
    )
    assert "<script" not in page
    assert "20 of 20" in page
    assert "1.5" in page, "the last evaluation is in the table"


def test_a_damaged_metrics_file_is_named_with_its_line(run):
    metrics = run / "metrics.jsonl"
    metrics.write_text("{broken\n" + metrics.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl:1"):
        build_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        build_report(tmp_path)


def test_bars_of_a_comparison_follow_the_measure(tmp_path):
    picture = tmp_path / "samples.png"
    Image.new("RGB", (4, 4)).save(picture)
    rows = [
        {"sampler": "teacher, ddim", "steps": 8, "frechet": 4.0},
        {"sampler": "dmd2", "steps": 1, "frechet": 1.0},
    ]
    text = {"title": "t", "lead": "l"}
    page = build_comparison(tmp_path / "out.html", samples=picture, rows=rows, measure="frechet", **text).read_text()
    widths = [float(w) for w in re.findall(r'class="bar[^"]*" style="width: ([\d.]+)%', page)]
    assert widths == [42.5, 85.0]
    assert page.index("dmd2, 1 step<") < page.index("teacher, ddim, 8 steps")
