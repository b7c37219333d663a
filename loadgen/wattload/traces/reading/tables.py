"""Columns of a table, whichever of CSV, JSON lines and Parquet holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wattload.errors import InputError
from wattload.traces.reading import csv as csvfile
from wattload.traces.reading import json_lines as jsonfile
from wattload.traces.reading.files import Head
from wattload.traces.trace import PrefixBlocks

I64 = npt.NDArray[np.int64]

# Copies of a trace get ids beyond the largest, so that this must leave room.
_LARGE_ID = 1 << 48


def read(head: Head, wanted: Mapping[str, str]) -> dict[str, Any]:
    """The columns named in `wanted` (name -> kind, see csvfile and jsonfile). Raises InputError naming the
    line.
    """
    if head.kind == "csv":
        return csvfile.read_columns(head.path, wanted)
    if head.kind == "jsonl":
        return jsonfile.read_fields(head.path, wanted)
    return _parquet(head, wanted)


def line_finder(head: Head) -> Callable[[int], int]:
    """Row -> line (for Parquet: row, from 1)."""
    if head.kind == "csv":
        return partial(csvfile.line_of_row, head.path)
    if head.kind == "jsonl":
        return partial(jsonfile.line_of_object, head.path)
    return lambda row: row + 1


def unit(head: Head) -> str:
    """What the lines of `line_finder` are called."""
    return "row" if head.kind == "parquet" else "line"


def kind_of_time(head: Head, name: str) -> str:
    """Whether a column of times holds numbers or dates, with a zone or without."""
    if head.kind == "parquet":
        stored = pq.read_schema(head.path).field(name).type
        if pa.types.is_timestamp(stored):
            return "zoned" if stored.tz else "time"
        return "number"
    value = head.first.get(name, "")
    if isinstance(value, str) and csvfile.is_time(value):
        return csvfile.time_kind(value)
    return "number"


def kind_of_key(head: Head, name: str) -> str:
    """Whether a column of names (of sessions) holds text or whole numbers; CSV's are read as text."""
    if head.kind == "parquet":
        kind = pq.read_schema(head.path).field(name).type
        return "whole" if pa.types.is_integer(kind) and kind != pa.uint64() else "text"
    value = head.first.get(name, "")
    return "key" if isinstance(value, int) else "text"


def numbered(values: Any) -> I64:
    """Equal values get equal numbers from 0, shape (N,); blank text and negative numbers get -1."""
    if isinstance(values, np.ndarray):
        distinct, codes = np.unique(values, return_inverse=True)
        return np.maximum(codes - int(np.searchsorted(distinct, 0)), -1).astype(np.int64)
    places, names = coded(values)
    blank = names.index("") if "" in names else len(names)
    return np.where(places == blank, -1, np.where(places > blank, places - 1, places)).astype(np.int64)


def coded(values: Any) -> tuple[npt.NDArray[np.int32], list[str]]:
    """Text as numbers, shape (N,), and the distinct texts they stand for: a list of str or an Arrow array
    in.
    """
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy().astype(np.int32) for chunk in whole.chunks])
    return codes, whole.chunk(0).dictionary.to_pylist()


def blocks_of(column: Any | None, prompt_tokens: I64, default: int) -> PrefixBlocks | None:
    """The prefix blocks of an Arrow list column; their size is the one that explains the number of ids a
    prompt has.

    Where none of the usual sizes does, `default` is taken. None for no column.
    """
    if column is None:
        return None
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = lists.offsets.to_numpy().astype(np.int64)
    ids = _small(lists.values.to_numpy().astype(np.int64)[offsets[0] : offsets[-1]])
    counts = np.diff(offsets)
    usual = [default, *(s for s in (512, 16, 32, 64, 128, 256, 1024) if s != default)]
    size = next((s for s in usual if np.array_equal(-(-prompt_tokens // s), counts)), default)
    return PrefixBlocks(ids, offsets - offsets[0], size)


def _small(ids: I64) -> I64:
    """`ids`, renumbered from 0 where they are so large that more cannot be added beyond them: equal ids stay
    equal, and nothing else is known by them.
    """
    if not len(ids) or (ids.min() >= 0 and ids.max() < _LARGE_ID):
        return ids
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _names(column: Any) -> Any:
    """Lists of names of any kind as lists of numbers, in Arrow. Raises ArrowInvalid for anything else."""
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise pa.ArrowInvalid(f"{column.type} is no list")
    flat = column.values
    if flat.null_count:
        raise pa.ArrowInvalid("a list has an empty entry")
    if pa.types.is_integer(flat.type):
        # Names of 64 bits without a sign keep their bits, and are told apart by them.
        numbers = flat.to_numpy(zero_copy_only=False).astype(np.uint64).view(np.int64)
    elif pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        numbers = flat.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        raise pa.ArrowInvalid(f"{flat.type} is no name of a block")
    return pa.LargeListArray.from_arrays(column.offsets.cast(pa.int64()), pa.array(numbers))


def _parquet(head: Head, wanted: Mapping[str, str]) -> dict[str, Any]:
    arrow = {"whole": pa.int64(), "number": pa.float64(), "maybe": pa.float64(), "text": pa.string()}
    try:
        table = pq.read_table(head.path, columns=list(wanted))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{head.path} cannot be read as Parquet: {error}") from error
    if not table.num_rows:
        raise InputError(f"{head.path} has no rows")
    columns: dict[str, Any] = {}
    for name, kind in wanted.items():
        column = table[name].combine_chunks()
        if column.null_count and kind != "maybe":
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) + 1
            raise InputError(f"{head.path}, row {row}: {name} is missing")
        try:
            if kind in ("time", "zoned"):
                columns[name] = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).to_numpy()
            elif kind == "ids":
                columns[name] = _names(column)
            else:
                cast = column.cast(arrow[kind])
                columns[name] = cast if kind == "text" else cast.to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            said = str(error).partition("\n")[0]
            raise InputError(f"{head.path}: {name} holds something else than was expected: {said}") from error
    return columns
