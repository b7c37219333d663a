"""A table file that survives a crash: an Arrow stream while it grows, Parquet once it is closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_ROWS = 32_768


class TableWriter:
    """Appends record batches to a crash-safe stream and turns it into a Parquet file when closed.

    A Parquet file has its directory at the end, so one that was never closed cannot be read. Batches
    therefore go to an Arrow stream, each flushed, and what was flushed survives the process; `rundir.recover`
    does the rest.
    """

    def __init__(self, partial: Path, final: Path, schema: pa.Schema) -> None:
        self._partial, self._final, self._schema = partial, final, schema
        self._sink = pa.OSFile(str(partial), "wb")
        self._stream = pa.ipc.new_stream(self._sink, schema)
        self.rows = 0
        self._closed = False

    def write(self, batch: pa.RecordBatch) -> None:
        self._stream.write_batch(batch)
        self._sink.flush()
        self.rows += int(batch.num_rows)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        self._sink.close()
        stream_to_parquet(self._partial, self._final, self._schema)


def parquet_writer(path: Path, schema: pa.Schema) -> Any:
    """A Parquet writer with this project's encodings: Zstandard; dictionaries for the short strings only."""
    strings = [f.name for f in schema if f.type == pa.string() and f.name != "request_id"]
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=strings)


def stream_to_parquet(partial: Path, final: Path, schema: pa.Schema) -> None:
    """Turns the stream `partial` into the Parquet file `final`, whole or not at all; then removes it."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    with parquet_writer(temporary, schema) as writer:
        for table in _regrouped(_stream_batches(partial), schema):
            writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
    temporary.replace(final)
    partial.unlink()


def _stream_batches(partial: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(partial), "rb") as source:
        try:
            yield from pa.ipc.open_stream(source)
        except (pa.ArrowInvalid, OSError, EOFError):
            return  # the process died while it wrote this batch; those before it are whole


def _regrouped(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _ROW_GROUP_ROWS:
            yield pa.Table.from_batches(held, schema).combine_chunks()
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks()
