"""Fields of a file of one JSON object a line: fast through Arrow, and line by line to name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from wattload.errors import BadInput
from wattload.traces.files import opened

_ARROW = {
    "whole": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "maybe": pa.float64(),
    "ids": pa.list_(pa.int64()),
    "time": pa.timestamp("ns"),
    "zoned": pa.timestamp("ns", tz="UTC"),
}


def read_fields(path: Path, wanted: Mapping[str, str]) -> dict[str, Any]:
    """The fields named in `wanted` (name -> kind, as in csvfile, and "ids": a list of integers), shape (N,).

    Raises BadInput naming the line for a field that is missing, null or of another kind.
    """
    parse = pajson.ParseOptions(
        explicit_schema=pa.schema([(name, _ARROW[kind]) for name, kind in wanted.items()]),
        unexpected_field_behavior="ignore",
    )
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            table = pajson.read_json(stream, pajson.ReadOptions(block_size=16 << 20), parse)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        blame(path, wanted)
        raise BadInput(f"{path} cannot be read as JSON lines: {error}") from error
    if any(table[name].null_count for name, kind in wanted.items() if kind != "maybe"):
        blame(path, wanted)
        raise BadInput(f"{path} has empty fields")
    return {name: _array(table[name], kind) for name, kind in wanted.items()}


def _array(column: Any, kind: str) -> Any:
    if kind in ("text", "ids"):
        return column
    if kind in ("time", "zoned"):
        return column.cast(pa.int64()).to_numpy()
    values = column.to_numpy()
    return values.astype(np.float64) if kind in ("number", "maybe") else values


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object with its line. Raises BadInput for a line that is none. Slow; for messages."""
    with opened(path) as raw:
        for number, line in enumerate(raw, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                raise BadInput(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error
            except ValueError as error:
                raise BadInput(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(value, dict):
                raise BadInput(f"{path}, line {number}: not a JSON object")
            yield number, value


def line_of_object(path: Path, index: int) -> int:
    """The line of object `index`, from 0."""
    for i, (line, _) in enumerate(objects(path)):
        if i == index:
            return line
    raise IndexError(index)


def blame(path: Path, wanted: Mapping[str, str]) -> None:
    """Raises BadInput for the first line that does not hold what `wanted` says; returns where all do."""
    for line, value in objects(path):
        for name, kind in wanted.items():
            if name not in value and kind != "maybe":
                raise BadInput(f"{path}, line {line}: {name} is missing")
            if fault := _fault(value.get(name), kind):
                raise BadInput(f"{path}, line {line}: {name} {json.dumps(value.get(name))[:60]} {fault}")


def _fault(value: object, kind: str) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind == "whole" and not whole:
        return "is not a whole number"
    if kind == "number" and not whole and not isinstance(value, float):
        return "is not a number"
    if kind == "maybe" and value is not None and not whole and not isinstance(value, float):
        return "is not a number"
    if kind in ("text", "time", "zoned") and not isinstance(value, str):
        return "is not text"
    if kind == "ids" and not (
        isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ):
        return "is not a list of whole numbers"
    return None
