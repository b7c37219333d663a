"""What is wrong with a dashboard once a real Prometheus is asked: errors, empty answers, labels not there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from checker import dashboard as boards
from checker.prometheus import Prometheus, QueryError, Series

SCRAPE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Span:
    """The time range of a dashboard, and the step that Grafana would take on a 1000 pixel wide panel."""

    start: float
    end: float

    @property
    def step(self) -> float:
        return max(1.0, round((self.end - self.start) / 1000))

    def ranges(self) -> dict[str, str]:
        """Grafana's own variables: $__rate_interval is the step plus a scrape, at least four scrapes."""
        rate = max(self.step + SCRAPE_SECONDS, 4 * SCRAPE_SECONDS)
        return {
            "__rate_interval": f"{rate:.0f}s",
            "__interval": f"{self.step:.0f}s",
            "__range": f"{self.end - self.start:.0f}s",
        }


def variables(board: dict[str, Any], prometheus: Prometheus) -> tuple[dict[str, str], list[str]]:
    """The variables' values as the data source gives them, and what is wrong with their queries."""
    values, faults = {}, []
    for variable in board["templating"]["list"]:
        if variable["type"] == "textbox":
            values[variable["name"]] = str(variable["query"])
        if variable["type"] != "query":
            continue
        asked = re.fullmatch(r"label_values\((.+),\s*(\w+)\)", variable["query"]["query"])
        if not asked:
            faults.append(f"variable ${variable['name']}: not label_values(metric, label)")
            continue
        # Within the variables before it, as Grafana chains them.
        found = prometheus.label_values(boards.fill(asked[1], values), asked[2])
        if not found:
            faults.append(f"variable ${variable['name']}: {variable['query']['query']} has no values")
        escaped = [re.escape(v).replace("\\", "\\\\") for v in found]
        values[variable["name"]] = f"({'|'.join(escaped)})" if variable.get("multi") else (escaped or [""])[0]
    return values, faults


def ask(query: boards.PanelQuery, prometheus: Prometheus, span: Span, values: dict[str, str]) -> list[Series]:
    """The answer to a panel's query, as Grafana would ask it. Raises QueryError."""
    expr = boards.fill(query.expr, values | span.ranges())
    if query.instant:
        return prometheus.instant(expr, span.end)
    return prometheus.range(expr, span.start, span.end, span.step)


def query_faults(
    query: boards.PanelQuery, prometheus: Prometheus, span: Span, values: dict[str, str]
) -> list[str]:
    """What is wrong with the answer to one panel's query."""
    try:
        answer = ask(query, prometheus, span, values)
    except QueryError as error:
        return [f"error: {error}"]
    if not answer:
        return [f"empty: {query.expr}"]
    named = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", query.legend))
    missing = {label for label in named if any(label not in series.labels for series in answer)}
    return [f"legend names the label {label}, which the series have not" for label in sorted(missing)]


def faults(board: dict[str, Any], prometheus: Prometheus, span: Span) -> list[str]:
    """Everything wrong with a dashboard's panels, variables and annotations on this Prometheus."""
    values, found = variables(board, prometheus)
    found = [f"{board['title']}: {fault}" for fault in found]
    for query in boards.queries(board):
        found += [f"{query.where()}: {f}" for f in query_faults(query, prometheus, span, values)]
    for annotation in board["annotations"]["list"]:
        if "ALERTS" in annotation["expr"]:
            continue  # a healthy system has none
        expr = boards.fill(annotation["expr"], values)
        if not prometheus.range(expr, span.start, span.end, SCRAPE_SECONDS):
            found.append(f"{board['title']}: annotation {annotation['name']} is empty: {annotation['expr']}")
    return found
