"""What is wrong with a dashboard or a rule file can often be seen by reading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from checker import dashboard as boards
from checker import names
from checker.dimension import Dimension, DimensionError
from checker.promql import dimension, rates

# A rate needs two samples after one lost scrape; Grafana's own advice is four intervals.
SHORTEST_RATE_SECONDS = 20.0


def _parse(expr: str) -> Any:
    return promql.parse(expr)


def _range_faults(node: Any) -> Iterator[str]:
    for metric, seconds in rates(node):
        if seconds < SHORTEST_RATE_SECONDS:
            yield f"rate of {metric} over {seconds:g} s is too short for a 5 s scrape: use $__rate_interval"


def query_faults(query: boards.PanelQuery, records: dict[str, Dimension]) -> Iterator[str]:
    """What is wrong with one panel query."""
    values = dict(boards.WORST_RANGES) | dict.fromkeys(boards.variables_in(query.expr), "x")
    values |= {name: str(number) for name, number in names.FACTORS.items()}
    try:
        node = _parse(boards.fill(query.expr, values))
        yield from _range_faults(node)
        found = dimension(node, records)
    except (DimensionError, ValueError) as error:
        yield str(error)
        return
    if not query.unit:
        yield "no unit"
    elif not names.unit_accepts(query.unit, found):
        yield f"unit {query.unit!r} for a value in {found}"


def dashboard_faults(board: dict[str, Any], records: dict[str, Dimension]) -> list[str]:
    """Everything wrong with a dashboard that can be seen without data; each line says where."""
    faults = []
    known = {v["name"] for v in board["templating"]["list"]}
    texts = [board["annotations"], [p.get("title") for p in board["panels"]]]
    used = boards.variables_in(str(texts))
    if not board.get("uid"):
        faults.append(f"{board['title']}: no fixed uid")
    for query in boards.queries(board):
        found = list(query_faults(query, records))
        if not query.description:
            found.append("no description")
        if not {query.datasource, query.panel_datasource} <= {"${datasource}"}:
            found.append("the data source is not the variable ${datasource}")
        found += [f"variable ${v} is not defined" for v in boards.variables_in(query.expr) - known]
        used |= boards.variables_in(query.expr) | boards.variables_in(query.datasource)
        used |= boards.variables_in(query.panel)
        faults += [f"{query.where()}: {fault}" for fault in found]
    for annotation in board["annotations"]["list"]:
        if annotation.get("expr") and annotation["datasource"].get("uid") != "${datasource}":
            faults.append(f"{board['title']}: annotation {annotation['name']} has a data source of its own")
    faults += [f"{board['title']}: variable ${v} is used by no panel" for v in known - used]
    return faults


def rules(paths: list[Path]) -> list[dict[str, Any]]:
    """All rules of the files, in order."""
    groups = (g for p in paths for g in yaml.safe_load(p.read_text(encoding="utf-8"))["groups"])
    return [rule for group in groups for rule in group["rules"]]


def recorded(rule_list: list[dict[str, Any]]) -> tuple[dict[str, Dimension], list[str]]:
    """The dimensions of the recorded metrics, in order, and what is wrong with the rules."""
    dimensions: dict[str, Dimension] = {}
    faults = []
    for rule in rule_list:
        name = rule.get("record") or rule["alert"]
        try:
            node = _parse(rule["expr"])
            faults += [f"{name}: {fault}" for fault in _range_faults(node)]
            found = dimension(node, dimensions)
            if "record" in rule:
                dimensions[name] = found
                claimed = names.recorded(name)
                if not claimed.fits(found):
                    faults.append(f"{name}: named as {claimed}, computed as {found}")
        except (DimensionError, ValueError) as error:
            faults.append(f"{name}: {error}")
    return dimensions, faults
