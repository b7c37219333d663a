"""Fields of a file of one JSON object a line: fast through Arrow, and line by line to name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from wattload.errors import InputError
from wattload.traces.reading.files import is_packed, opened

_ARROW = {
    "whole": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "maybe": pa.float64(),
    "ids": pa.list_(pa.int64()),
    "key": pa.int64(),
    "time": pa.timestamp("ns"),
    "zoned": pa.timestamp("ns", tz="UTC"),
}


def read_fields(path: Path, wanted: Mapping[str, str]) -> dict[str, Any]:
    """The fields named in `wanted` (name -> kind, shape (N,) each).

    Kinds are those of csvfile, "ids" (a list of names of blocks: whole numbers of any size, or text) and
    "key" (the name of a session: the same, one a row). Names come back as they are, or as numbers that are
    equal where the names are. Raises InputError naming the line for a field that is missing, null or of
    another kind.
    """
    parse = pajson.ParseOptions(
        explicit_schema=pa.schema([(name, _ARROW[kind]) for name, kind in wanted.items()]),
        unexpected_field_behavior="ignore",
    )
    try:
        with pa.input_stream(str(path), compression="gzip" if is_packed(path) else None) as stream:
            table = pajson.read_json(stream, pajson.ReadOptions(block_size=16 << 20), parse)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        # Arrow has no numbers over 63 bits and takes no half characters; files that have them are read
        # line by line, and those that nobody can read are refused there.
        return _line_by_line(path, wanted)
    if any(_has_gaps(table[name], kind) for name, kind in wanted.items()):
        blame(path, wanted)
        raise InputError(f"{path} has empty fields")
    return {name: _array(table[name], kind) for name, kind in wanted.items()}


def _has_gaps(column: Any, kind: str) -> bool:
    """Whether values are missing where there must be some, those of lists included."""
    if kind == "ids" and any(chunk.flatten().null_count for chunk in column.chunks):
        return True
    return kind != "maybe" and column.null_count > 0


def _array(column: Any, kind: str) -> Any:
    if kind in ("text", "ids"):
        return column
    if kind in ("time", "zoned"):
        return column.cast(pa.int64()).to_numpy()
    values = column.to_numpy()
    return values.astype(np.float64) if kind in ("number", "maybe") else values


def _line_by_line(path: Path, wanted: Mapping[str, str]) -> dict[str, Any]:
    """What `read_fields` gives, without Arrow's limits and at a hundredth of its speed."""
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    for line, value in objects(path):
        for name, kind in wanted.items():
            _check(path, line, name, value, kind)
            found[name].append(value.get(name))
    # One numbering for all keys: in some formats one field names what another field refers to.
    keys: dict[Any, int] = {}
    return {name: _column(path, name, values, wanted[name], keys) for name, values in found.items()}


def _column(path: Path, name: str, values: list[Any], kind: str, keys: dict[Any, int]) -> Any:
    if kind == "ids":
        blocks: dict[Any, int] = {}
        numbers = [blocks.setdefault(block, len(blocks)) for row in values for block in row]
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in values]))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int64()))
    if kind == "key":
        # A negative number stands for no name.
        none = [isinstance(value, int) and value < 0 for value in values]
        numbers = [-1 if n else keys.setdefault(v, len(keys)) for v, n in zip(values, none, strict=True)]
        return np.array(numbers, np.int64)
    if kind == "text":
        return pa.chunked_array([pa.array([whole_characters(value) for value in values], pa.string())])
    if kind in ("time", "zoned"):
        try:
            return _array(pa.array(values, pa.string()).cast(_ARROW[kind]), kind)
        except pa.ArrowInvalid as error:
            raise InputError(f"{path}: {name}: {error}") from error
    return np.array([np.nan if v is None else v for v in values], np.int64 if kind == "whole" else np.float64)


def whole_characters(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: half a character, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object with its line. Raises InputError for a line that is none. Slow; for messages."""
    with opened(path) as raw:
        for number, line in enumerate(raw, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(value, dict):
                raise InputError(f"{path}, line {number}: not a JSON object")
            yield number, value


def line_of_object(path: Path, index: int) -> int:
    """The line of object `index`, from 0."""
    for i, (line, _) in enumerate(objects(path)):
        if i == index:
            return line
    raise IndexError(index)


def blame(path: Path, wanted: Mapping[str, str]) -> None:
    """Raises InputError for the first line that does not hold what `wanted` says; returns where all do."""
    for line, value in objects(path):
        for name, kind in wanted.items():
            _check(path, line, name, value, kind)


def _check(path: Path, line: int, name: str, value: Mapping[str, Any], kind: str) -> None:
    if name not in value and kind != "maybe":
        raise InputError(f"{path}, line {line}: {name} is missing")
    if fault := _fault(value.get(name), kind):
        raise InputError(f"{path}, line {line}: {name} {json.dumps(value.get(name))[:60]} {fault}")


def _is_name(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _fault(value: object, kind: str) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind == "whole" and not whole:
        return "is not a whole number"
    if kind in ("number", "maybe") and not whole and not isinstance(value, float):
        return None if kind == "maybe" and value is None else "is not a number"
    if kind in ("text", "time", "zoned") and not isinstance(value, str):
        return "is not text"
    if kind == "key" and not _is_name(value):
        return "is not a name"
    if kind == "ids" and not (isinstance(value, list) and all(map(_is_name, value))):
        return "is not a list of whole numbers"
    return None
