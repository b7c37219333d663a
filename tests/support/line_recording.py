"""The line formats in which the H200 study recorded steps and readings, read as a `Recording`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from wattmeter.steps.batch import ENTRY_COLUMNS, StepBatch
from wattmeter.steps.recording import CounterSeries, Recording


def read_lines(folder: Path | str) -> Recording:
    """Read a recording in the line formats of the H200 study: nvml.csv.gz, steps.jsonl.gz and recs.json.gz.

    nvml: unix seconds, energy mJ, power mW, instant mW. steps: `[unix seconds, [[request id, scheduled
    tokens, context before, prompt tokens], ...]]` at the launch of a step and `["done", unix seconds,
    tokens]` at its end, first launched first done. recs: request records and phase marks, kept in `meta`.
    Monotonic nanoseconds here are the UNIX time's, from the whole second before the first reading
    (`unix_minus_monotonic_seconds`), so that float64 keeps them exact.
    """
    path = Path(folder)
    with gzip.open(path / "nvml.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float64)
    with gzip.open(path / "recs.json.gz", "rt") as file:
        meta: dict[str, Any] = json.load(file)
    offset = float(np.floor(table[0, 0]))
    meta["unix_minus_monotonic_seconds"] = offset
    launches: list[float] = []
    ends: list[float] = []
    entries: list[tuple[int, int, int, int, int]] = []
    numbers: dict[str, int] = {}
    with gzip.open(path / "steps.jsonl.gz", "rt") as file:
        for line in file:
            event = json.loads(line)
            if event[0] == "done":
                ends.append(event[1])
                continue
            for name, scheduled, context, prompt in event[1]:
                prefill = max(min(scheduled, prompt - context), 0)
                request = numbers.setdefault(name, len(numbers))
                entries.append((len(launches), request, prefill, scheduled - prefill, context))
            launches.append(event[0])
    if len(ends) != len(launches):
        raise ValueError(f"recording: {path}: {len(launches)} steps launched but {len(ends)} done")
    table_ns = np.round((table[:, 0] - offset) * 1e9).astype(np.int64)
    array = np.array(entries, dtype=np.int32).reshape(-1, 5)
    steps = StepBatch.of(
        tuple(numbers),
        {
            "index": np.arange(len(launches)),
            "launch_ns": np.round((np.array(launches) - offset) * 1e9),
            "end_ns": np.round((np.array(ends) - offset) * 1e9),
            **dict(zip(ENTRY_COLUMNS, array.T, strict=False)),
        },
    )
    device = CounterSeries(table_ns, table[:, 1] * 1e-3, table[:, 3] * 1e-3)
    return Recording(steps, {"gpu-0": device}, meta)
