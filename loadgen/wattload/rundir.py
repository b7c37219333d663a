"""The run directory: which files a run consists of, their columns, and how they are written and read.

`capture.json` holds what was asked of the run and what the endpoint said; with the Parquet files it is all
that `measure.finish` needs, so that every number of run.json and of the report can be computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattload.crash_safe_table import TableWriter, stream_to_parquet
from wattload.errors import BadInput
from wattload.record import RequestRecord
from wattload.runjson import ClockInfo, SloLimits, TargetInfo, WorkloadInfo

CAPTURE_SCHEMA = "wattload.capture/1"

REQUEST_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("session", pa.int64()),
        ("tag", pa.string()),
        ("due_unix", pa.float64()),
        ("sent_unix", pa.float64()),
        ("first_token_unix", pa.float64()),
        ("last_token_unix", pa.float64()),
        ("outcome", pa.string()),
        ("status_code", pa.int16()),
        ("prompt_tokens_planned", pa.int32()),
        ("output_tokens_planned", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("chunks", pa.int32()),
        ("energy_joules", pa.float64()),
        ("prefill_joules", pa.float64()),
        ("decode_joules", pa.float64()),
        ("energy_status", pa.string()),
        ("request_id", pa.string()),
        ("in_window", pa.bool_()),
        ("worker", pa.int16()),
        ("error", pa.string()),
        ("itl_seconds", pa.list_(pa.float32())),
    ]
)

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

_COLUMNS_A_STEP = 4


class Capture(BaseModel):
    """What was asked of a run, and what its endpoint said: the inputs of `measure.finish` besides the tables.

    Written before the first request is sent and again at the end, so that a run cut short can still be
    read. `started_unix` is the client's time of `due_seconds` 0; `duration_seconds` the planned length of
    the arrivals. `warmup_seconds` None: the end of the warm-up is detected. `energy_window` is the
    endpoint's answer to GET /energy for the window, on the meter's clock. `clock` was measured before the
    load, `clock_after` after it.
    """

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    schema_: str = Field(CAPTURE_SCHEMA, alias="schema")
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


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run, and its tables. Raises BadInput, naming the file, where one cannot be used."""

    path: Path

    @classmethod
    def create(cls, path: Path | str) -> RunDir:
        """A new run directory. Raises BadInput where it holds a run already."""
        run = cls(Path(path))
        if run.run_json_path.exists() or run.capture_path.exists():
            raise BadInput(f"{run.path}: holds a run already; name another directory with --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{run.path}: cannot be made a run directory: {error.strerror}") from error
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run directory. Raises BadInput where `path` is none."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise BadInput(f"{run.path}: is no directory, so no run either")
        if not run.capture_path.exists() and not run.run_json_path.exists():
            raise BadInput(f"{run.path}: has neither capture.json nor run.json, so it is no run directory")
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
    def schedule_path(self) -> Path:
        return self.path / "schedule.parquet"

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
        """capture.json. Raises BadInput where it is missing, cut short or of another schema."""
        raw = read_json(self.capture_path)
        if raw.get("schema") != CAPTURE_SCHEMA:
            found = raw.get("schema")
            raise BadInput(
                f"{self.capture_path}: has schema {found!r}, this wattload reads {CAPTURE_SCHEMA!r} only"
            )
        try:
            return Capture.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BadInput(f"{self.capture_path}: field {where}: {first['msg']}") from error

    def read_requests(self, columns: Sequence[str] | None = None) -> pa.Table:
        """requests.parquet, rows in the order in which they were written; a partial file is recovered first.

        `columns` None: all but `itl_seconds`, which is long; read it with `itl_batches`.
        """
        recover(self)
        wanted = list(columns or [n for n in REQUEST_SCHEMA.names if n != "itl_seconds"])
        return _read_parquet(self.requests_path, wanted)

    def itl_batches(self, extra: Sequence[str] = ()) -> Iterator[pa.Table]:
        """requests.parquet a row group at a time:

        `itl_seconds` and the `extra` columns, in bounded memory.
        """
        wanted = [*extra, "itl_seconds"]
        with _open_parquet(self.requests_path, wanted) as file:
            for group in range(file.metadata.num_row_groups):
                yield file.read_row_group(group, columns=wanted)

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


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves the old one: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises BadInput naming the file (and line) where it is absent or not one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise BadInput(f"{path}:{line}: is not JSON (cut short?): {error}") from error
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: holds a {type(raw).__name__}, not an object")
    return raw


def _open_parquet(path: Path, columns: Sequence[str]) -> Any:
    if not path.exists():
        raise BadInput(f"{path}: does not exist")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path}: is not a whole Parquet file (cut short?): {error}") from error
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise BadInput(f"{path}: lacks column {', '.join(missing)}")
    return file


def _read_parquet(path: Path, columns: list[str]) -> pa.Table:
    with _open_parquet(path, columns) as file:
        try:
            return file.read(columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{path}: cannot be read: {error}") from error


class RequestWriter:
    """Appends request records to a run, in bounded memory: `append` keeps at most `batch_rows` of them.

    Use as a context manager, so that an interrupted run has its rows. `in_window` is null until
    `measure.finish` has decided the window. Not for several threads at once.
    """

    def __init__(self, run: RunDir | Path | str, *, batch_rows: int = 256) -> None:
        self._run = run if isinstance(run, RunDir) else RunDir(Path(run))
        self._table = TableWriter(self._run.requests_partial_path, self._run.requests_path, REQUEST_SCHEMA)
        self._pending: list[RequestRecord] = []
        self._batch_rows = batch_rows

    @property
    def rows(self) -> int:
        return self._table.rows + len(self._pending)

    def append(self, records: Sequence[RequestRecord]) -> None:
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

    def close(self) -> None:
        self.flush()
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
    if name == "itl_seconds":
        lengths = np.fromiter((len(r.itl_seconds) for r in records), np.int64, len(records))
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        gaps = np.fromiter((gap for r in records for gap in r.itl_seconds), np.float32, int(offsets[-1]))
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(gaps))
    if name == "in_window":
        return pa.nulls(len(records), pa.bool_())
    if name == "outcome":
        return pa.array([str(r.outcome) for r in records], pa.string())
    return pa.array([getattr(r, name, None) for r in records], schema_field.type)


def recover(run: RunDir) -> None:
    """Turns streams that a crashed run left behind into Parquet files; rows not yet flushed are lost."""
    for partial, final, schema in (
        (run.requests_partial_path, run.requests_path, REQUEST_SCHEMA),
        (run.energy_partial_path, run.energy_path, ENERGY_SCHEMA),
        (run.split_partial_path, run.split_path, SPLIT_SCHEMA),
    ):
        if partial.exists() and not final.exists():
            stream_to_parquet(partial, final, schema)
