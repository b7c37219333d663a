"""The meter's series and the energy split, collected while a run goes on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from wattload.crash_safe_table import TableWriter
from wattload.energy_client import EnergySource, number_or_none
from wattload.rundir import ENERGY_SCHEMA, SPLIT_SCHEMA, RunDir
from wattload.runjson import ClockInfo

_SPLIT_DELAY_SECONDS = 3.0
# How long after the window's end a sample of each device is waited for: a scrape or two.
_LAST_SAMPLE_SECONDS = 35.0


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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._clock, self._now = client, clock, now
        self._interval, self._split = interval_seconds, split_seconds
        self._energy = TableWriter(run.energy_partial_path, run.energy_path, ENERGY_SCHEMA)
        self._splits = TableWriter(run.split_partial_path, run.split_path, SPLIT_SCHEMA)
        self._next: dict[str, float] = {}
        self._base: dict[str, float] = {}
        self._last_watts: dict[str, float] = {}
        self._begin = math.floor(now() + clock.offset_seconds)
        self._split_next = float(self._begin)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.latest_watts: float | None = None
        self.errors: list[str] = []

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="energy-poller", daemon=True)
        self._thread.start()

    def stop(self, until_unix: float | None = None) -> None:
        """Fetches what is left, waiting a few seconds for the meter to settle, and closes the files.

        `until_unix`: the end of the window, on this host's clock. A source without a split knows only its
        samples, so one at or after that end is waited for, for 35 s at most.
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
        self._energy.close()
        self._splits.close()

    def _meter_now(self) -> float:
        return self._now() + self._clock.offset_seconds

    def _await_sample(self, end: float) -> None:
        """While the loop still polls: until every device has a sample at `end`, meter's clock, or later."""
        deadline = max(self._meter_now(), end) + _LAST_SAMPLE_SECONDS
        while self._meter_now() < deadline and min(self._next.values(), default=-math.inf) < end:
            time.sleep(0.1)

    def _loop(self) -> None:
        self._guarded(self._poll_series)
        while not self._stop.wait(self._interval):
            self._guarded(self._poll_series)
            self._guarded(self._poll_split, self._meter_now() - _SPLIT_DELAY_SECONDS, False)

    def _guarded(self, poll: Callable[..., None], *args: object) -> None:
        try:
            poll(*args)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if len(self.errors) < 100:
                self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def _poll_series(self) -> None:
        begin = min(self._next.values(), default=self._begin - 2.0)
        for device in self._client.series(begin, self._meter_now()):
            self._write_device(device)
        watts = [v for v in self._last_watts.values() if not math.isnan(v)]
        self.latest_watts = sum(watts) if watts else None

    def _write_device(self, device: dict[str, Any]) -> None:
        name = str(device["id"])
        seconds = np.asarray(device["unix_seconds"], np.float64)
        joules, watts = _floats(device["joules"]), _floats(device["watts"])
        fresh = seconds > self._next.get(name, -math.inf)
        seconds, joules, watts = seconds[fresh], joules[fresh], watts[fresh]
        if not len(seconds):
            return
        known = joules[~np.isnan(joules)]
        if name not in self._base and len(known):
            self._base[name] = float(known[0])
        self._next[name] = float(seconds[-1])
        self._last_watts[name] = float(watts[-1])
        columns = [
            pa.array([name] * len(seconds), pa.string()),
            pa.array(seconds),
            pa.array(joules - self._base.get(name, 0.0), from_pandas=True),
            pa.array(watts, from_pandas=True),
            pa.array([str(device.get("source"))] * len(seconds), pa.string()),
        ]
        self._energy.write(pa.RecordBatch.from_arrays(columns, schema=ENERGY_SCHEMA))

    def _poll_split(self, until: float, last: bool) -> None:
        """Writes the blocks that end by `until`, up to the first that is not settled; `last`:

        that one too.
        """
        while self._client.has_split and self._split_next + self._split <= until:
            end = self._split_next + self._split
            answer = self._client.window(self._split_next, end)
            if not answer.get("complete") and not last:
                return
            self._splits.write(split_batch(answer, self._split_next, end))
            self._split_next = end


def split_batch(answer: dict[str, Any], start: float, end: float) -> pa.RecordBatch:
    """One answer of GET /energy for a window as one row of energy_split.parquet."""
    shared = answer.get("attributed_joules") or {}
    row = {
        "start_unix": start,
        "end_unix": end,
        "complete": bool(answer.get("complete")),
        "total_joules": number_or_none(answer.get("total_joules")),
        "idle_joules": number_or_none(answer.get("idle_joules")),
        "prefill_joules": number_or_none(shared.get("prefill")),
        "decode_joules": number_or_none(shared.get("decode")),
        "unattributed_joules": number_or_none(answer.get("unattributed_joules")),
        "flags": [str(flag) for flag in answer.get("flags") or []],
    }
    return pa.RecordBatch.from_pylist([row], schema=SPLIT_SCHEMA)


def _floats(values: Sequence[float | None]) -> Any:
    return np.array([math.nan if v is None else v for v in values], np.float64)
