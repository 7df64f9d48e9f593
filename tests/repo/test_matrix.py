"""The README's table of recipes and domains is the one the tests make."""

from __future__ import annotations

from matrix import ROOT, with_table


def test_the_readme_shows_what_the_tests_prove():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "run `python tests/matrix.py`"
