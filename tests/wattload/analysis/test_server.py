"""The window's figures of the server's metrics, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.server import server_notes
from wattload.rundir.directory import SERVER_METRICS_SCHEMA, RunDir
from wattload.rundir.result import RunJson
from wattload.rundir.share import share
from wattload.rundir.tables import parquet_writer

TARGET = {
    "url": "http://h/metrics", "engines": ["vLLM"], "series": 4, "left_out": 0, "unreadable": None,
    "scrapes": 60, "failures": {},
}  # fmt: skip
READ = {"interval_seconds": 1.0, "targets": [TARGET], "rows_left_out": 0, "disk": None}


def run_with(path: Path, read: dict[str, object] | None, rows: list[tuple[str, float, float]]) -> RunDir:
    """A run of 60 s, of which 10 s are warm-up, with `rows` of (metric, second, value)."""
    run = Synthetic(overrides={"server_metrics": read}).write(path)
    if rows:
        columns = [
            [BEGIN + second for _, second, _ in rows], ["http://h/metrics"] * len(rows),
            [metric for metric, _, _ in rows], ['engine="0"'] * len(rows), ["gauge"] * len(rows),
            [value for _, _, value in rows],
        ]  # fmt: skip
        with parquet_writer(run.server_metrics_path, SERVER_METRICS_SCHEMA) as writer:
            writer.write_table(
                pa.Table.from_arrays([pa.array(c) for c in columns], schema=SERVER_METRICS_SCHEMA)
            )
    return run


def computed(path: Path, read: dict[str, object] | None, rows: list[tuple[str, float, float]]) -> RunJson:
    return finish(run_with(path, read, rows))


def rows_of_a_run() -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []
    for second in range(70):
        busy = 8.0 if second >= 10 else 0.0
        found += [
            ("vllm:num_requests_running", second, busy),
            ("vllm:num_preemptions_total", second, 100.0 + second),
            ("vllm:prefix_cache_queries_total", second, 1000.0 * second),
            ("vllm:prefix_cache_hits_total", second, 250.0 * second),
        ]
    return found


def test_means_and_sums_are_of_the_window(tmp_path: Path) -> None:
    server = computed(tmp_path / "run", READ, rows_of_a_run()).server
    assert server is not None
    assert server.requests_running == pytest.approx(8)
    assert server.preemptions == pytest.approx(50)
    assert server.prefix_cache_hit_fraction == pytest.approx(0.25)
    assert server.requests_waiting is None


def test_none_where_none_were_read_with_the_reason(tmp_path: Path) -> None:
    gone = {**READ, "targets": [{**TARGET, "scrapes": 0, "failures": {"it answered 404": 1}}]}
    run = computed(tmp_path / "gone", gone, [])
    assert run.server is None
    assert run.absent["server"] == "no server's metrics could be read: http://h/metrics: it answered 404"
    assert not any("readings" in note for note in run.notes)
    assert computed(tmp_path / "off", None, []).absent["server"] == "no server's metrics were read"


def test_failed_readings_and_bounds_are_notes(tmp_path: Path) -> None:
    target = {**TARGET, "failures": {"it did not respond in time": 3, "other": 1}, "left_out": 20}
    run = computed(tmp_path / "run", {**READ, "targets": [target], "rows_left_out": 9}, rows_of_a_run())
    said = "\n".join(run.notes)
    assert "4 of 64 readings of the server metrics at http://h/metrics failed" in said
    assert "it did not respond in time" in said
    assert "20 series" in said
    assert "9 values" in said
    assert run.valid, "what the server says of itself never decides about the run"
    assert server_notes(None) == []


def test_a_copy_to_be_published_has_none_of_them(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", READ, rows_of_a_run())
    finish(run)
    shared = share(run, tmp_path / "shared")
    assert shared.read_server_metrics() is None
    assert shared.load_capture().server_metrics is None
