"""Table files that survive a crash: an Arrow stream while they grow, a Parquet file once complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_ROWS = 32_768


class StreamWriter:
    """Appends record batches to an Arrow stream, each on its way to the disk when `write` returns.

    A Parquet file has its directory at the end, so one that was never closed cannot be read; a stream can be
    read up to the last whole batch. After an OSError (a disk that is full) the stream may end within a
    batch: nothing more is written then, so that what is before stays readable.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Raises OSError where the file cannot be made."""
        self.path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._sink, schema)
        self.rows = 0
        self._closed = self._broken = False

    def write(self, batch: pa.RecordBatch) -> None:
        """Raises OSError where the batch cannot be written, and for every batch after that one."""
        if self._broken:
            raise OSError(errno.EIO, "an earlier batch could not be written", str(self.path))
        try:
            self._stream.write_batch(batch)
            self._sink.flush()
        except OSError:
            self._broken = True
            raise
        self.rows += int(batch.num_rows)

    def close(self) -> None:
        """Ends the stream and closes its file. Raises OSError where the end cannot be written."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._broken:
                self._stream.close()
        finally:
            with contextlib.suppress(OSError):
                self._sink.close()


class TableWriter:
    """Appends record batches to a stream and turns it into a Parquet file when closed."""

    def __init__(self, partial: Path, final: Path, schema: pa.Schema) -> None:
        self._stream = StreamWriter(partial, schema)
        self._final, self._schema = final, schema
        self._closed = False

    def write(self, batch: pa.RecordBatch) -> None:
        """Raises OSError where the batch cannot be written."""
        self._stream.write(batch)

    def close(self) -> None:
        """Writes the Parquet file. Raises OSError where that cannot be done; the stream is kept then."""
        if self._closed:
            return
        self._closed = True
        self._stream.close()
        stream_to_parquet(self._stream.path, self._final, self._schema)


def parquet_writer(path: Path, schema: pa.Schema) -> Any:
    """A Parquet writer with this project's encodings: Zstandard; dictionaries for the short strings only."""
    strings = [f.name for f in schema if f.type == pa.string() and f.name != "request_id"]
    return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=strings)


def stream_to_parquet(
    partial: Path,
    final: Path,
    schema: pa.Schema,
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> None:
    """Turns the stream `partial` into the Parquet file `final`, whole or not at all; then removes it.

    `change` gets the rows of one row group after the other and returns as many, with the same columns. Raises
    OSError where the file cannot be written; the stream is kept then.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with parquet_writer(temporary, schema) as writer:
            for table in _regrouped(stream_batches(partial, schema), schema):
                writer.write_table(change(table), row_group_size=_ROW_GROUP_ROWS)
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    partial.unlink()


def stream_batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The whole batches of a stream, with the columns of `schema`; none where nothing was written yet.

    A column that the stream lacks, as that of an earlier version, is null.
    """
    with pa.OSFile(str(path), "rb") as source:
        try:
            options = pa.ipc.IpcReadOptions()
            with pa.OSFile(str(path), "rb") as head:
                names = pa.ipc.open_stream(head).schema.names
            options.included_fields = sorted(names.index(name) for name in schema.names if name in names)
            for batch in pa.ipc.open_stream(source, options=options):
                yield pa.RecordBatch.from_arrays(
                    [
                        batch.column(field.name) if field.name in names else pa.nulls(len(batch), field.type)
                        for field in schema
                    ],
                    schema=schema,
                )
        except (pa.ArrowInvalid, OSError, EOFError):
            return  # the process ended while it wrote this batch; those before it are whole


class StreamFollower:
    """The batches of a stream that another process is writing, each once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source: Any = None
        self._schema: Any = None

    def new(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The batches that were written since it was asked last, with the columns named; none before there is
        a file."""
        if self._source is None:
            try:
                self._source = pa.OSFile(str(self._path), "rb")
            except OSError:
                return
        while True:
            begin = self._source.tell()
            try:
                message = pa.ipc.read_message(self._source)
                if self._schema is None:
                    self._schema = pa.ipc.read_schema(message)
                    continue
                batch = pa.ipc.read_record_batch(message, self._schema)
            except (pa.ArrowInvalid, OSError, EOFError):
                self._source.seek(begin)  # the end, or a batch that is not whole yet
                return
            yield batch.select(list(columns))


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
