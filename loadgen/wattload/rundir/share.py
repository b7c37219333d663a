"""A copy of a run that may be published: its numbers, and nothing of who ran it, where, or on what data.

Kept are the rows of requests with their times, tokens and joules, the energy of the devices, the settings
that shape a load, and the versions. Names are replaced: hosts and addresses, GPUs by their UUIDs, tenants,
request ids, files. Texts that a server or a person wrote are left out: errors, headers, bodies, commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from wattload.errors import InputError
from wattload.redaction import plain
from wattload.rundir.directory import (
    ENERGY_SCHEMA,
    REQUEST_SCHEMA,
    SPLIT_SCHEMA,
    Capture,
    RunDir,
)
from wattload.rundir.tables import parquet_writer

# Settings that say how a load was made and nothing about whose it is.
SETTINGS_KEPT = frozenset(
    {
        "api", "arrivals", "between_tokens_timeout", "connect_timeout", "content_salt", "drain", "duration",
        "exact_output", "first_token_timeout", "footprint", "image", "inputs", "max_failures", "max_length",
        "output_limit", "prefix_share", "processes", "rate", "repeat", "requests", "seed", "sessions",
        "slo", "sort", "total_timeout", "until", "vocab_size", "warmup",
    }
)  # fmt: skip
_HOST_KEPT = ("system", "machine", "cores", "workers")
_COLUMNS_LEFT_OUT = ("error", "unread")
_SHORTEST = 3


def share(run: RunDir, to: Path) -> RunDir:
    """Writes the tables and the capture of `run` into the new directory `to`; its numbers are still to be
    computed. Raises InputError where `to` cannot be made, or where a name would be left in it.
    """
    capture = run.load_capture()
    requests = run.read_requests()
    energy, split = run.read_energy(), run.read_split()
    names = _replacements(capture, requests, energy)
    shared = RunDir.create(to)
    shared.save_capture(_capture(capture, names, shared.path.name))
    _write_requests(run, shared, names)
    if energy is not None:
        devices = [names.get(name, name) for name in energy.column("device").to_pylist()]
        energy = energy.set_column(0, "device", pa.array(devices, pa.string()))
        with parquet_writer(shared.energy_path, ENERGY_SCHEMA) as writer:
            writer.write_table(energy.select(ENERGY_SCHEMA.names))
    if split is not None:
        with parquet_writer(shared.split_path, SPLIT_SCHEMA) as writer:
            writer.write_table(split.select(SPLIT_SCHEMA.names))
    return shared


def names_left(run: RunDir, shared: RunDir) -> list[str]:
    """Names of `run` that are in a text file of `shared`; empty where it may be published."""
    names = _replacements(run.load_capture(), run.read_requests(), run.read_energy())
    texts = [
        path.read_text(encoding="utf-8")
        for path in shared.path.iterdir()
        if path.suffix in (".json", ".html")
    ]
    return [name for name in names if any(_whole(name).search(text) for text in texts)]


def _replacements(capture: Capture, requests: pa.Table, energy: pa.Table | None) -> dict[str, str]:
    """What must not be found in the copy, and what takes its place."""
    names: dict[str, str] = {}
    target = capture.target.model_dump(mode="json")
    for place, address in (("endpoint", capture.target.url), ("meter", capture.energy_url or "")):
        host = urlsplit(address.removeprefix("dcgm+").removeprefix("prometheus+")).hostname
        if host and host not in ("localhost", "127.0.0.1", "::1"):
            names[host] = place
    clock = capture.clock
    names |= {host: f"meter-{number}" for number, host in enumerate(sorted((clock and clock.hosts) or {}), 1)}
    if capture.host.get("name"):
        names[str(capture.host["name"])] = "client"
    known = {str(device.get("id")) for device in target["devices"]}
    known |= set(energy.column("device").unique().to_pylist()) if energy is not None else set()
    names |= {device: f"device-{number}" for number, device in enumerate(sorted(known))}
    tags = sorted({str(tag) for tag in requests.column("tag").unique().to_pylist()} - {"", "None"})
    names |= {tag: f"tenant-{number + 1}" for number, tag in enumerate(tags)}
    for trace in capture.workload.trace.split(" + "):
        if "/" in trace or "." in trace:
            names[trace] = "trace"
    return {name: place for name, place in names.items() if len(name) >= _SHORTEST and name != place}


def _whole(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name in sorted(names, key=len, reverse=True):
            value = _whole(name).sub(names[name], value)
        return value
    if isinstance(value, Mapping):
        return {_replaced(key, names): _replaced(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    return value


def _capture(capture: Capture, names: Mapping[str, str], name: str) -> Capture:
    raw = json.loads(capture.model_dump_json(by_alias=True))
    probe = raw.get("energy_probe") or {}
    raw |= {
        "name": name,
        "reasons": [_without_quotes(reason) for reason in raw["reasons"]],
        "host": {key: raw["host"][key] for key in _HOST_KEPT if key in raw["host"]},
        "config": {key: value for key, value in raw["config"].items() if key in SETTINGS_KEPT},
        "target": {**raw["target"], "url": "http://endpoint"},
        # Labels of metrics hold names of models, pods and hosts: the server's metrics are not in the copy.
        "server_metrics": None,
        "energy_url": None if raw["energy_url"] is None else "http://meter",
        "energy_probe": {key: probe[key] for key in ("idle", "devices", "source") if key in probe} or None,
    }
    return Capture.model_validate(plain(_replaced(raw, names)))


def _without_quotes(reason: str) -> str:
    """A reason without what was said by others: it stands after the first colon."""
    return reason.partition(":")[0]


def _write_requests(run: RunDir, shared: RunDir, names: Mapping[str, str]) -> None:
    columns = [name for name in REQUEST_SCHEMA.names if name != "itl_seconds"]
    gaps = iter(run.itl_batches(columns))
    with parquet_writer(shared.requests_path, REQUEST_SCHEMA) as writer:
        for given in gaps:
            table = given
            count = table.num_rows
            index = table.column("index").to_pylist()
            changed = {
                "request_id": [f"r-{number}" for number in index],
                "tag": [names.get(tag, tag) if tag else tag for tag in table.column("tag").to_pylist()],
                **{name: [None] * count for name in _COLUMNS_LEFT_OUT if name in REQUEST_SCHEMA.names},
            }
            for name, values in changed.items():
                place = table.schema.get_field_index(name)
                table = table.set_column(place, name, pa.array(values, REQUEST_SCHEMA.field(name).type))
            writer.write_table(table.select(REQUEST_SCHEMA.names))


def check(run: RunDir, shared: RunDir) -> None:
    """Raises InputError where a name of `run` is left in `shared`, whatever way it took."""
    left = names_left(run, shared)
    if left:
        raise InputError(
            "share",
            f": {shared.path} still has {len(left)} names of the run in it ({left[0]!r}, ...); it is not"
            " to be published",
        )
