"""What only the endpoint can say after the load: the requests' settled joules, and the window's energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from wattload.crash_safe_table import parquet_writer
from wattload.energy_client import EnergySource, RequestJoules
from wattload.measure_columns import read_requests
from wattload.measure_window import decide_window
from wattload.rundir import REQUEST_SCHEMA, RunDir
from wattload.runjson import WindowInfo


def collect(run: RunDir, client: EnergySource, *, settle_seconds: float = 15.0) -> list[str]:
    """Asks the endpoint for what it can only say after the load:

    requests' settled joules, the window's energy.

    Rewrites requests.parquet and capture.json. Gives back sentences on what could not be had; never raises
    for the network's sake, since the run directory is worth keeping whatever the endpoint does now.
    """
    capture = run.load_capture()
    problems: list[str] = []
    if not client.has_split:
        return problems
    try:
        capture.clock_after = client.clock()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the meter's clock could not be asked again: {error}")
    window = decide_window(capture, read_requests(run))
    try:
        ids = run.read_requests(["request_id", "sent_unix"])
        sent = ids.filter(pa.compute.is_valid(ids.column("sent_unix")))
        found = client.settle(sent.column("request_id").to_pylist(), timeout_seconds=settle_seconds)
        rewrite_requests(run, found, window)
        late = sum(1 for entry in found.values() if entry.status == "provisional")
        if late:
            problems.append(f"{late} requests were still provisional {settle_seconds:g} s after the load")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the requests' settled energy could not be fetched: {error}")
    try:
        offset = capture.clock.offset_seconds if capture.clock is not None else 0.0
        if window.end_unix > window.start_unix:
            # The last answer may come before the planned arrivals end; the window goes on to there all the
            # same.
            time.sleep(max(0.0, window.end_unix - time.time()))
            start, end = window.start_unix + offset, window.end_unix + offset
            capture.energy_window = settled_window(client, start, end, timeout_seconds=settle_seconds)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the window's energy could not be fetched: {error}")
    run.save_capture(capture)
    return problems


def settled_window(
    client: EnergySource, start_unix: float, end_unix: float, *, timeout_seconds: float
) -> dict[str, Any]:
    """The endpoint's energy of [start, end), meter's clock; asked again until complete or time is up."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        said = client.window(start_unix, end_unix)
        if said.get("complete") or time.monotonic() >= deadline:
            return said
        time.sleep(0.2)


def rewrite_requests(
    run: RunDir, found: Mapping[str, RequestJoules], window: WindowInfo | None = None
) -> None:
    """Puts settled energy into requests.parquet, a row group at a time; the old file stays until all is
    written.
    """

    def settled(table: pa.Table) -> pa.Table:
        entries = [found.get(key) for key in table.column("request_id").to_pylist()]
        old = table.column("energy_status").to_pylist()
        columns: dict[str, list[Any]] = {
            "energy_joules": [e.joules if e else None for e in entries],
            "prefill_joules": [e.prefill_joules if e else None for e in entries],
            "decode_joules": [e.decode_joules if e else None for e in entries],
            "energy_status": [e.status if e else o for e, o in zip(entries, old, strict=True)],
        }
        table = _marked(table, window)
        for name, values in columns.items():
            fresh = pa.array(values, REQUEST_SCHEMA.field(name).type)
            if name != "energy_status":
                # What the response said stays where the endpoint has no later figure.
                fresh = pa.compute.coalesce(fresh, table.column(name).combine_chunks())
            table = table.set_column(table.schema.get_field_index(name), name, fresh)
        return table

    _rewrite(run, settled)


def mark_window(run: RunDir, window: WindowInfo) -> None:
    """Sets `in_window`, unless the file has it so already: rewriting a large one takes seconds."""
    old = run.read_requests(["due_unix", "in_window"])
    due = old.column("due_unix").to_numpy()
    now = pa.array((due >= window.start_unix) & (due < window.end_unix))
    if old.column("in_window").combine_chunks().equals(now):
        return

    _rewrite(run, lambda table: _marked(table, window))


def _marked(table: pa.Table, window: WindowInfo | None) -> pa.Table:
    if window is None:
        return table
    due = table.column("due_unix").to_numpy()
    inside = pa.array((due >= window.start_unix) & (due < window.end_unix))
    return table.set_column(table.schema.get_field_index("in_window"), "in_window", inside)


def _rewrite(run: RunDir, change: Callable[[pa.Table], pa.Table]) -> None:
    run.read_requests(
        ["index"]
    )  # recovers a partial file, and says in a sentence what is wrong with the file
    temporary = run.requests_path.with_name(".requests.parquet.new")
    with (
        pq.ParquetFile(run.requests_path) as source,
        parquet_writer(temporary, source.schema_arrow) as sink,
    ):
        for group in range(source.metadata.num_row_groups):
            sink.write_table(change(source.read_row_group(group)))
    temporary.replace(run.requests_path)
