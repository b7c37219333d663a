"""The run directory: which files a run consists of, their columns, and how they are written and read.

`capture.json` holds the settings of the run and the answers of the endpoint. With the Parquet files it is all
that `analysis.compute` needs, so that every number of run.json and of the report can be computed again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattload.client.record import RequestRecord, request_columns
from wattload.errors import InputError
from wattload.redaction import shown
from wattload.rundir.result import RUN_SCHEMA, ClockInfo, RunJson, SloLimits, TargetInfo, WorkloadInfo
from wattload.rundir.tables import StreamWriter, stream_batches, stream_to_parquet
from wattmeter.whole_file import write_atomically

M = TypeVar("M", bound=BaseModel)

CAPTURE_SCHEMA = "wattload.capture/1"
# The share of the requests in the window that may fail in a valid run, where nothing else is asked for.
MAX_FAILURES = 0.05


def _arrow_type(name: str) -> pa.DataType:
    inner = name.removeprefix("list<").removesuffix(">")
    return pa.list_(_arrow_type(inner)) if inner != name else pa.type_for_alias(name)


REQUEST_SCHEMA = pa.schema([(name, _arrow_type(c.arrow)) for name, c in request_columns().items()])
# Columns that runs of earlier versions lack.
_LATER = {name for name, column in request_columns().items() if column.later}

ENERGY_SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("unix_seconds", pa.float64()),
        ("joules", pa.float64()),
        ("watts", pa.float64()),
        ("source", pa.string()),
    ]
)

SPLIT_SCHEMA = pa.schema(
    [
        ("start_unix", pa.float64()),
        ("end_unix", pa.float64()),
        ("complete", pa.bool_()),
        ("total_joules", pa.float64()),
        ("idle_joules", pa.float64()),
        ("prefill_joules", pa.float64()),
        ("decode_joules", pa.float64()),
        ("unattributed_joules", pa.float64()),
        ("flags", pa.list_(pa.string())),
    ]
)

# What a server said of requests once it was final; the columns are those of the requests.
SETTLED_SCHEMA = pa.schema(
    [
        REQUEST_SCHEMA.field(name)
        for name in ("request_id", "energy_joules", "prefill_joules", "decode_joules", "energy_status")
    ]
)

SERVER_METRICS_SCHEMA = pa.schema(
    [
        ("unix_seconds", pa.float64()),
        ("target", pa.string()),
        ("metric", pa.string()),
        ("labels", pa.string()),
        ("kind", pa.string()),
        ("value", pa.float64()),
    ]
)

_COLUMNS_A_STEP = 4


class Capture(BaseModel):
    """The settings of a run and its endpoint's answers: the inputs of `analysis.compute` besides the tables.

    Written before the first request is sent and again at the end, so that a run cut short can still be
    read. `started_unix` is the client's time of `due_seconds` 0; `duration_seconds` the planned length of
    the arrivals. `warmup_seconds` None: the end of the warm-up is detected. `energy_window` is the
    endpoint's answer to GET /energy for the window, on the meter's clock. `clock` was measured before the
    load, `clock_after` after it. `gains`: of the sensors by device, where calibrated. `server_metrics` says
    where the server's metrics were read, and how often not.
    """

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    schema_: str = Field(default=CAPTURE_SCHEMA, alias="schema")
    name: str
    started_unix: float
    finished_unix: float | None = None
    duration_seconds: float
    warmup_seconds: float | None = None
    interrupted: str | None = None
    reasons: list[str] = Field(default_factory=list)
    target: TargetInfo
    workload: WorkloadInfo
    slo: SloLimits | None = None
    max_failures: float = MAX_FAILURES
    versions: dict[str, str | None] = Field(default_factory=dict)
    host: dict[str, Any] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    clock: ClockInfo | None = None
    clock_after: ClockInfo | None = None
    energy_url: str | None = None
    no_energy_reason: str | None = None
    energy_probe: dict[str, Any] | None = None
    energy_window: dict[str, Any] | None = None
    planned_requests: int | None = None
    server_metrics: dict[str, Any] | None = None
    gains: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run, and its tables. Raises InputError, naming the file, where one cannot be used."""

    path: Path

    @classmethod
    def create(cls, path: Path | str) -> RunDir:
        """A new run directory. Raises InputError where `path` holds anything already."""
        run = cls(Path(path))
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            found = next(run.path.iterdir(), None)
        except OSError as error:
            raise InputError(
                "out", f"{run.path}: cannot be made a run directory: {error.strerror}"
            ) from error
        if found is not None:
            held = (
                "holds a run already"
                if run.capture_path.exists()
                else f"is not empty (it holds {found.name})"
            )
            raise InputError("out", f"{run.path}: {held}; name a new directory")
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run directory. Raises InputError where `path` is none."""
        run = cls(Path(path))
        if re.match(r"https?:/", str(path)):
            raise InputError(f"{shown(str(path))}: is the address of a server, not a run directory")
        if not run.path.is_dir():
            raise InputError(f"{run.path}: no such run directory")
        if not run.capture_path.exists() and not run.run_json_path.exists():
            raise InputError(f"{run.path}: is not a run directory (it has neither capture.json nor run.json)")
        return run

    @property
    def requests_path(self) -> Path:
        return self.path / "requests.parquet"

    @property
    def requests_partial_path(self) -> Path:
        return self.path / "requests.partial.arrow"

    @property
    def energy_path(self) -> Path:
        return self.path / "energy.parquet"

    @property
    def energy_partial_path(self) -> Path:
        return self.path / "energy.partial.arrow"

    @property
    def split_path(self) -> Path:
        return self.path / "energy_split.parquet"

    @property
    def split_partial_path(self) -> Path:
        return self.path / "energy_split.partial.arrow"

    @property
    def settled_partial_path(self) -> Path:
        """What was asked during the load; it becomes a part of requests.parquet."""
        return self.path / "settled.partial.arrow"

    @property
    def server_metrics_path(self) -> Path:
        return self.path / "server_metrics.parquet"

    @property
    def server_metrics_partial_path(self) -> Path:
        return self.path / "server_metrics.partial.arrow"

    @property
    def schedule_path(self) -> Path:
        return self.path / "schedule.parquet"

    @property
    def sessions_path(self) -> Path:
        return self.path / "sessions.parquet"

    @property
    def tasks_path(self) -> Path:
        return self.path / "tasks.parquet"

    @property
    def capture_path(self) -> Path:
        return self.path / "capture.json"

    @property
    def run_json_path(self) -> Path:
        return self.path / "run.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def save_capture(self, capture: Capture) -> None:
        write_atomically(self.capture_path, capture.model_dump_json(by_alias=True, indent=1))

    def load_capture(self) -> Capture:
        """capture.json. Raises InputError where it is missing, cut short or of another schema."""
        return read_model(self.capture_path, CAPTURE_SCHEMA, Capture)

    def read_requests(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of requests in the order in which they were written: from requests.parquet, or from the
        stream of a run that has not got that file yet.

        `columns` None: all but `itl_seconds`, which is long; read it with `itl_batches`.
        """
        wanted = list(columns or [n for n in REQUEST_SCHEMA.names if n != "itl_seconds"])
        if not self._requests_are_a_stream():
            return _read_parquet(self.requests_path, wanted)
        schema = pa.schema([REQUEST_SCHEMA.field(name) for name in wanted])
        return pa.Table.from_batches(stream_batches(self.requests_partial_path, schema), schema)

    def read_settled(self) -> pa.Table:
        """What servers said of requests during the load, as rows of SETTLED_SCHEMA; none of a short load."""
        path = self.settled_partial_path
        return pa.Table.from_batches(
            stream_batches(path, SETTLED_SCHEMA) if path.exists() else [], SETTLED_SCHEMA
        )

    def itl_batches(
        self, extra: Sequence[str] = (), *, holding: npt.NDArray[np.int64] | None = None
    ) -> Iterator[pa.Table]:
        """`itl_seconds` and the `extra` columns of all requests, a row group or a batch at a time.

        `holding`: only row groups that hold one of these values of `index`.
        """
        wanted = [*extra, "itl_seconds"]
        if self._requests_are_a_stream():
            schema = pa.schema([REQUEST_SCHEMA.field(name) for name in wanted])
            for batch in stream_batches(self.requests_partial_path, schema):
                yield pa.Table.from_batches([batch], schema)
            return
        with _open_parquet(self.requests_path, wanted) as file:
            for group in range(file.metadata.num_row_groups):
                if holding is not None:
                    index = file.read_row_group(group, columns=["index"]).column("index").to_numpy()
                    if not np.isin(index, holding).any():
                        continue
                there = [name for name in wanted if name in file.schema_arrow.names]
                yield _completed(file.read_row_group(group, columns=there), wanted)

    def _requests_are_a_stream(self) -> bool:
        return self.requests_partial_path.exists() and not self.requests_path.exists()

    def write_requests(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """Makes requests.parquet of the stream; where the file is there already it stays as it is.

        `change` gets the rows of one row group after the other and returns them with what became known
        after the load. Raises OSError where the file cannot be written; the stream is kept then.
        """
        if self._requests_are_a_stream():
            stream_to_parquet(self.requests_partial_path, self.requests_path, REQUEST_SCHEMA, change)
        self.settled_partial_path.unlink(missing_ok=True)

    def read_energy(self) -> pa.Table | None:
        """energy.parquet, or None where the run has no energy series."""
        recover(self)
        return (
            _read_parquet(self.energy_path, list(ENERGY_SCHEMA.names)) if self.energy_path.exists() else None
        )

    def read_split(self) -> pa.Table | None:
        """energy_split.parquet, or None where the endpoint gives no split."""
        recover(self)
        return _read_parquet(self.split_path, list(SPLIT_SCHEMA.names)) if self.split_path.exists() else None

    def read_server_metrics(self) -> pa.Table | None:
        """server_metrics.parquet, or None where no server's metrics were read."""
        recover(self)
        names = list(SERVER_METRICS_SCHEMA.names)
        return _read_parquet(self.server_metrics_path, names) if self.server_metrics_path.exists() else None


def default_directory(trace: str) -> Path:
    """The directory of a run that names none: runs/<date>-<time>-<trace>, with a number where that exists."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(trace).stem)[:40]
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    path, count = base, 2
    while path.exists():
        path, count = base.with_name(f"{base.name}-{count}"), count + 1
    return path


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises InputError naming the file (and line) where it is absent or not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: is not JSON (cut short?): {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds a {type(raw).__name__}, not an object")
    return raw


def read_document(path: Path, schema: str) -> dict[str, Any]:
    """A JSON object that says of which schema it is. Raises InputError, also where that is another one."""
    raw = read_json(path)
    if raw.get("schema") != schema:
        raise InputError(f"{path}: has schema {raw.get('schema')!r}, this wattload reads {schema!r} only")
    return raw


def read_model(path: Path, schema: str, model: type[M]) -> M:
    """The same as a model. Raises InputError, also naming a field that is missing or wrong."""
    raw = read_document(path, schema)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: field {where}: {first['msg']}") from error


def _open_parquet(path: Path, columns: Sequence[str]) -> Any:
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: is not a whole Parquet file (cut short?): {error}") from error
    missing = [name for name in columns if name not in file.schema_arrow.names and name not in _LATER]
    if missing:
        file.close()
        raise InputError(f"{path}: lacks column {', '.join(missing)}")
    return file


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    with _open_parquet(path, columns) as file:
        try:
            there = set(file.schema_arrow.names)
            table = file.read(columns=[name for name in columns if name in there])
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error
    return _completed(table, columns)


def _completed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The named columns of requests; those that an earlier version did not write are null."""
    for name in columns:
        if name not in table.column_names:
            kind = REQUEST_SCHEMA.field(name)
            table = table.append_column(kind, pa.nulls(table.num_rows, kind.type))
    return table.select(columns)


class RequestWriter:
    """Appends request records to a run's stream, in bounded memory: `append` keeps at most `batch_rows`.

    Use as a context manager, so that an interrupted run has its rows. `in_window` is null until
    `RunDir.write_requests`. Not for several threads at once.
    """

    def __init__(self, run: RunDir | Path | str, *, batch_rows: int = 256) -> None:
        """Raises OSError where the stream cannot be made."""
        run = run if isinstance(run, RunDir) else RunDir(Path(run))
        self._table = StreamWriter(run.requests_partial_path, REQUEST_SCHEMA)
        self._pending: list[RequestRecord] = []
        self._batch_rows = batch_rows

    @property
    def path(self) -> Path:
        return self._table.path

    @property
    def rows(self) -> int:
        return self._table.rows + len(self._pending)

    def append(self, records: Sequence[RequestRecord]) -> None:
        """Raises OSError where a batch that is full cannot be written."""
        self._pending.extend(records)
        if len(self._pending) >= self._batch_rows:
            self.flush()

    @property
    def pending(self) -> int:
        """Records that are not yet on their way to the file."""
        return len(self._pending)

    def flush(self) -> None:
        for _ in self.flush_steps():
            pass

    def flush_steps(self) -> Iterator[None]:
        """Writes what is pending, a few columns a step, for a caller that must not stop for longer.

        To be gone through to its end before anything else is asked of the writer but `append`.
        """
        if self._pending:
            pending, self._pending = self._pending, []
            columns: list[Any] = []
            for place, schema_field in enumerate(REQUEST_SCHEMA):
                columns.append(_request_column(pending, schema_field))
                if place % _COLUMNS_A_STEP == 0:
                    yield
            yield
            self._table.write(pa.RecordBatch.from_arrays(columns, schema=REQUEST_SCHEMA))

    def abandon(self) -> None:
        """Drops what is pending: the disk does not take it."""
        self._pending = []

    def close(self) -> None:
        """Writes what is pending and ends the stream. Raises OSError; the file is closed all the same."""
        try:
            self.flush()
        finally:
            self._table.close()

    def __enter__(self) -> RequestWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request_batch(records: Sequence[RequestRecord]) -> pa.RecordBatch:
    """Records as one Arrow batch with the columns of `REQUEST_SCHEMA`."""
    columns = [_request_column(records, schema_field) for schema_field in REQUEST_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=REQUEST_SCHEMA)


def _request_column(records: Sequence[RequestRecord], schema_field: Any) -> Any:
    name = schema_field.name
    if pa.types.is_list(schema_field.type):
        lengths = np.fromiter((len(getattr(r, name)) for r in records), np.int64, len(records))
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        values = np.fromiter((v for r in records for v in getattr(r, name)), np.float32, int(offsets[-1]))
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    given = [getattr(r, name) for r in records]
    try:
        return pa.array(given, schema_field.type)
    except (OverflowError, TypeError, ValueError):
        return pa.array([_held(value, schema_field.type) for value in given], schema_field.type)


def _held(value: Any, kind: Any) -> Any:
    """A value that its column cannot hold is null: it costs its field, and no other row."""
    try:
        pa.scalar(value, kind)
    except (OverflowError, TypeError, ValueError):
        return None
    return value


def recover(run: RunDir) -> None:
    """Turns the streams of a run that was cut short, other than its requests', into Parquet files."""
    for partial, final, schema in (
        (run.energy_partial_path, run.energy_path, ENERGY_SCHEMA),
        (run.split_partial_path, run.split_path, SPLIT_SCHEMA),
        (run.server_metrics_partial_path, run.server_metrics_path, SERVER_METRICS_SCHEMA),
    ):
        if partial.exists() and not final.exists():
            stream_to_parquet(partial, final, schema)


def load_run_json(run: RunDir) -> RunJson:
    """run.json. Raises InputError where it is missing, cut short, of another schema, or lacks a field."""
    return read_model(run.run_json_path, RUN_SCHEMA, RunJson)
