"""From rows to common metrics over time: sums over engines and addresses, counters that restart, and gaps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine_metrics import DYNAMO, PAGES, VLLM
from wattload.rundir.directory import SERVER_METRICS_SCHEMA
from wattload.server_metrics.common import COMMON, ORIGINS, SCRAPE_SECONDS
from wattload.server_metrics.exposition import Exposition
from wattload.server_metrics.panels import panels
from wattload.server_metrics.series import CommonSeries, common_series

BEGIN = 1_700_000_000.0
Row = tuple[float, str, str, str, float]


def table_of(rows: list[Row]) -> pa.Table:
    """(seconds, target, metric, labels, value) as server_metrics.parquet has them, with a row per reading."""
    reads = {(unix, target) for unix, target, *_ in rows}
    rows = [*rows, *((unix, target, SCRAPE_SECONDS, "", 0.01) for unix, target in reads)]
    columns = list(zip(*sorted(rows), strict=True))
    kinds = ["gauge"] * len(rows)
    arrays = [pa.array(values) for values in (*columns[:4], kinds, columns[4])]
    return pa.Table.from_arrays(arrays, schema=SERVER_METRICS_SCHEMA)


def page_rows(text: str, target: str, unix: float) -> list[Row]:
    page = Exposition()
    places, values = page.read(text)
    series = [page.series[place] for place in places]
    return [
        (unix, target, one.metric, one.labels, value)
        for one, value in zip(series, values.tolist(), strict=True)
    ]


def counter(values: dict[float, float], target: str = "a", labels: str = "") -> list[Row]:
    return [(t, target, "vllm:num_preemptions_total", labels, value) for t, value in values.items()]


@pytest.mark.parametrize("engine", sorted(PAGES))
def test_each_engine_is_read_into_common_names(engine: str) -> None:
    text, gauges = PAGES[engine]
    found = common_series(table_of([row for t in (BEGIN, BEGIN + 1) for row in page_rows(text, "a", t)]))
    shown = {name: one.values[-1] for name, one in found.items() if one.common.kind == "gauge"}
    assert shown == pytest.approx(gauges)
    assert all(one.values[-1] == 0 for one in found.values() if one.common.kind == "counter")


# Counters of a page that gain as much again between two readings, by common name.
COUNTED = {
    "SGLang": {"prefix_cache_queries": 8_129_902, "prefix_cache_hits": 2_500_000, "preemptions": 4},
    "TensorRT-LLM": {
        "prefix_cache_queries": 20_000,
        "prefix_cache_hits": 6_400,
        "draft_tokens": 900,
        "draft_tokens_accepted": 540,
        "prompt_tokens": 20_000,
        "output_tokens": 7_000,
    },
    "llama.cpp": {
        "prompt_tokens": 12_000,
        "output_tokens": 4_000,
        "draft_steps": 120,
        "draft_tokens": 480,
        "draft_tokens_accepted": 300,
    },
    "Dynamo": {"prefix_cache_queries": 9_000, "prefix_cache_hits": 3_600, "output_tokens": 1_234},
}


@pytest.mark.parametrize("engine", sorted(COUNTED))
def test_what_an_engine_counted_between_two_readings(engine: str) -> None:
    first = page_rows(PAGES[engine][0], "a", BEGIN)
    second = [(BEGIN + 1, *row[1:4], 2 * row[4]) for row in first]
    found = common_series(table_of([*first, *second]))
    gained = {name: one.values[-1] for name, one in found.items() if one.common.kind == "counter"}
    assert {name: gained[name] for name in COUNTED[engine]} == pytest.approx(COUNTED[engine])
    if engine == "llama.cpp":
        # Its prompt tokens are without the cached ones: no share of them is a hit rate.
        assert not {"prefix_cache_queries", "prefix_cache_hits"} & gained.keys()


def test_every_origin_has_a_common_metric_and_every_common_metric_an_origin() -> None:
    assert {origin.common for origin in ORIGINS} == set(COMMON)
    assert len({(o.engine, o.common, o.metric) for o in ORIGINS}) == len(ORIGINS)


def test_replicas_add_up_and_fractions_are_averaged() -> None:
    rows = [
        row
        for t in (BEGIN, BEGIN + 1)
        for row in [*page_rows(VLLM, "a", t), *page_rows(PAGES["SGLang"][0], "b", t + 0.1)]
    ]
    found = common_series(table_of(rows))
    assert found["requests_running"].values.tolist() == [18, 18]
    assert found["kv_cache_used_fraction"].values == pytest.approx([(0.375 + 0.28) / 2] * 2)


def test_a_router_is_not_added_to_the_engines_behind_it() -> None:
    rows = [row for t in (BEGIN, BEGIN + 1) for row in page_rows(DYNAMO, "router", t)]
    rows += [row for t in (BEGIN, BEGIN + 1) for row in page_rows(VLLM, "worker", t)]
    found = common_series(table_of(rows))
    assert found["requests_waiting"].values.tolist() == [2, 2]
    assert found["requests_in_flight"].values.tolist() == [11, 11]


def test_a_gauge_is_not_known_where_one_address_was_not_read() -> None:
    times = BEGIN + np.arange(20.0)
    rows: list[Row] = [(t, "a", "vllm:num_requests_running", "", 4) for t in times]
    rows += [(t, "b", "vllm:num_requests_running", "", 2) for t in times if not 5 < t - BEGIN < 14]
    running = common_series(table_of(rows))["requests_running"]
    assert running.values[:4].tolist() == [6, 6, 6, 6]
    assert np.isnan(running.values[10])
    assert running.mean(BEGIN, BEGIN + 20) == pytest.approx(6)


def test_a_counter_that_restarts_counts_on() -> None:
    found = common_series(table_of(counter({BEGIN: 100, BEGIN + 1: 110, BEGIN + 2: 3, BEGIN + 3: 5})))
    assert found["preemptions"].values.tolist() == [0, 10, 13, 15]


def test_a_counter_that_appears_during_the_run_began_at_zero() -> None:
    rows = counter({BEGIN: 1, BEGIN + 1: 1, BEGIN + 2: 1}, labels='engine="0"')
    rows += counter({BEGIN + 1: 4, BEGIN + 2: 6}, labels='engine="1"')
    assert common_series(table_of(rows))["preemptions"].values.tolist() == [0, 4, 6]


def test_means_and_gains_of_a_window() -> None:
    times = BEGIN + np.arange(11.0)
    ramp = CommonSeries(COMMON["requests_running"], times, np.arange(11.0))
    assert ramp.mean(BEGIN + 2, BEGIN + 4) == pytest.approx(3)
    assert ramp.mean(BEGIN + 2.5, BEGIN + 2.75) == pytest.approx(2.625)
    assert ramp.mean(BEGIN + 30, BEGIN + 40) is None
    counted = CommonSeries(COMMON["preemptions"], times, 2 * np.arange(11.0))
    assert counted.gained(BEGIN + 2, BEGIN + 4) == pytest.approx(4)
    assert counted.gained(BEGIN + 2, BEGIN + 40) is None


def test_a_gap_breaks_the_line_and_is_not_averaged_over() -> None:
    times = BEGIN + np.array([0.0, 1, 2, 30, 31, 32])
    rows: list[Row] = [(t, "a", "vllm:num_requests_running", "", 4) for t in times[:3]]
    rows += [(t, "a", "vllm:num_requests_running", "", 40) for t in times[3:]]
    series = common_series(table_of(rows))
    (panel,) = panels(series)
    assert np.isnan(panel.lines[0].values).sum() == 1
    assert series["requests_running"].mean(BEGIN, BEGIN + 32) == pytest.approx(22)


def test_the_panels_of_a_run_with_drafts_and_a_prefix_cache() -> None:
    pages = []
    for second in range(13):
        text = VLLM.replace(" 400.0", f" {400 + 30 * second}.0").replace(
            " 1000.0", f" {1000 + 60 * second}.0"
        )
        pages += page_rows(
            text.replace(" 60.0\n", f" {60 + second}\n").replace(" 90.0\n", f" {90 + 4 * second}\n"),
            "a",
            BEGIN + second,
        )
    found = {panel.title: panel for panel in panels(common_series(table_of(pages)))}
    lines = {line.title: line for line in found["Cache and drafts"].lines}
    assert lines["Prefix cache hit rate"].values == pytest.approx(0.5)
    assert lines["Draft acceptance"].values == pytest.approx(0.25)
    assert [line.title for line in found["Requests at the server"].lines] == ["Batch size", "Queue"]
    assert found["Preemptions"].lines[0].values == pytest.approx(0)


def test_nothing_is_shown_of_what_no_server_shows() -> None:
    assert panels(common_series(table_of([(BEGIN, "a", "other", "", 1.0)]))) == []
