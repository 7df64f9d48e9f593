"""Prompts: every format says the same, and every mistake is named in one line."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.core.data import prompts
from fewstep.core.data.prompts import SUFFIXES, read_prompts
from fewstep.core.errors import UserError

PROMPTS = ["a red fox", 'two boats, "one" sail', "größer — 狐", "a red fox"]


def write(path, texts, column="text"):
    """The same texts in the format of a file's name."""
    rows = [{"id": str(i), column: text} for i, text in enumerate(texts)]
    if path.suffix == ".txt":
        path.write_bytes("\n\n".join(texts).encode())
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["id", column], delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_says_the_same(tmp_path, suffix):
    assert read_prompts(write(tmp_path / f"a{suffix}", PROMPTS)) == PROMPTS


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("column", ["Caption", "prompt", "long_text"])
def test_columns_are_found_or_named(tmp_path, suffix, column):
    file = write(tmp_path / f"a{suffix}", PROMPTS, column)
    assert read_prompts(file, column) == PROMPTS
    if column == "long_text":
        with pytest.raises(UserError, match="only id, long_text"):
            read_prompts(file)
        with pytest.raises(UserError, match="did you mean 'long_text'"):
            read_prompts(file, "long_txt")
    else:
        assert read_prompts(file) == PROMPTS


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".json"])
def test_a_byte_order_mark_and_foreign_line_ends_are_no_text(tmp_path, suffix):
    file = write(tmp_path / f"a{suffix}", PROMPTS)
    text = file.read_text(encoding="utf-8")
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_prompts(file) == PROMPTS


def test_lists_of_texts_are_prompts_too(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PROMPTS))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    assert read_prompts(tmp_path / "a.json") == read_prompts(tmp_path / "a.jsonl") == PROMPTS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "no prompt in it"),
        ("a.txt", b" \n\n", "no prompt in it"),
        ("a.txt", b"fine\nna\xefve", "line 2: not UTF-8"),
        ("a.txt", "fox".encode("utf-16"), "line 1: not UTF-8"),
        ("a.txt", b"a\0b", "line 1: a zero byte"),
        ("a.txt", b"x" * 70_000, "line 1: 70000 characters"),
        ("a.csv", b"text,id\n", "no prompt in it"),
        ("a.csv", b"text,id\nfox,1,2\n", "line 2: 3 fields instead of the header's 2"),
        ("a.csv", b'text,id\n"fox,1\n', "line 2.*quoting"),
        ("a.csv", b"text,text\nfox,1\n", "twice"),
        ("a.tsv", b"text\tid\nfox\n", "line 2: 1 fields"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', "line 2: a prompt must be text, found int 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}', "line 2: a prompt must be text, found nothing"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: no column text, caption or prompt, only txt"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("a.json", b'{"text": "a"}', "must hold a list"),
        ("a.json", b"[" * 100_000, "not JSON|nested"),
        ("a.json", b"", "empty"),
        ("a.parquet", b"PAR1 and nothing else", "cannot be read as parquet"),
        ("a.doc", b"x", r"prompts are read from \.txt"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_what_is_not_there_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "absent.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_prompts(tmp_path / "folder.txt")
    file = write(tmp_path / "a.txt", PROMPTS)
    with pytest.raises(UserError, match=r"\.txt file has no column"):
        read_prompts(file, "text")
    table = write(tmp_path / "a.parquet", ["x" * 1000] * 100)  # compresses to less than its texts
    monkeypatch.setattr(prompts, "MAX_BYTES", 50_000)
    assert table.stat().st_size < 50_000
    with pytest.raises(UserError, match="row 51: more than"):
        read_prompts(table)
    monkeypatch.setattr(prompts, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="split the file"):
        read_prompts(file)


def test_a_column_of_numbers_is_no_column_of_prompts(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": 1}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'text' holds int64"):
        read_prompts(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    file = write(tmp_path / "a.parquet", PROMPTS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep-core\[parquet\]'"):
        read_prompts(file)


@given(st.binary(max_size=200), st.sampled_from([s for s in SUFFIXES if s != ".parquet"]))
def test_any_bytes_are_prompts_or_one_line_of_advice(tmp_path_factory, data, suffix):
    file = tmp_path_factory.getbasetemp() / f"any{suffix}"
    file.write_bytes(data)
    try:
        found = read_prompts(file)
    except UserError as error:
        found = [str(error).replace("\n", "a line break in the advice\0")]
    assert found
    assert all(text.strip() and "\0" not in text for text in found)
