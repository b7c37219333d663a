"""What only the endpoint can say after the load: the requests' settled joules, and the window's energy."""

from __future__ import annotations

import time

import httpx
import pyarrow as pa
import pyarrow.compute

from wattload.analysis.window import decide_window
from wattload.clock import unix_now
from wattload.energy.client import EnergySource
from wattload.energy.settled import table_of
from wattload.rundir.directory import SETTLED_SCHEMA, RunDir
from wattload.rundir.requests import read_requests
from wattload.rundir.result import WindowInfo
from wattmeter.schema import PROVISIONAL, WindowEnergy


def collect(run: RunDir, client: EnergySource, *, settle_seconds: float = 15.0) -> list[str]:
    """Asks the endpoint for the requests' settled joules and for the window's energy, once the load is over.

    Writes requests.parquet, and the window's energy into capture.json. Returns sentences on what could not be
    had; never raises because of the network, since the run directory is worth keeping whatever the endpoint
    does now. Raises OSError where a file cannot be written.
    """
    capture = run.load_capture()
    problems: list[str] = []
    if not client.has_split:
        return problems
    try:
        capture.clock_after = client.clock()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the meter's clock could not be read again: {error}")
    window = decide_window(capture, read_requests(run))
    try:
        ids = run.read_requests(["request_id", "sent_unix"])
        known = run.read_settled()
        asked = pa.compute.and_not(
            pa.compute.is_valid(ids.column("sent_unix")),
            pa.compute.is_in(ids.column("request_id"), value_set=known.column("request_id")),
        )
        sent = ids.column("request_id").filter(asked).to_pylist()
        found = client.settle(sent, timeout_seconds=settle_seconds)
        write_requests(run, window, pa.concat_tables([known, table_of(found)]))
        late = sum(1 for entry in found.values() if entry.status == PROVISIONAL)
        if late:
            problems.append(f"{late} requests were still provisional {settle_seconds:g} s after the load")
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the requests' final energy could not be fetched: {error}")
    try:
        offset = capture.clock.offset_seconds if capture.clock is not None else 0.0
        if window.end_unix > window.start_unix:
            # The last response may come before the end of the planned arrivals, which the window lasts to.
            time.sleep(max(0.0, window.end_unix - unix_now()))
            start, end = window.start_unix + offset, window.end_unix + offset
            energy = settled_window(client, start, end, timeout_seconds=settle_seconds)
            capture.energy_window = energy.to_json()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"the window's energy could not be fetched: {error}")
    run.save_capture(capture)
    return problems


def settled_window(
    client: EnergySource, start_unix: float, end_unix: float, *, timeout_seconds: float
) -> WindowEnergy:
    """The endpoint's energy of [start, end), meter's clock; asked again until complete or time is up."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        energy = client.window(start_unix, end_unix)
        if energy.complete or time.monotonic() >= deadline:
            return energy
        time.sleep(0.2)


def write_requests(run: RunDir, window: WindowInfo, settled: pa.Table | None = None) -> None:
    """Writes requests.parquet, once: the rows of the load, the requests' settled energy, and whether each was
    due in `window`. Where the file is there already, it stays as it is.

    `settled`: rows of SETTLED_SCHEMA, None: those of the load itself. What a response said stays where there
    is no later figure. Raises OSError where the file cannot be written; the stream of rows is kept then.
    """
    known = run.read_settled() if settled is None else settled
    places: pa.Array = None  # where in `known` each row of the run is
    begin = 0

    def completed(rows: pa.Table) -> pa.Table:
        nonlocal places, begin
        due = rows.column("due_unix").to_numpy()
        columns = {"in_window": pa.array((due >= window.start_unix) & (due < window.end_unix))}
        if known.num_rows:
            if places is None:
                ids = run.read_requests(["request_id"]).column(0)
                places = pa.compute.index_in(ids, value_set=known.column("request_id"))
            columns |= _settled_columns(rows, known.take(places.slice(begin, rows.num_rows)))
        begin += rows.num_rows
        for name, values in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows

    run.write_requests(completed)


def _settled_columns(rows: pa.Table, settled: pa.Table) -> dict[str, pa.Array]:
    """The figures of `rows`, those of `settled` in their place: it has a row each, null where it has none."""
    return {
        name: pa.compute.coalesce(settled.column(name), rows.column(name)).combine_chunks()
        for name in SETTLED_SCHEMA.names
        if name != "request_id"
    }
