"""Columns of a CSV file: fast through Arrow, and where Arrow gives up, row by row to name the line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from wattload.errors import InputError
from wattload.traces.reading.files import is_packed, text_lines

_BLOCK_BYTES = 8 << 20
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?")

# What a column holds. "whole": an integer; "number": a float; "time": a date and time; "zoned": the same with
# its offset from UTC; "text"; "maybe": a float or nothing, NaN then.
_ARROW = {
    "whole": pa.int64(),
    "number": pa.float64(),
    "time": pa.timestamp("ns"),
    "zoned": pa.timestamp("ns", tz="UTC"),
    "text": pa.dictionary(pa.int32(), pa.string()),  # tags and sessions repeat, so they are numbers in memory
    "maybe": pa.string(),
}


def is_time(sample: str) -> bool:
    """Whether a value is a date and time."""
    return _TIME.fullmatch(sample.strip()) is not None


def time_kind(sample: str) -> str:
    """Whether the dates of a column carry a zone."""
    match = _TIME.fullmatch(sample.strip())
    return "zoned" if match and match[2] else "time"


def read_columns(path: Path, wanted: Mapping[str, str]) -> dict[str, Any]:
    """The columns named in `wanted` (name -> kind), shape (N,): float64 seconds for times, int64, float64,
    or an Arrow array of text, dictionary-encoded. Memory: the columns themselves and one block of the
    file. Raises InputError naming the line.
    """
    written = _written(path, wanted)
    try:
        parts = list(_batches(path, wanted, written))
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        blame(path, wanted)
        raise InputError(f"{path} cannot be read as CSV: {error}") from error
    if not parts:
        raise InputError(f"{path} has a header and no rows")
    columns: dict[str, Any] = {}
    for name, kind in wanted.items():
        pieces = [part.pop(name) for part in parts]
        columns[name] = pa.chunked_array(pieces) if kind == "text" else np.concatenate(pieces)
    return columns


def _written(path: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """How the header writes the wanted names, which may stand between blanks.

    Raises InputError where it has one of them twice: one of two columns would be left out.
    """
    as_is = {name: name for name in wanted}
    with text_lines(path) as text:
        try:
            header = next((row for row in csv.reader(text) if row), [])
        except (csv.Error, UnicodeDecodeError):
            return as_is  # what it is, the reading tells
    names = [name.strip() for name in header]
    again = next((name for name in wanted if names.count(name.strip()) > 1), None)
    if again is not None:
        raise InputError(f"{path}, line 1: {names.count(again.strip())} columns are named {again}")
    return as_is | {name: raw for raw, name in zip(header, names, strict=True) if name in wanted}


def _batches(path: Path, wanted: Mapping[str, str], written: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """`written`: what the file calls the wanted columns."""
    convert = pacsv.ConvertOptions(
        column_types={written[name]: _ARROW[kind] for name, kind in wanted.items()},
        include_columns=[written[name] for name in wanted],
        null_values=[],
        strings_can_be_null=False,
        timestamp_parsers=[pacsv.ISO8601],
    )
    with pa.input_stream(str(path), compression="gzip" if is_packed(path) else None) as stream:
        reader = pacsv.open_csv(
            stream, read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES), convert_options=convert
        )
        for batch in reader:
            yield {name: _array(batch.column(written[name]), kind) for name, kind in wanted.items()}


def _array(column: Any, kind: str) -> Any:
    if kind == "text":
        return column
    if kind == "maybe":
        import pyarrow.compute as pc

        return pc.cast(pc.if_else(pc.equal(column, ""), "nan", column), pa.float64()).to_numpy(
            zero_copy_only=False
        )
    if kind in ("time", "zoned"):
        return column.cast(
            pa.int64()
        ).to_numpy()  # nanoseconds; whole, so that nothing is rounded before the origin
    return _compact(column.to_numpy())


def _compact(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A copy, in 32 bits where the numbers allow it, so that Arrow can use its block again."""
    small = values.dtype == np.int64 and len(values) and values.min() >= -(2**31) and values.max() < 2**31
    return values.astype(np.int32) if small else values.copy()


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row after the header with the line it begins on. Slow; for messages."""
    with text_lines(path) as text:
        reader = csv.reader(text)
        header_seen, line = False, 1
        try:
            for row in reader:
                if row and header_seen:
                    yield line, row
                header_seen = header_seen or bool(row)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {line} or soon after: not UTF-8 text ({error.reason})") from error
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: {error}") from error


def line_of_row(path: Path, index: int) -> int:
    """The line on which row `index` (0: the first after the header) begins."""
    for i, (line, _) in enumerate(rows(path)):
        if i == index:
            return line
    raise IndexError(index)


def blame(path: Path, wanted: Mapping[str, str]) -> None:
    """Raises InputError for the first line that does not hold what `wanted` says; returns where all do."""
    with text_lines(path) as text:
        header = [name.strip() for name in next(row for row in csv.reader(text) if row)]
    for line, row in rows(path):
        if any("\x00" in value for value in row):
            raise InputError(f"{path}, line {line}: holds a NUL byte, so the file was cut off while written")
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: {len(row)} fields, the header has {len(header)}")
        for name, value in zip(header, row, strict=True):
            if name in wanted and (fault := _fault(value, wanted[name])):
                raise InputError(f"{path}, line {line}: {name} {value!r} {fault}")


def _fault(value: str, kind: str) -> str | None:
    if kind == "whole" and not re.fullmatch(r"-?\d{1,18}", value.strip()):
        return "is not a whole number"
    if kind in ("number", "maybe") and not _is_number(value, kind == "maybe"):
        return "is not a number"
    if kind in ("time", "zoned"):
        match = _TIME.fullmatch(value.strip())
        if not match:
            return "is not a date and time"
        if bool(match[2]) != (kind == "zoned"):
            return (
                "has a time zone and the first row none"
                if match[2]
                else "has no time zone and the first row one"
            )
        try:
            np.datetime64(value.strip()[:19].replace(" ", "T"))
        except ValueError:
            return "is not a date and time"
    return None


def _is_number(value: str, blank: bool) -> bool:
    if not value.strip():
        return blank
    try:
        float(value)
    except ValueError:
        return False
    return True


def seconds_of(nanoseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Seconds since the earliest of `nanoseconds`, shape (N,)."""
    since: npt.NDArray[np.float64] = (nanoseconds - nanoseconds.min()).astype(np.float64)
    return since / 1e9
