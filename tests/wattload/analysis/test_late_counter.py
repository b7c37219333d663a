"""A counter that is constantly late is right in itself: only the load's start tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.late_counter import late_seconds
from wattload.rundir.directory import ENERGY_SCHEMA, RunDir
from wattload.rundir.requests import F64, read_requests
from wattload.rundir.result import RunJson
from wattload.rundir.tables import parquet_writer


def shown(made: Synthetic, late: float, *, every: float = 1.0, cached: float = 0.0) -> tuple[F64, F64]:
    """What an exporter shows of the run's counter, asked `every` seconds: times and joules."""
    before = made.grid[0] + np.arange(-40.0, 0.0, 0.1)
    joules = made.busy + made.idle_watts * (made.grid - made.grid[0])
    times = np.concatenate((before, made.grid))
    joules = np.concatenate((joules[0] - made.idle_watts * (made.grid[0] - before), joules))
    at = np.arange(made.grid[0], made.grid[-1], every)
    asked = np.floor(at / cached) * cached if cached else at
    return at, np.interp(asked - late, times, joules)


def table(times: F64, joules: F64, shares: tuple[float, ...] = (1.0,)) -> pa.Table:
    n, devices = len(times), len(shares)
    return pa.table(
        [
            pa.array([f"gpu{i}" for i in range(devices) for _ in range(n)]),
            pa.array(np.tile(times, devices)),
            pa.array(np.concatenate([joules * share for share in shares])),
            pa.nulls(n * devices, pa.float64()),
            pa.array(["dcgm"] * n * devices),
        ],
        schema=ENERGY_SCHEMA,
    )


def run(folder: Path, series: pa.Table, made: Synthetic, directory: RunDir) -> RunJson:
    directory.split_path.unlink()
    directory.energy_path.unlink()
    with parquet_writer(directory.energy_path, ENERGY_SCHEMA) as writer:
        writer.write_table(series)
    return finish(directory)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(
    ("late", "how"),
    [
        (20.0, {}),
        (10.0, {}),
        (20.0, {"every": 0.1}),
        (20.0, {"cached": 5.0}),
    ],
)
def test_a_counter_that_is_late_is_found_by_the_start_of_the_load(
    tmp_path: Path, late: float, how: dict[str, Any], offset: float
) -> None:
    made = Synthetic(rate=20.0, warmup=5.0, with_answer=False, source="dcgm", meter_offset_seconds=offset)
    directory = made.write(tmp_path / "run")
    times, joules = shown(made, late, **how)
    result = run(tmp_path, table(times + offset, joules), made, directory)
    assert "late_counter" in result.energy.flags
    assert not result.valid
    (said,) = [reason for reason in result.reasons if "after the first token" in reason]
    seconds = float(said.split(" rose ")[1].split(" s ")[0])
    assert late - 1.0 <= seconds <= late + 1.0 + 2 * how.get("cached", 1.0)


@pytest.mark.parametrize("late", [0.0, 2.0])
def test_a_counter_in_time_is_believed(tmp_path: Path, late: float) -> None:
    made = Synthetic(rate=20.0, warmup=5.0, with_answer=False, source="dcgm")
    directory = made.write(tmp_path / "run")
    result = run(tmp_path, table(*shown(made, late)), made, directory)
    assert result.energy.flags == []
    assert result.valid, result.reasons


def test_several_devices_are_late_together(tmp_path: Path) -> None:
    made = Synthetic(rate=20.0, with_answer=False)
    directory = made.write(tmp_path / "run")
    finish(directory)
    requests = read_requests(directory)
    for late, known in ((20.0, True), (0.0, False)):
        series = table(*shown(made, late), shares=(0.7, 0.3))
        assert (late_seconds(series, requests, 0.0) is not None) is known


@pytest.mark.parametrize("rate", [0.3, 1.0, 4.0, 30.0])
def test_no_load_makes_a_counter_in_time_late(tmp_path: Path, rate: float) -> None:
    """Bursts, long gaps, a device without idle power: whatever a load does, a true counter does with it."""
    for seed in range(6):
        made = Synthetic(rate=rate, seed=seed, idle_watts=(0.0, 30.0, 120.0)[seed % 3], with_answer=False)
        directory = made.write(tmp_path / f"{seed}")
        finish(directory)
        requests = read_requests(directory)
        for how in ({}, {"every": 0.1}, {"cached": 5.0}, {"cached": 15.0}):
            assert late_seconds(table(*shown(made, 0.0, **how)), requests, 0.0) is None


def test_a_load_that_grows_is_not_taken_for_a_late_counter(tmp_path: Path) -> None:
    """Few requests for 20 s, then many: the power rises with them, late after the first token."""
    due = np.sort(np.concatenate((np.arange(0.0, 20.0, 2.0), np.arange(20.0, 60.0, 0.05))))
    prompt, output = np.full(len(due), 300), np.full(len(due), 100)
    first = due + 0.1
    made = Synthetic(with_answer=False, lengths=(due, prompt, output, first, first + 1.1))
    directory = made.write(tmp_path / "run")
    finish(directory)
    requests = read_requests(directory)
    assert np.nanmin(requests.first) - BEGIN < 1
    assert late_seconds(table(*shown(made, 0.0)), requests, 0.0) is None


def test_what_cannot_be_looked_at_is_not_late(tmp_path: Path) -> None:
    made = Synthetic(rate=20.0, with_answer=False)
    directory = made.write(tmp_path / "run")
    finish(directory)
    requests = read_requests(directory)
    times, joules = shown(made, 20.0)
    for series in (
        table(times[:3], joules[:3]),
        table(times, np.full(len(times), np.nan)),
        table(times, joules[::-1]),
        table(times, np.full(len(times), 5.0)),
        table(times[:0], joules[:0]),
    ):
        assert late_seconds(series, requests, 0.0) is None
