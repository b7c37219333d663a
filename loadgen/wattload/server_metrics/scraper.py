"""The /metrics of servers, read each second of a run into server_metrics.parquet.

Each address has a thread, as the meter's series has one: where Locust sends the load from this process, that
thread is a greenlet, so a reading pauses while it works. A reading that fails leaves no rows and is counted
under its reason; it holds up no other, and nothing else in the run.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa

from wattload.client.control import TlsMaker, control_client
from wattload.client.unreachable import why_unreachable
from wattload.clock import unix_now
from wattload.redaction import shown
from wattload.rundir.directory import SERVER_METRICS_SCHEMA, RunDir
from wattload.rundir.tables import TableWriter
from wattload.server_metrics.common import SCRAPE_SECONDS, engines_of
from wattload.server_metrics.exposition import Exposition
from wattmeter.arrays import F64, I64

INTERVAL_SECONDS = 1.0
MOST_TARGETS = 8
MOST_BYTES = 4 * 1024 * 1024
# Rows of series under engines' own names in one run; those with a common name are kept to its end.
MOST_OWN_ROWS = 1_000_000
TIMEOUT_SECONDS = 5.0
_MOST_REASONS = 20
_HINTS = {
    404: "; SGLang shows its metrics with --enable-metrics, llama.cpp with --metrics, Triton on port 8002"
    " (--server-metrics-url)",
    501: "; llama.cpp shows its metrics with --metrics",
}


@dataclass(slots=True)
class Target:
    """One address whose metrics are read, and what came of it. `url` ends in /metrics."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: TlsMaker = None
    exposition: Exposition = field(default_factory=Exposition)
    scrapes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    _http: httpx.Client | None = None

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return shown(self.url)

    def read(self) -> tuple[float, float, I64, F64]:
        """(UNIX time of the middle of the reading, its seconds, places of series, their values).

        Raises httpx.HTTPError or ValueError where it cannot be read.
        """
        if self._http is None:
            headers = {**self.headers, "Accept-Encoding": "identity"}
            self._http = control_client(
                self.url, headers=headers, tls=self.tls, timeout_seconds=TIMEOUT_SECONDS
            )
        begin = unix_now()
        parts: list[bytes] = []
        size = 0
        with self._http.stream("GET", self.url) as answer:
            if answer.status_code != 200:
                hint = _HINTS.get(answer.status_code, "")
                raise ValueError(f"it answered {answer.status_code}{hint}")
            for part in answer.iter_bytes():
                size += len(part)
                if size > MOST_BYTES:
                    raise ValueError(f"it is longer than {MOST_BYTES / 2**20:g} MiB")
                parts.append(part)
        seconds = unix_now() - begin
        text = b"".join(parts).decode("utf-8", "replace")
        if text.lstrip()[:1] in ("[", "{"):
            raise ValueError(
                "its text is JSON; TensorRT-LLM shows its metrics under /prometheus/metrics"
                " (--server-metrics-url)"
            )
        places, values = self.exposition.read(text)
        return begin + seconds / 2, seconds, places, values

    def try_read(self) -> tuple[float, float, I64, F64] | None:
        """The same; None where it cannot be read, which is counted."""
        try:
            found = self.read()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            reason = shown(why_unreachable(error))[:200]
            if reason in self.failures or len(self.failures) < _MOST_REASONS:
                self.failures[reason] += 1
            return None
        self.scrapes += 1
        return found

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None

    @property
    def reason(self) -> str | None:
        """The most frequent reason why it could not be read; None where it always could."""
        return self.failures.most_common(1)[0][0] if self.failures else None

    def as_json(self) -> dict[str, Any]:
        """What came of it, for the run directory."""
        found = self.exposition
        return {
            "url": self.shown,
            "engines": engines_of(one.metric for one in found.series),
            "series": len(found.series),
            "left_out": found.left_out,
            "unreadable": None if found.unreadable is None else shown(found.unreadable),
            "scrapes": self.scrapes,
            "failures": dict(self.failures),
        }


def targets_of(
    endpoints: Sequence[str],
    meters: Sequence[str],
    *,
    headers: Mapping[str, str],
    meter_headers: Mapping[str, str] = MappingProxyType({}),
    tls: TlsMaker = None,
    named: Sequence[str] = (),
) -> list[Target]:
    """What is read: the `named` addresses, or the `endpoints`; and the `meters`, which know the GPUs' clocks.

    `headers` go to the endpoints alone, `meter_headers` to the others.
    """
    own = [metrics_of(url) for url in endpoints]
    urls = [metrics_of(url) for url in named] or list(own)
    urls += [url for url in map(metrics_of, meters) if url not in urls]
    return [Target(url, headers if url in own else meter_headers, tls) for url in dict.fromkeys(urls)]


def metrics_of(url: str) -> str:
    """The address of the metrics of a server, or the address itself where it has a path other than /v1."""
    base = url.rstrip("/").removesuffix("/v1")
    return f"{base}/metrics" if urlsplit(base).path == "" else base


