"""A real Prometheus has scraped the real server and real load tests: every panel and rule must answer."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import dashboard as boards
from checker import live
from checker.agreement import compare
from checker.system import RUNS, System, system

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2] / "dashboards"
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))

# A simulated GPU has no such sensor; test_sensors.py shows these panels with a device that has.
NO_SENSOR_IN_A_VIRTUAL_GPU = {
    "Temperature",
    "Maximum temperature",
    "SM clock",
    "Counter against power, relative difference",
}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (.ci/services installs Debian's)")
    with system(tmp_path_factory.mktemp("system")) as running:
        yield running


def _without_missing_sensors(faults: list[str]) -> list[str]:
    return [f for f in faults if not any(f" / {title}: empty" in f for title in NO_SENSOR_IN_A_VIRTUAL_GPU)]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_every_panel_answers_with_data(scraped: System, path: Path) -> None:
    faults = live.faults(boards.read(path), scraped.prometheus, scraped.span)
    assert not _without_missing_sensors(faults), "\n".join(faults)


def test_every_rule_is_healthy_and_every_recorded_one_has_data(scraped: System) -> None:
    rules = scraped.prometheus.rules()
    assert len(rules) > 50
    assert not [f"{r['name']}: {r.get('lastError')}" for r in rules if r["health"] != "ok"]
    empty = [
        r["name"]
        for r in rules
        if r["type"] == "recording"
        and not scraped.prometheus.range(r["name"], scraped.span.start, scraped.span.end, 5)
    ]
    assert not empty


# True of a machine that other programs keep busy: no fault of the rules, whose limits promtool tests exactly.
BUSY_MACHINE = {"ClientSaturated", "SimulationLate"}


def test_no_alert_fires_on_a_healthy_system(scraped: System) -> None:
    firing = scraped.prometheus.range('ALERTS{alertstate="firing"}', scraped.span.start, scraped.span.end, 5)
    assert not [s.labels for s in firing if s.labels["alertname"] not in BUSY_MACHINE]


@pytest.mark.parametrize("name", RUNS)
def test_prometheus_agrees_with_run_json(scraped: System, name: str) -> None:
    for row in compare(scraped.prometheus, scraped.runs[name], name):
        assert row.difference <= 0.01, row


def test_buckets_add_up_to_the_counter(scraped: System) -> None:
    """Both since the server's start; what is not settled yet is a few seconds of idling at the end."""
    counter, buckets = (
        scraped.prometheus.instant(f"sum({metric})", scraped.span.end)[0].samples[0][1]
        for metric in ("wattserve_device_energy_joules_total", "wattserve_energy_joules_total")
    )
    assert buckets == pytest.approx(counter, rel=0.015)


Board = dict[str, Any]


def _expr(title: str, old: str, new: str) -> Callable[[Board], None]:
    def change(board: Board) -> None:
        panel = next(p for p in boards.panels(board) if p["title"] == title)
        panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace(old, new)

    return change


def _legend(board: Board) -> None:
    panel = next(p for p in boards.panels(board) if p["title"] == "Power by component")
    panel["targets"][0]["legendFormat"] = "{{componnt}}"


def _variable(board: Board) -> None:
    model = next(v for v in board["templating"]["list"] if v["name"] == "model")
    model["query"]["query"] = "label_values(wattserve_energy_joules, model)"


def _annotation(board: Board) -> None:
    board["annotations"]["list"][0]["expr"] = 'wattload_phases{run=~"$run"} > 0'


PLANTED: dict[str, tuple[Callable[[Board], None], str]] = {
    "a wrong metric name": (_expr("Power", "_power_watts", "_watts"), "empty"),
    "a metric without _total": (_expr("Power by component", "joules_total", "joules"), "empty"),
    "vLLM's prefix without the colon": (_expr("Running and waiting requests", "vllm:", "vllm_"), "empty"),
    "a wrong label": (_expr("KV cache usage", "model_name=~", "model_id=~"), "empty"),
    "a wrong label value": (_expr("Power by device", 'device=~"$device"', 'device="gpu0"'), "empty"),
    "a rate over less than two scrapes": (_expr("Request rate", "$__rate_interval", "3s"), "empty"),
    "a quantile without le": (_expr("Time to first token (TTFT)", "by (le)", "by (model_name)"), "empty"),
    "broken PromQL": (_expr("Power", "sum(", "sum(("), "error"),
    "an undefined variable": (_expr("Power", "$device", "$gpu"), "empty"),
    "two sides that never match": (
        _expr("Tokens per kWh", "model:", "run:send_lag_p99_seconds:rate1m / on (model) model:"),
        "empty",
    ),
    "a legend of a label that is not there": (_legend, "legend names the label componnt"),
    "a variable of a metric that is not there": (_variable, "has no values"),
    "an annotation of a metric that is not there": (_annotation, "annotation"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistake_is_found(scraped: System, mistake: str) -> None:
    board = boards.read(ROOT / "grafana" / "dashboards" / "energy-of-serving.json")
    planted = copy.deepcopy(board)
    change, expected = PLANTED[mistake]
    change(planted)
    assert planted != board, "the mistake was not planted"
    before = set(live.faults(board, scraped.prometheus, scraped.span))
    found = set(live.faults(planted, scraped.prometheus, scraped.span)) - before
    assert any(expected in fault for fault in found), found
