"""A file before it is read: what kind of text it is, its header, and which line a row is on."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, cast

from wattload.errors import InputError

_HEAD_BYTES = 1 << 20
_LINE_BYTES = 256 << 20  # a first line longer than the head, as of a long conversation, is read to its end


@dataclass(frozen=True, slots=True)
class Head:
    """How a file begins. `kind`: "csv", "jsonl", "json" (an array), "document" (one object) or "parquet".
    `columns`: the CSV header's or Parquet schema's names, or the keys of the first JSON object. `first`:
    that object, or the first CSV row by column.
    """

    path: Path
    kind: str
    columns: tuple[str, ...]
    first: dict[str, Any]
    # Of JSON lines: the line of the only object, where the file holds one that was read already.
    only_line: int | None = None

    @property
    def shown(self) -> str:
        """The first columns, for messages of one line."""
        names = [name if name.isprintable() else repr(name) for name in self.columns[:12]]
        return ", ".join(names)[:300] or "no column names"

    def has(self, *names: str) -> bool:
        return set(names) <= set(self.columns)


def is_packed(path: Path) -> bool:
    """Whether a file is to be unpacked: by its name, or by how it begins whatever its name."""
    if path.suffix.lower() == ".gz":
        return True
    with path.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where it is packed. Raises InputError where it cannot be read."""
    try:
        raw = gzip.open(path) if is_packed(path) else path.open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    with raw:
        try:
            yield cast(BinaryIO, raw)
        except (EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is no whole gzip file: {error}") from error


@contextmanager
def text_lines(path: Path) -> Iterator[TextIOWrapper]:
    """The text of a file, a byte order mark left out."""
    with opened(path) as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        yield text


def sha256_of(path: Path) -> str:
    """The checksum of the file as it lies on the disk (packed, where it is)."""
    with path.open("rb") as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def head_of(path: Path) -> Head:
    """Looks at the first megabyte. Raises InputError, naming file and line, where it is no trace."""
    if path.is_dir():
        raise InputError(f"{path} is a directory, not a trace")
    with opened(path) as raw:
        start = raw.read(_HEAD_BYTES)
        if len(start) == _HEAD_BYTES and b"\n" not in start:
            start += raw.readline(_LINE_BYTES)
        whole = not raw.read(1)
    if not start.strip(b" \t\r\n"):
        raise InputError(f"{path} is empty")
    if start[:4] == b"PAR1":
        return _parquet_head(path)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}, line 1: the text is UTF-16; save it as UTF-8")
    text = _decoded(path, start)
    # Not str.strip, which takes control characters for blanks, nor splitlines, to which they end lines.
    begins = text.lstrip(" \t\r\n")[:1]
    if not begins:
        raise InputError(f"{path} is empty")
    if begins == "[":
        return Head(path, "json", (), {})
    if begins == "{":
        return _json_head(path, text, whole=whole)
    try:
        reader = csv.reader(StringIO(text, newline=""))
        header = next(row for row in reader if row)
        row = next((row for row in reader if row), [])
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    columns = tuple(name.strip() for name in header)
    if not row:
        raise InputError(f"{path} has a header and no rows")
    return Head(path, "csv", columns, dict(zip(columns, row, strict=False)))


def _decoded(path: Path, start: bytes) -> str:
    if b"\x00" in start:
        line = start[: start.index(b"\x00")].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: holds a NUL byte, so it is no text file or was cut off while written"
        )
    try:
        return start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= _HEAD_BYTES - 4:  # the megabyte ends in the middle of a character
            return start[: error.start].decode("utf-8-sig")
        line = start[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text (byte 0x{start[error.start]:02x})") from error


def _json_head(path: Path, text: str, *, whole: bool) -> Head:
    """`whole`: `text` is all of the file."""
    lines = text.split("\n")
    number, line = next((i, line) for i, line in enumerate(lines, 1) if line.strip(" \t\r"))
    try:
        first = json.loads(line)
    except (ValueError, RecursionError) as error:
        if len(lines) > 1 and line.strip() == "{":
            return _document(path, number, error)
        raise InputError(f"{path}, line {number}: not JSON ({error})") from error
    alone = whole and not any(line.strip(" \t\r") for line in lines[number:])
    return Head(path, "jsonl", tuple(first), first, number if alone else None)


def _document(path: Path, line: int, why: Exception) -> Head:
    """A file that is one JSON object over several lines, as exporters write it."""
    with opened(path) as raw:
        try:
            whole = json.load(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {getattr(error, 'lineno', line)}: not JSON ({error})") from why
    return Head(path, "document", tuple(whole), whole)


def _parquet_head(path: Path) -> Head:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no whole Parquet file: {error}") from error
    return Head(path, "parquet", tuple(schema.names), {})
