"""A linter of the dashboards' JSON and of the alerts: what Grafana's users and on-call people expect of "
"each."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checker import dashboard as boards

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "dashboards"
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
SERVER = re.compile(r"\b(?:wattserve_\w+|vllm:\w+)\{(?P<labels>[^}]*)\}")
RECORDED = re.compile(r"\b(?:model|run):\w+:\w+")
Board = dict[str, Any]


def faults(board: Board) -> Iterator[str]:
    """What is wrong with one dashboard, a line each."""
    if not board["title"].startswith("wattload / "):
        yield "the title does not begin with 'wattload / '"
    if board.get("refresh") not in ("10s", "30s", "1m"):
        yield f"refreshes every {board.get('refresh')}"
    if board.get("timezone") != "browser":
        yield "the time zone is not the reader's"
    kinds = {v["name"]: v for v in board["templating"]["list"]}
    for name, variable in kinds.items():
        if not variable.get("label") or not variable.get("description"):
            yield f"variable {name}: no label or no description"
    titles = [panel["title"] for panel in boards.panels(board)]
    yield from (
        f"two panels are called {title!r}" for title in sorted({t for t in titles if titles.count(t) > 1})
    )
    for panel in boards.panels(board):
        yield from (f"{panel['title']}: {fault}" for fault in panel_faults(board, panel, set(kinds)))


def panel_faults(board: Board, panel: dict[str, Any], variables: set[str]) -> Iterator[str]:
    text = panel.get("description", "")
    about, _, metrics = text.partition("\n\nMetric: ")
    if len(about) < 20:
        yield "the description does not say what it shows"
    expressions = [target["expr"] for target in panel["targets"]]
    read = {
        name
        for each in expressions
        for name in re.findall(r"\b(?:wattserve_|wattload_|vllm:|model:|run:)[\w:]+", each)
    }
    yield from (
        f"the description does not name {name}" for name in sorted(read) if f"`{name}`" not in metrics
    )
    if panel["type"] == "timeseries" and not panel["options"]["legend"]["calcs"]:
        yield "the legend has no figures"
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    if len(steps) == 1 and steps[0]["color"] in ("green", "red", "orange"):
        yield "a value without limits has the colour of a judgement"
    for target in panel["targets"]:
        if not target.get("legendFormat") and panel["type"] not in ("stat", "table"):
            yield "a query without a legend"
        for found in SERVER.finditer(target["expr"]):
            missing = {"namespace", "job", "instance"} - set(re.findall(r"(\w+)=~", found["labels"]))
            yield from (f"a server's metric is not selected by ${name}" for name in sorted(missing))
        if re.search(r"\b(?:wattserve_\w+|vllm:\w+)(?!\w*\{)(?=[\s)\[]|$)", target["expr"]):
            yield "a server's metric without selectors"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_a_dashboard_is_as_people_expect(path: Path) -> None:
    assert list(faults(boards.read(path))) == []


def _panel(board: Board, title: str) -> dict[str, Any]:
    return next(panel for panel in boards.panels(board) if panel["title"] == title)


def _renamed(board: Board) -> None:
    board["title"] = "Energy"


def _twins(board: Board) -> None:
    _panel(board, "Token rate")["title"] = "Request rate"


def _unselected(board: Board) -> None:
    target = _panel(board, "KV cache usage")["targets"][0]
    target["expr"] = target["expr"].replace('job=~"$job",', "")


def _without_selectors(board: Board) -> None:
    _panel(board, "Power")["targets"][0]["expr"] = "sum(wattserve_device_power_watts)"


def _other_metric(board: Board) -> None:
    target = _panel(board, "KV cache usage")["targets"][0]
    target["expr"] = target["expr"].replace("kv_cache_usage_perc", "gpu_cache_usage_perc")


def _green(board: Board) -> None:
    _panel(board, "Power")["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["color"] = "green"


def _nameless(board: Board) -> None:
    board["templating"]["list"][1]["label"] = ""


def _aphorism(board: Board) -> None:
    panel = _panel(board, "Power")
    panel["description"] = "Watts.\n\nMetric:" + panel["description"].partition("Metric:")[2]


PLANTED: dict[str, tuple[Callable[[Board], None], str]] = {
    "a bare title": (_renamed, "wattload / "),
    "two panels of one title": (_twins, "two panels"),
    "a metric of every job": (_unselected, "$job"),
    "a metric without selectors": (_without_selectors, "without selectors"),
    "a description of another metric": (_other_metric, "does not name vllm:gpu_cache_usage_perc"),
    "a green value without limits": (_green, "judgement"),
    "a variable without a label": (_nameless, "no label"),
    "a description that says nothing": (_aphorism, "does not say"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake: str) -> None:
    change, expected = PLANTED[mistake]
    board = copy.deepcopy(boards.read(ROOT / "grafana" / "dashboards" / "energy-of-serving.json"))
    change(board)
    assert any(expected in fault for fault in faults(board)), list(faults(board))


def test_an_alert_says_what_is_wrong_and_where_to_read_on() -> None:
    loaded = yaml.safe_load((ROOT / "prometheus" / "alerts" / "wattload.yml").read_text("utf-8"))
    uids = {boards.read(path)["uid"] for path in DASHBOARDS}
    for rule in (rule for group in loaded["groups"] for rule in group["rules"]):
        name, notes = rule["alert"], rule["annotations"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert len(notes["summary"]) < 100, name
        assert notes["description"] != notes["summary"], name
        assert notes["dashboard"].removeprefix("/d/") in uids, name
        page, anchor = notes["runbook_url"].split("#")
        headings = re.findall(r"^## (\w+)$", (REPOSITORY / page).read_text("utf-8"), re.MULTILINE)
        assert anchor in [heading.lower() for heading in headings], name
