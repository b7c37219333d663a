"""Entries of a file of text, one by one: of a JSON array, of JSON lines or of Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from wattload.errors import InputError
from wattload.traces.reading.files import Head, opened
from wattload.traces.reading.json_lines import objects

# English text has about four characters a token in the usual vocabularies; a tokenizer replaces the estimate.
CHARACTERS_PER_TOKEN = 4.0
ESTIMATED = "lengths are estimated at 4 characters a token until a tokenizer has counted them"


def tokens_estimated(text: str) -> int:
    """At least 1."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def place_name(head: Head) -> str:
    """What the places of `entries` are called."""
    return {"json": "entry", "parquet": "row", "document": "object"}.get(head.kind, "line")


def entries(head: Head, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place, entry) of the first `limit` entries, all for None. Raises InputError naming file and place."""
    yield from islice(_all(head), limit)


def _all(head: Head) -> Iterator[tuple[int, dict[str, Any]]]:
    if head.kind == "jsonl" and head.only_line is not None:
        yield head.only_line, head.first
    elif head.kind == "jsonl":
        yield from objects(head.path)
    elif head.kind == "document":
        yield 1, head.first
    elif head.kind == "parquet":
        yield from _rows(head)
    else:
        for number, entry in enumerate(_array(head), 1):
            if not isinstance(entry, dict):
                raise InputError(f"{head.path}, entry {number}: not a JSON object")
            yield number, entry


def _array(head: Head) -> list[Any]:
    with opened(head.path) as raw:
        try:
            data: list[Any] = json.load(raw)
        except UnicodeDecodeError as error:
            raise InputError(f"{head.path}: not UTF-8 text ({error.reason})") from error
        except (ValueError, RecursionError) as error:
            line, why = getattr(error, "lineno", 1), getattr(error, "msg", str(error))
            raise InputError(f"{head.path}, line {line}: not JSON ({why})") from error
    return data


def _rows(head: Head) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(head.path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{head.path} cannot be read as Parquet: {error}") from error
