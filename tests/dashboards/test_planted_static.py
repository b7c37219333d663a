"""A test of the tests: mistakes people make in dashboards and rules, planted; reading must find each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checker import dashboard as boards
from checker import static
from checker.dimension import JOULE, SECOND, WATT
from checker.names import recorded, unit_accepts

ROOT = Path(__file__).resolve().parents[2] / "dashboards"
Board = dict[str, Any]


@pytest.fixture(scope="module")
def board() -> Board:
    return boards.read(ROOT / "grafana" / "dashboards" / "energy-of-serving.json")


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return static.recorded(static.rules([ROOT / "prometheus" / "rules" / "energy.yml"]))[0]


def _panel(board: Board, title: str) -> dict[str, Any]:
    return next(p for p in boards.panels(board) if p["title"] == title)


def _set_unit(title: str, unit: str) -> Callable[[Board], None]:
    return lambda b: _panel(b, title)["fieldConfig"]["defaults"].update(unit=unit)


def _replace(title: str, old: str, new: str) -> Callable[[Board], None]:
    def change(b: Board) -> None:
        for target in _panel(b, title)["targets"]:
            target["expr"] = target["expr"].replace(old, new)

    return change


def _no_unit(b: Board) -> None:
    del _panel(b, "Power")["fieldConfig"]["defaults"]["unit"]


def _own_datasource(b: Board) -> None:
    _panel(b, "Power")["targets"][0]["datasource"]["uid"] = "wattload-prometheus"


def _panel_datasource(b: Board) -> None:
    _panel(b, "Power by component")["datasource"]["uid"] = "P1809F7CD0C75ACF3"


def _no_description(b: Board) -> None:
    _panel(b, "Token rate")["description"] = ""


def _no_uid(b: Board) -> None:
    b["uid"] = None


def _drop_variable(b: Board) -> None:
    b["templating"]["list"] = [v for v in b["templating"]["list"] if v["name"] != "model"]


def _annotation_datasource(b: Board) -> None:
    b["annotations"]["list"][0]["datasource"] = {"type": "prometheus", "uid": "-- Grafana --"}


def _unused_variable(b: Board) -> None:
    b["templating"]["list"].append({"name": "cluster"})


PLANTED: dict[str, tuple[Callable[[Board], None], str]] = {
    "joules shown as watts": (_set_unit("Energy by component", "watt"), "unit 'watt' for a value in kWh"),
    "power shown as joules": (_set_unit("Power by component", "joule"), "unit 'joule'"),
    "seconds shown as milliseconds": (_set_unit("Time to first token (TTFT)", "ms"), "unit 'ms'"),
    "joules a token shown as a request's": (_set_unit("Energy per token", "si:J/request"), "J/token"),
    "ratio of the KV cache as percent of 100": (_set_unit("KV cache usage", "percent"), "unit 'percent'"),
    "joules shown as kilowatt-hours": (_replace("GPU energy", "/ 3.6e6", ""), "for a value in J"),
    "joules by their thousand as kilowatt-hours": (_replace("GPU energy", "3.6e6", "1000"), "unit 'kwatth'"),
    "grams by the price": (_replace("CO2e at $carbon g/kWh", "$carbon", "$price"), "unit 'massg'"),
    "no unit": (_no_unit, "no unit"),
    "a ratio upside down": (
        _replace("Tokens per kWh", "tokens_per_joule", "joules_per_token"),
        "J^2/kWh/token",
    ),
    "no rate around a counter": (
        _replace("Power by component", "rate(", "sum("),
        "Power by component",
    ),
    "a rate of a gauge": (
        _replace("Power", "sum(wattserve", "sum(rate(wattserve_device_power_watts[20s]) * wattserve"),
        "not a counter",
    ),
    "a rate over ten seconds": (_replace("Request rate", "$__rate_interval", "10s"), "too short"),
    "a rate over $__interval": (_replace("Request rate", "$__rate_interval", "$__interval"), "too short"),
    "joules added to seconds": (
        _replace("Energy by component", "sum by", "sum by (component) (up) + sum by"),
        "+",
    ),
    "a metric without a unit in its name": (_replace("Power", "_power_watts", "_power"), "end in a unit"),
    "broken PromQL": (_replace("Power", "sum(", "sum(("), "Power"),
    "a data source of the query's own": (_own_datasource, "data source"),
    "a data source of the panel's own": (_panel_datasource, "data source"),
    "a data source of the annotation's own": (_annotation_datasource, "data source"),
    "no description": (_no_description, "no description"),
    "no uid": (_no_uid, "uid"),
    "an undefined variable": (_drop_variable, "$model is not defined"),
    "a variable that nothing uses": (_unused_variable, "$cluster is used by no panel"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistake_is_found(mistake: str, board: Board, records: dict[str, Any]) -> None:
    change, expected = PLANTED[mistake]
    planted = copy.deepcopy(board)
    change(planted)
    assert planted != board, "the mistake was not planted"
    faults = static.dashboard_faults(planted, records)
    assert any(expected in fault for fault in faults), f"not found: {mistake}; said {faults}"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            {"record": "model:joules_per_token:rate5m", "expr": "sum(rate(vllm:prompt_tokens_total[5m]))"},
            "named as",
        ),
        (
            {"record": "model:energy_watts:rate1m", "expr": "rate(wattserve_energy_joules_total[10s])"},
            "too short",
        ),
        (
            {"record": "model:energy_watts:rate1m", "expr": "sum(wattserve_energy_joules_total)"},
            "named as J/s",
        ),
        (
            {"alert": "A", "expr": "wattserve_device_power_watts > wattserve_device_temperature_celsius"},
            "compared",
        ),
        ({"alert": "A", "expr": "wattserve_device_power_watts + 1 > 2"}, "J/s + 1"),
        ({"alert": "A", "expr": "rate(wattserve_device_power_watts[1m]) > 2"}, "not a counter"),
    ],
    ids=lambda v: v["expr"] if isinstance(v, dict) else "",
)
def test_planted_mistake_in_a_rule_is_found(rule: dict[str, str], expected: str) -> None:
    _, faults = static.recorded([rule])
    assert any(expected in fault for fault in faults), faults


def test_dimension_arithmetic() -> None:
    assert (JOULE / SECOND) == WATT
    assert (WATT * SECOND) == JOULE
    assert str(WATT) == "J/s"
    assert recorded("model:good_requests_per_joule:rate1m").exponents == (("J", -1), ("request", 1))
    assert unit_accepts("watt", WATT)
    assert not unit_accepts("short", WATT)
    assert not unit_accepts("short", JOULE)
