"""Our own plain columns, and anyone's under their own names with --column-map; CSV, JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wattload.errors import InputError
from wattload.traces.options import COLUMNS, ReadOptions
from wattload.traces.reading import csv as csvfile
from wattload.traces.reading import tables
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace
from wattload.units import SECONDS

# A column of time is a number of one of these.
_UNITS = {unit: SECONDS[unit] for unit in ("s", "ms", "us", "ns")}
_BLOCK_TOKENS = 512


class Plain:
    """seconds,prompt_tokens,output_tokens and, where there are any, session, think_seconds, tag, images and
    hash_ids.
    """

    name = "plain"
    header = (
        "seconds,prompt_tokens,output_tokens[,session,think_seconds,tag,images] as CSV, JSON lines or Parquet"
    )
    required = ("seconds", "prompt_tokens", "output_tokens")

    def recognises(self, head: Head) -> bool:
        return head.kind != "document" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        return read_mapped(head, {name: name for name in COLUMNS if name in head.columns})


class Mapped:
    """Any table whose columns --column-map names."""

    name = "mapped"
    header = "any columns, named with --column-map"
    required = ()

    def recognises(self, head: Head) -> bool:
        return False  # chosen because a map was given, never by looking

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        if head.kind == "json":
            raise InputError(f"{head.path}: `column_map` needs CSV, Parquet or one JSON object a line")
        mapping = options.column_map or {}
        for name in ("prompt_tokens", "output_tokens"):
            if name not in mapping:
                raise InputError("column_map", f"does not say which column is {name}")
        return read_mapped(head, mapping)


def read_mapped(head: Head, mapping: Mapping[str, str]) -> RawTrace:
    """The trace whose columns `mapping` names (ours -> theirs, `theirs:ms` with a unit, or `=value`)."""
    constants = {ours: theirs[1:] for ours, theirs in mapping.items() if theirs.startswith("=")}
    names = {ours: theirs for ours, theirs in mapping.items() if ours not in constants}
    scale = 1.0
    if "seconds" in names:
        names["seconds"], scale = _with_unit(names["seconds"], head)
    for theirs in names.values():
        if theirs not in head.columns:
            raise InputError(f"{head.path}, line 1: no column {theirs!r} (there are {head.shown})")
    kinds = {theirs: _kind(head, ours, theirs) for ours, theirs in names.items()}
    read = tables.read(head, kinds)
    columns: dict[str, Any] = {ours: read[theirs] for ours, theirs in names.items()}
    rows = len(next(iter(columns.values())))
    for ours, value in constants.items():
        if ours != "tag" and not value.isdecimal():
            raise InputError("column_map", f"{ours}=={value}: not a whole number")
        columns[ours] = [value] * rows if ours == "tag" else np.full(rows, int(value), np.int64)
    seconds = columns.get("seconds")
    if seconds is not None:
        dates = kinds[names["seconds"]] in ("time", "zoned")
        seconds = csvfile.seconds_of(seconds) if dates else seconds * scale
    prompt = columns["prompt_tokens"]
    return RawTrace(
        seconds=seconds,
        prompt_tokens=prompt,
        output_tokens=columns["output_tokens"],
        session=tables.numbered(columns["session"]) if "session" in columns else None,
        think=columns.get("think_seconds"),
        elapsed=columns.get("elapsed_seconds"),
        tag=columns.get("tag"),
        images=columns.get("images"),
        prefix=tables.blocks_of(columns.get("hash_ids"), prompt, _BLOCK_TOKENS),
        line_of=tables.line_finder(head),
        unit=tables.unit(head),
        names=names,
    )


def _with_unit(theirs: str, head: Head) -> tuple[str, float]:
    name, colon, unit = theirs.rpartition(":")
    if not colon or theirs in head.columns:
        return theirs, 1.0
    if unit not in _UNITS:
        raise InputError("column_map", f"seconds={theirs}: the unit is one of {', '.join(_UNITS)}")
    return name, _UNITS[unit]


def _kind(head: Head, ours: str, theirs: str) -> str:
    kind = COLUMNS[ours]
    if kind == "time":
        return tables.kind_of_time(head, theirs)
    if kind == "key":
        return tables.kind_of_key(head, theirs)
    if kind == "ids" and head.kind == "csv":
        raise InputError(
            f"{head.path}, line 1: {theirs}: CSV cannot hold hash_ids; use JSON lines or Parquet"
        )
    return kind