class ServerMetrics:
    """Reads the metrics of `targets` each second, on the client's clock, into the run directory.

    What cannot be read before the load is read no more, with a sentence in `notes`.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        run: RunDir,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        most_own_rows: int = MOST_OWN_ROWS,
    ) -> None:
        self.targets = list(targets[:MOST_TARGETS])
        self.notes: list[str] = []
        if len(targets) > MOST_TARGETS:
            self.notes.append(f"server metrics are read of {MOST_TARGETS} of {len(targets)} addresses")
        self._run, self._interval = run, interval_seconds
        self._own_rows_left, self._own_rows_lost = most_own_rows, 0
        self._readable: list[tuple[Target, _Rows]] = []
        self._table: TableWriter | None = None
        self._threads: list[threading.Thread] = []
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._disk: str | None = None

    def begin_early(self) -> None:
        """Reads everything once, before the load, which learns what there is.

        Neither a thread nor a connection that lasts may be made yet: Locust patches both when it is imported.
        """
        for target in self.targets:
            found = target.try_read()
            target.close()
            if found is None:
                self.notes.append(f"no server metrics of {target.shown}: {target.reason}")
                continue
            rows = _Rows(target)
            self._readable.append((target, rows))
            self._write(rows, *found)

    def start(self) -> None:
        """Reads from now on; a second call changes nothing."""
        if self._threads:
            return
        for each in self._readable:
            thread = threading.Thread(target=self._loop, args=each, name="server-metrics", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Reads no more, and closes the file."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_SECONDS)
        for target in self.targets:
            target.close()
        if self._table is not None:
            try:
                self._table.close()
            except OSError as error:
                # The stream becomes a Parquet file when it is read.
                self._note_disk(error)

    def as_json(self) -> dict[str, Any]:
        """What was read, for capture.json."""
        return {
            "interval_seconds": self._interval,
            "targets": [target.as_json() for target in self.targets],
            "rows_left_out": self._own_rows_lost,
            "disk": self._disk,
        }

    def _loop(self, target: Target, rows: _Rows) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            found = target.try_read()
            if found is not None:
                self._write(rows, *found)
            # Readings that one has taken the time of are left out.
            late = time.monotonic() - due
            due += self._interval * max(1, math.ceil(late / self._interval))
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _write(self, rows: _Rows, unix: float, seconds: float, places: I64, values: F64) -> None:
        with self._writing:
            kept = rows.kept(places, values, self._own_rows_left)
            self._own_rows_left -= kept.own
            self._own_rows_lost += kept.lost
            try:
                if self._table is None:
                    self._table = TableWriter(
                        self._run.server_metrics_partial_path,
                        self._run.server_metrics_path,
                        SERVER_METRICS_SCHEMA,
                    )
                self._table.write(rows.batch(unix, seconds, places[kept.rows], values[kept.rows]))
            except OSError as error:
                self._note_disk(error)

    def _note_disk(self, error: OSError) -> None:
        self._disk = self._disk or f"server metrics could not be written: {error.strerror or error}"


@dataclass(slots=True)
class _Kept:
    """Which rows of a reading are written; how many are of own names, and how many of those are lost."""

    rows: list[int]
    own: int = 0
    lost: int = 0


class _Rows:
    """Makes rows of a target's readings."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._last: dict[int, float] = {}
        self._mapped: list[bool] = []
        self._texts: list[Any] = []

    def kept(self, places: I64, values: F64, own_rows_left: int) -> _Kept:
        """The series with a common name, and of the others those whose value has changed."""
        self._learn()
        found = _Kept([])
        for row, (place, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True)):
            if self._mapped[place]:
                found.rows.append(row)
            elif self._last.get(place) != value:
                if found.own >= own_rows_left:
                    found.lost += 1
                    continue
                self._last[place] = value
                found.own += 1
                found.rows.append(row)
        return found

    def batch(self, unix: float, seconds: float, places: I64, values: F64) -> pa.RecordBatch:
        """The rows of one reading, the first of which says how long it took."""
        count, index = len(places) + 1, pa.array(places)
        first = (SCRAPE_SECONDS, "", "gauge")
        columns = [
            pa.array(np.full(count, unix)),
            pa.array([self._target.shown] * count, pa.string()),
            *(
                pa.concat_arrays([pa.array([own], pa.string()), texts.take(index)])
                for own, texts in zip(first, self._texts, strict=True)
            ),
            pa.array(np.concatenate(([seconds], values))),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SERVER_METRICS_SCHEMA)

    def _learn(self) -> None:
        series = self._target.exposition.series
        if self._texts and len(self._mapped) == len(series):
            return
        self._mapped = [one.mapped for one in series]
        self._texts = [
            pa.array([getattr(one, name) for one in series], pa.string())
            for name in ("metric", "labels", "kind")
        ]
