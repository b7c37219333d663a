"""One run as its directory has it: what was recorded, and the numbers that were computed from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattload.client.api import APIS
from wattload.errors import InputError
from wattload.rundir.directory import REQUEST_SCHEMA, Capture, RunDir
from wattload.rundir.requests import Bool, Requests, read_requests
from wattload.rundir.result import (
    EnergyInfo,
    LatencyInfo,
    LoadInfo,
    RunJson,
    SloInfo,
    TokensInfo,
    WindowInfo,
)

NOTHING_GENERATED = "the endpoint generates nothing: there are no output tokens"


@dataclass(frozen=True, slots=True)
class RunData:
    """What was recorded of a run, with the window in force.

    `inside`, shape (N,), are the requests scheduled in the window. `series`, `split` and `server` are the
    tables of energy.parquet, energy_split.parquet and server_metrics.parquet, None where there are none.
    `unreadable_energy` and `unreadable_server` are sentences about those that are there and cannot be used.
    """

    directory: RunDir
    capture: Capture
    window: WindowInfo
    requests: Requests
    inside: Bool
    series: pa.Table | None
    split: pa.Table | None
    server: pa.Table | None = None
    unreadable_energy: tuple[str, ...] = ()
    unreadable_server: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, directory: RunDir, capture: Capture, window: WindowInfo, requests: Requests | None = None
    ) -> RunData:
        """Reads the tables; `requests` are those of the directory where the caller has them already."""
        requests = requests if requests is not None else read_requests(directory)
        inside = requests.within(window.start_unix, window.end_unix)
        series, no_series = _where_readable(directory.read_energy)
        split, no_split = _where_readable(directory.read_split)
        server, no_server = _where_readable(directory.read_server_metrics)
        return cls(
            directory,
            capture,
            window,
            requests,
            inside,
            series,
            split,
            server,
            (*no_series, *no_split),
            no_server,
        )

    @property
    def offset_seconds(self) -> float:
        """The meter's clock minus the client's."""
        return self.capture.clock.offset_seconds if self.capture.clock is not None else 0.0

    @property
    def generates(self) -> bool:
        """Whether the endpoint's responses have output tokens."""
        api = APIS.get(self.capture.config.get("api") or "")
        return api is None or api.streams

    @property
    def done(self) -> Bool:
        """The requests that were scheduled in the window and completed, shape (N,)."""
        return self.inside & self.requests.completed


def _where_readable(read: Callable[[], pa.Table | None]) -> tuple[pa.Table | None, tuple[str, ...]]:
    """A table beside the requests, which are of use without it, and why it cannot be read."""
    try:
        return read(), ()
    except InputError as error:
        return None, (str(error),)


@dataclass(frozen=True)
class Run:
    """A run and its numbers; tables are read when they are first asked for.

    `run.energy.per_request_joules.mean` and its like are the numbers of run.json, `run.requests` the rows of
    requests.parquet. Made by `wattload.load_run` and `wattload.run`. Raises InputError, naming the file,
    where one cannot be used.
    """

    directory: RunDir
    result: RunJson

    @classmethod
    def of(cls, directory: RunDir, result: RunJson, data: RunData) -> Run:
        """A run whose tables have been read already."""
        run = cls(directory, result)
        vars(run)["data"] = data
        return run

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def name(self) -> str:
        """The name of the run directory, which tells runs apart."""
        return self.path.name or str(self.path)

    @property
    def valid(self) -> bool:
        """Whether the figures may be used; `reasons` say why not."""
        return self.result.valid

    @property
    def reasons(self) -> list[str]:
        """Why the run is not valid; empty where it is."""
        return self.result.reasons

    @property
    def notes(self) -> list[str]:
        """What qualifies figures that stand."""
        return self.result.notes

    @property
    def absent(self) -> dict[str, str]:
        """Why a number is None, by its dotted path."""
        return self.result.absent

    @property
    def energy(self) -> EnergyInfo:
        return self.result.energy

    @property
    def latency(self) -> LatencyInfo:
        return self.result.latency

    @property
    def load(self) -> LoadInfo:
        return self.result.load

    @property
    def tokens(self) -> TokensInfo:
        return self.result.tokens

    @property
    def slo(self) -> SloInfo | None:
        return self.result.slo

    @property
    def window(self) -> WindowInfo:
        """The measurement window on the client's clock."""
        assert self.result.window is not None  # whoever makes a Run has seen to it
        return self.result.window

    def as_dict(self) -> dict[str, Any]:
        """run.json as plain Python values."""
        return self.result.model_dump(mode="json", by_alias=True)

    @cached_property
    def requests(self) -> pa.Table:
        """requests.parquet, a row per planned request, with all its columns."""
        return self.directory.read_requests(REQUEST_SCHEMA.names)

    @cached_property
    def data(self) -> RunData:
        """What was recorded, as arrays in order of scheduled time: what the analysis reads."""
        return RunData.read(self.directory, self.directory.load_capture(), self.window)
