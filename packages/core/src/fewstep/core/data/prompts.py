"""Prompts out of files: one per line, or a column of a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.core.errors import UserError, check, nearest

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet")
COLUMNS = ("text", "caption", "prompt")
MAX_BYTES = 512 * 2**20
MAX_PROMPT = 2**16  # characters

Row = tuple[str, Any]
"""Where a value stands, for messages, and the value."""


def read_prompts(path: str | Path, column: str = "") -> list[str]:
    """Return the prompts in a file (:data:`SUFFIXES`), in their order and without blank ones.

    ``column``: of a table; by default the first of ``text``, ``caption`` and ``prompt`` that is there. Files and their
    texts are read up to :data:`MAX_BYTES`. Raises UserError naming file, line and what to do.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    check(suffix in SUFFIXES, f"{file}: prompts are read from {', '.join(SUFFIXES)}")
    try:
        size = file.stat().st_size
        check(file.is_file(), f"{file}: is a folder; give a file of prompts")
        check(size <= MAX_BYTES, f"{file}: {size / 2**20:.0f} MiB are more than {MAX_BYTES // 2**20}; split the file")
        found = list(_texts(file, _rows(file, suffix, column)))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error}); give a file of prompts") from error
    except RecursionError:
        raise UserError(f"{file}: nested too deeply; give a list of prompts") from None
    check(bool(found), f"{file}: no prompt in it; write one per line or row")
    return found


def decode(data: bytes, where: str) -> str:
    """Return text from UTF-8, with or without a byte-order mark; UserError naming the line that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}, line {line}: not UTF-8; save the file as UTF-8") from error


def pick_column(names: Sequence[str], column: str, where: str) -> str:
    """Return the column to read among ``names``; UserError with the nearest one when it is not there."""
    if column:
        check(column in names, f"{where}: no column '{column}': {nearest(column, names)}")
        return column
    for wanted in COLUMNS:
        for name in names:
            if name.strip().lower() == wanted:
                return name
    there = ", ".join(names) or "nothing"
    raise UserError(f"{where}: no column text, caption or prompt, only {there}: name the column to read")


def _texts(file: Path, rows: Iterable[Row]) -> Iterator[str]:
    total = 0
    for where, value in rows:
        if not isinstance(value, str):
            what = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]}"
            raise UserError(f"{file}, {where}: a prompt must be text, found {what}")
        check("\0" not in value, f"{file}, {where}: a zero byte in a text; is this a text file?")
        check(len(value) <= MAX_PROMPT, f"{file}, {where}: {len(value)} characters are more than {MAX_PROMPT}")
        total += len(value)
        check(total <= MAX_BYTES, f"{file}, {where}: more than {MAX_BYTES // 2**20} MiB of text; split the file")
        if value.strip():
            yield value.strip()


def _rows(file: Path, suffix: str, column: str) -> Iterator[Row]:
    if suffix == ".parquet":
        yield from _parquet(file, column)
        return
    text = decode(file.read_bytes(), str(file))
    lines = text.split("\n")
    if suffix == ".txt":
        check(not column, f"{file}: a .txt file has no column '{column}'; leave the column out")
        yield from ((f"line {number}", line) for number, line in enumerate(lines, 1))
    elif suffix == ".jsonl":
        yield from _objects(file, column, _json_lines(file, lines))
    elif suffix == ".json":
        yield from _objects(file, column, _json_list(file, text))
    else:
        for where, row in table_rows(file, lines, "\t" if suffix == ".tsv" else ","):
            yield where, row[pick_column(list(row), column, str(file))]


def table_rows(file: Path, lines: Sequence[str], delimiter: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the rows of a table with a header, each with where it stands; UserError for a malformed one."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    first = 1  # line of the row being read, which may be several
    try:
        names = next(reader, [])
        check(len(set(names)) == len(names), f"{file}, line 1: a column twice in the header; rename one")
        while True:
            first = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            where = f"line {first}"
            if row:
                check(
                    len(row) == len(names),
                    f"{file}, {where}: {len(row)} fields instead of the header's {len(names)}; quote those with a "
                    f"{'tab' if delimiter == chr(9) else 'comma'} in them",
                )
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{file}, line {first}: {error}; mend the quoting there") from error


def _json_lines(file: Path, lines: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"line {number}", parse_json(line, f"{file}, line {number}")


def parse_json(text: str, where: str) -> Any:
    """Return what a JSON text says; UserError when it says nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{where}: not JSON ({line}); mend it or remove it") from error


def _json_list(file: Path, text: str) -> Iterator[Row]:
    check(bool(text.strip()), f"{file}: empty; write a list of prompts")
    found = parse_json(text, str(file))
    check(isinstance(found, list), f"{file}: must hold a list of texts or of objects; one object per line is .jsonl")
    yield from ((f"entry {number}", entry) for number, entry in enumerate(found, 1))


def _objects(file: Path, column: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield texts out of values that are texts themselves, or objects with the column."""
    for where, value in rows:
        if isinstance(value, dict):
            yield where, value[pick_column(list(value), column, f"{file}, {where}")]
        else:
            yield where, value


def _parquet(file: Path, column: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{file}: reading it needs pyarrow: pip install 'fewstep-core[parquet]'") from error
    try:
        with ParquetFile(file) as table:
            schema = table.schema_arrow
            name = pick_column(schema.names, column, str(file))
            kind = schema.field(name).type
            plain = kind.value_type if types.is_dictionary(kind) else kind
            check(
                types.is_string(plain) or types.is_large_string(plain),
                f"{file}: column '{name}' holds {kind}, and a prompt must be text: name another column",
            )
            number = 0
            for some in table.iter_batches(batch_size=1024, columns=[name]):
                for value in some.column(0).to_pylist():
                    number += 1
                    yield f"row {number}", value
    except (ArrowException, ValueError, MemoryError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: cannot be read as parquet ({line}); write it again") from error
