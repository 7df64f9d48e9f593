"""What the documentation shows runs, and what it points at is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from repo.sources import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("packages/*/README.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """Line number and text of the fenced blocks in one of the languages."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 2, m[2]) for m in FENCE.finditer(text) if m[1] in languages]


def commands(page: Path) -> list[str]:
    """Shell lines of a page, continuation lines joined, prompts and comments dropped."""
    lines = []
    for _, text in blocks(page, "bash", "sh", "shell", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                lines.append(shlex.join(words))
    return lines


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs give a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


@cache
def anchors(page: Path) -> frozenset[str]:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return frozenset(slug(heading) for heading in re.findall(r"^#+ +(.+)$", prose, re.MULTILINE))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.name == "own-loop.md" else ())  # it trains
        for page in PAGES
        if blocks(page, "python")
    ],
    ids=named,
)
def test_python_examples_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        code = compile("\n" * (line - 1) + text, str(page), "exec")
        exec(code, namespace)


@cache
def help_of(program: str, *subcommands: str) -> str:
    command = [str(Path(sys.executable).parent / program), *subcommands, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_shown_commands_exist(page):
    """`fewstep ...` lines name subcommands and options that the help knows; `make x` names a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands(page):
        program, *words = shlex.split(line)
        if program == "make":
            assert {word for word in words if re.fullmatch(r"[a-z-]+", word)} <= targets, line
        if re.fullmatch(r"fewstep(-[a-z]+)?", program):
            end = next((i for i, word in enumerate(words) if not re.fullmatch(r"[a-z]+(-[a-z]+)*", word)), len(words))
            text = help_of(program, *words[:end])
            for option in (word.split("=")[0] for word in words[end:] if re.match(r"--[a-z]", word)):
                assert "." in option or option in text, f"{line}: no {option} in the help"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page):
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []
