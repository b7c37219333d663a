"""Servers' metrics become rows on the client's clock during a run, whatever becomes of the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

from engine_metrics import SGLANG, VLLM, showing
from wattload.clock import unix_now
from wattload.errors import InputError
from wattload.rundir.directory import RunDir
from wattload.server_metrics import scraper
from wattload.server_metrics.options import ServerMetricsOptions
from wattload.server_metrics.scraper import ServerMetrics, Target, metrics_of, targets_of


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reader(run: RunDir, *urls: str, **options: int) -> ServerMetrics:
    return ServerMetrics([Target(f"{url}/metrics") for url in urls], run, interval_seconds=0.02, **options)


def test_rows_of_every_reading_on_the_clients_clock(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    begin = unix_now()
    with showing(lambda: (200, VLLM)) as one, showing(lambda: (200, SGLANG)) as other:
        metrics = reader(run, one, other)
        metrics.begin_early()
        metrics.start()
        wait_for(lambda: min(target.scrapes for target in metrics.targets) >= 4)
        metrics.stop()
    assert metrics.notes == []
    table = run.read_server_metrics()
    assert table is not None
    assert (
        begin < min(table["unix_seconds"].to_pylist()) <= max(table["unix_seconds"].to_pylist()) < unix_now()
    )
    running = table.filter(pc.equal(table["metric"], "vllm:num_requests_running"))
    assert running.num_rows >= 8, "a series with a common name has a row for each reading"
    assert set(running["value"].to_pylist()) == {7.0, 5.0}
    own = table.filter(pc.equal(table["metric"], "sglang:gen_throughput"))
    assert own["value"].to_pylist() == [86.5], "another has one where its value changed"
    said = metrics.as_json()
    assert [target["engines"] for target in said["targets"]] == [["vLLM"], ["SGLang"]]
    assert not run.server_metrics_partial_path.exists()


def test_a_reading_that_fails_is_counted_by_its_reason_and_leaves_no_rows(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    answers = [(200, VLLM)]
    with showing(lambda: answers[0]) as url:
        metrics = reader(run, url)
        metrics.begin_early()
        metrics.start()
        wait_for(lambda: metrics.targets[0].scrapes >= 2)
        answers[0] = (503, "busy")
        wait_for(lambda: sum(metrics.targets[0].failures.values()) >= 2)
        read = metrics.targets[0].scrapes
        answers[0] = (200, VLLM)
        wait_for(lambda: metrics.targets[0].scrapes > read)
        metrics.stop()
    (reason,) = metrics.targets[0].failures
    assert "503" in reason
    table = run.read_server_metrics()
    assert table is not None
    reads = table.filter(pc.equal(table["metric"], "scrape_seconds")).num_rows
    assert reads == metrics.targets[0].scrapes
    assert (
        0.0 not in table.filter(pc.equal(table["metric"], "vllm:num_requests_running"))["value"].to_pylist()
    )


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (404, "no", "--enable-metrics"),
        (200, "<html></html>", "not an exposition"),
        (200, "[]", "under /prometheus/metrics (--server-metrics-url)"),
        (200, '\n{"iterations": 3}', "under /prometheus/metrics (--server-metrics-url)"),
        (200, "a 1\n" * 3_000_000, "MiB"),
    ],
)
def test_what_cannot_be_read_before_the_load_is_a_sentence_and_no_file(
    tmp_path: Path, status: int, text: str, said: str
) -> None:
    run = RunDir.create(tmp_path)
    with showing(lambda: (status, text)) as url:
        metrics = reader(run, url)
        metrics.begin_early()
        metrics.start()
        metrics.stop()
    (note,) = metrics.notes
    assert note.startswith(f"no server metrics of {url}/metrics: ")
    assert said in note
    assert list(tmp_path.iterdir()) == []
    assert run.read_server_metrics() is None


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    metrics = reader(RunDir.create(tmp_path), "http://127.0.0.1:9")
    metrics.begin_early()
    assert "connection refused" in metrics.notes[0]


def test_rows_of_other_series_are_bounded_and_common_ones_go_on(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    count = [0]

    def page() -> tuple[int, str]:
        count[0] += 1
        return 200, VLLM + f"own_metric {count[0]}\n"

    with showing(page) as url:
        metrics = reader(run, url, most_own_rows=6)
        metrics.begin_early()
        metrics.start()
        wait_for(lambda: metrics.targets[0].scrapes >= 8)
        metrics.stop()
    table = run.read_server_metrics()
    assert table is not None
    assert table.filter(pc.equal(table["metric"], "own_metric")).num_rows <= 6
    assert metrics.as_json()["rows_left_out"] > 0
    running = table.filter(pc.equal(table["metric"], "vllm:num_requests_running"))
    assert running.num_rows == 2 * metrics.targets[0].scrapes


def test_what_was_read_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with showing(lambda: (200, VLLM)) as url:
        reader(run, url).begin_early()
    assert run.server_metrics_partial_path.exists()
    table = run.read_server_metrics()
    assert table is not None
    assert "vllm:num_requests_running" in table["metric"].to_pylist()


def test_at_most_so_many_addresses(tmp_path: Path) -> None:
    urls = [f"http://h{number}:1" for number in range(scraper.MOST_TARGETS + 3)]
    metrics = reader(RunDir.create(tmp_path), *urls)
    assert len(metrics.targets) == scraper.MOST_TARGETS
    assert "of 11 addresses" in metrics.notes[0]


def test_keys_go_to_the_endpoint_alone() -> None:
    found = targets_of(
        ["http://one:8000/v1", "http://two:8000"],
        ["http://meter:8790", "http://one:8000"],
        headers={"Authorization": "Bearer k"},
        meter_headers={},
        tls=None,
    )
    assert {target.url: dict(target.headers) for target in found} == {
        "http://one:8000/metrics": {"Authorization": "Bearer k"},
        "http://two:8000/metrics": {"Authorization": "Bearer k"},
        "http://meter:8790/metrics": {},
    }
    named = targets_of(
        ["http://one"], [], headers={"a": "b"}, meter_headers={}, tls=None, named=["http://t:8002/metrics"]
    )
    assert [(target.url, dict(target.headers)) for target in named] == [("http://t:8002/metrics", {})]


def test_addresses() -> None:
    assert metrics_of("http://h:8000/v1") == "http://h:8000/metrics"
    assert metrics_of("https://h") == "https://h/metrics"
    assert metrics_of("http://h:8002/metrics") == "http://h:8002/metrics"
    assert metrics_of("http://h/engine/prometheus") == "http://h/engine/prometheus"


def test_options() -> None:
    options = ServerMetricsOptions.of({"server_metrics_url": ["triton:8002/metrics"]})
    assert options.server_metrics_url == ["http://triton:8002/metrics"]
    with pytest.raises(InputError, match="contradicts"):
        ServerMetricsOptions.of({"server_metrics_url": ["h:1"], "server_metrics": False})
    with pytest.raises(InputError, match="given twice"):
        ServerMetricsOptions.of({"server_metrics_url": ["h:1", "http://h:1"]})
    with pytest.raises(InputError, match="not an address"):
        ServerMetricsOptions.of({"server_metrics_url": ["ftp://h"]})
