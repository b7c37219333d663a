"""The meter's series and the energy split, collected while a run goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from wattload.clock import unix_now
from wattload.energy.client import EnergySource
from wattload.redaction import shown
from wattload.rundir.directory import ENERGY_SCHEMA, SPLIT_SCHEMA, RunDir
from wattload.rundir.result import ClockInfo
from wattload.rundir.tables import TableWriter
from wattmeter.arrays import F64
from wattmeter.schema import DeviceSeries, WindowEnergy, flag_names

_SPLIT_DELAY_SECONDS = 3.0
# How long after the window's end a sample of each device is waited for: a scrape or two.
_LAST_SAMPLE_SECONDS = 35.0
# How far a meter's readings may be ahead of its clock as we know it.
_LATEST_AHEAD_SECONDS = 60.0


class SeriesPoller:
    """Collects the meter's series and the energy split of every `split_seconds` while a run goes on.

    Writes energy.parquet and energy_split.parquet, on the meter's clock. A poll that fails is tried again
    with the next one, from where the last good one ended, so a hiccup loses nothing; what stays missing is
    in `errors`. `latest_watts` is for the progress display: the sum over devices of the last power seen,
    None before that.
    """

    def __init__(
        self,
        client: EnergySource,
        run: RunDir,
        *,
        clock: ClockInfo,
        interval_seconds: float = 1.0,
        split_seconds: float = 1.0,
        now: Callable[[], float] = unix_now,
    ) -> None:
        self._client, self._clock, self._now = client, clock, now
        self._interval, self._split = interval_seconds, split_seconds
        self._energy = TableWriter(run.energy_partial_path, run.energy_path, ENERGY_SCHEMA)
        self._splits = TableWriter(run.split_partial_path, run.split_path, SPLIT_SCHEMA)
        self._next: dict[str, float] = {}
        self._base: dict[str, float] = {}
        self._last_joules: dict[str, float] = {}
        self._changed: dict[str, float] = {}
        self._last_watts: dict[str, float] = {}
        self._begin = math.floor(now() + clock.offset_seconds)
        self._split_next = float(self._begin)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.latest_watts: float | None = None
        self.errors: list[str] = []

    def start(self) -> None:
        """Polls from now on; a second call changes nothing."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._loop, name="energy-poller", daemon=True)
        self._thread.start()

    def begin_early(self) -> None:
        """Takes the first sample now, before the load, from a source that has no past.

        Neither the thread nor the connection may be made yet: Locust patches both when it is imported.
        """
        if not self._client.has_split:
            self._guarded(self._poll_series)
            self._client.close()

    def stop(self, until_unix: float | None = None) -> None:
        """Fetches what is left, waiting a few seconds for the meter to settle, and closes the files.

        `until_unix`: the end of the window, on this host's clock. A source without a split knows only its
        samples, so a new value at or after that end is waited for, for 35 s at most.
        """
        if until_unix is not None and not self._client.has_split:
            self._await_sample(until_unix + self._clock.offset_seconds)
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        end = self._meter_now()
        deadline = time.monotonic() + 2 * _SPLIT_DELAY_SECONDS
        behind = self._client.has_split
        while behind and self._split_next + self._split <= end and time.monotonic() < deadline:
            self._guarded(self._poll_split, end, False)
            if self._split_next + self._split <= end:
                time.sleep(0.25)
        self._guarded(self._poll_series)
        self._guarded(self._poll_split, end, True)
        for table in (self._energy, self._splits):
            # A stream that cannot become a Parquet file now, on a full disk, becomes one when it is read.
            self._guarded(table.close)

    def _meter_now(self) -> float:
        return self._now() + self._clock.offset_seconds

    def _await_sample(self, end: float) -> None:
        """While the loop still polls: until every counter gave a new value at `end`, meter's clock, or later.

        A sample that repeats the value before it is a cached one: it does not say what was used until then.
        """
        deadline = max(self._meter_now(), end) + _LAST_SAMPLE_SECONDS
        while self._meter_now() < deadline and min(self._changed.values(), default=-math.inf) < end:
            time.sleep(0.1)

    def _loop(self) -> None:
        self._guarded(self._poll_series)
        while not self._stop.wait(self._interval):
            self._guarded(self._poll_series)
            self._guarded(self._poll_split, self._meter_now() - _SPLIT_DELAY_SECONDS, False)

    def _guarded(self, poll: Callable[..., None], *args: object) -> None:
        try:
            poll(*args)
        except Exception as error:  # whatever one answer holds, the next is asked for
            if len(self.errors) < 100:
                self.errors.append(shown(f"{type(error).__name__}: {error}")[:300])

    def _poll_series(self) -> None:
        begin = min(self._next.values(), default=self._begin - self._client.lookback_seconds)
        for device in self._client.series(begin, self._meter_now()):
            self._write_device(device)
        watts = [v for v in self._last_watts.values() if not math.isnan(v)]
        self.latest_watts = sum(watts) if watts else None

    def _write_device(self, device: DeviceSeries) -> None:
        name, seconds, joules, watts = device.id, device.unix_seconds, device.joules, device.watts
        # A reading that is of no time, or of a time to come, would hide all that come after it.
        fresh = (seconds > self._next.get(name, -math.inf)) & (
            seconds <= self._meter_now() + _LATEST_AHEAD_SECONDS
        )
        seconds, joules, watts = seconds[fresh], joules[fresh], watts[fresh]
        if not len(seconds):
            return
        known = joules[~np.isnan(joules)]
        if name not in self._base and len(known):
            self._base[name] = float(known[0])
        self._next[name] = float(seconds[-1])
        self._note_change(name, seconds, joules)
        self._last_watts[name] = float(watts[-1])
        columns = [
            pa.array([name] * len(seconds), pa.string()),
            pa.array(seconds),
            pa.array(joules - self._base.get(name, 0.0), from_pandas=True),
            pa.array(watts, from_pandas=True),
            pa.array([device.source] * len(seconds), pa.string()),
        ]
        self._energy.write(pa.RecordBatch.from_arrays(columns, schema=ENERGY_SCHEMA))

    def _note_change(self, name: str, seconds: F64, joules: F64) -> None:
        before = np.concatenate(([self._last_joules.get(name, math.nan)], joules[:-1]))
        moved = np.flatnonzero(joules != before)
        self._last_joules[name] = float(joules[-1])
        if len(moved):
            self._changed[name] = float(seconds[moved[-1]])

    def _poll_split(self, until: float, last: bool) -> None:
        """Writes the blocks that end by `until`, up to the first that is not settled; `last`:

        that one too.
        """
        while self._client.has_split and self._split_next + self._split <= until:
            end = self._split_next + self._split
            answer = self._client.window(self._split_next, end)
            if not answer.complete and not last:
                return
            self._splits.write(split_batch(answer, self._split_next, end))
            self._split_next = end


def split_batch(window: WindowEnergy, start: float, end: float) -> pa.RecordBatch:
    """The energy of the block [start, end) as one row of energy_split.parquet."""
    row = {
        "start_unix": start,
        "end_unix": end,
        "complete": window.complete,
        "total_joules": window.total_joules,
        "idle_joules": window.idle_joules,
        "prefill_joules": window.prefill_joules,
        "decode_joules": window.decode_joules,
        "unattributed_joules": window.unattributed_joules,
        "flags": flag_names(window.flags),
    }
    return pa.RecordBatch.from_pylist([row], schema=SPLIT_SCHEMA)
