"""A dashboard's JSON as the queries of its panels, with Grafana's variables filled in as Grafana would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The shortest that Grafana makes of its own variables with a 5 s scrape: the worst case for a rate.
WORST_RANGES = {"__rate_interval": "20s", "__interval": "1s", "__range": "60s"}


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel, as it stands in the JSON."""

    dashboard: str
    panel: str
    kind: str
    unit: str
    description: str
    expr: str
    legend: str
    instant: bool
    datasource: str
    panel_datasource: str

    def where(self) -> str:
        return f"{self.dashboard} / {self.panel}"


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that show something; rows are opened, not shown."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def _column_unit(panel: dict[str, Any], ref: str) -> str:
    """A table's columns have units of their own, by the name that the organize transformation gives them."""
    renamed = {
        old: new
        for t in panel.get("transformations", [])
        if t["id"] == "organize"
        for old, new in t["options"]["renameByName"].items()
    }
    column = renamed.get(f"Value #{ref}")
    for override in panel["fieldConfig"].get("overrides", []):
        if override["matcher"]["options"] == column:
            for prop in override["properties"]:
                if prop["id"] == "unit":
                    return str(prop["value"])
    return str(panel["fieldConfig"]["defaults"].get("unit", ""))


def panel_queries(board: dict[str, Any], panel: dict[str, Any]) -> Iterator[PanelQuery]:
    """Every query of one panel."""
    for target in panel.get("targets", []):
        yield PanelQuery(
            dashboard=board["title"],
            panel=panel["title"],
            kind=panel["type"],
            unit=_column_unit(panel, target["refId"]),
            description=panel.get("description", ""),
            expr=target["expr"],
            legend=target.get("legendFormat", ""),
            instant=bool(target.get("instant")),
            datasource=(target.get("datasource") or {}).get("uid", ""),
            panel_datasource=(panel.get("datasource") or {}).get("uid", ""),
        )


def queries(board: dict[str, Any]) -> Iterator[PanelQuery]:
    """Every query of every panel."""
    for panel in panels(board):
        yield from panel_queries(board, panel)


def variables_in(text: str) -> set[str]:
    """The names of the variables that a text uses, Grafana's own apart."""
    found = re.findall(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))", text)
    return {a or b for a, b in found} - {"__rate_interval", "__interval", "__range"}


def fill(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with the variables replaced; one without a value stays, and its query fails."""
    for name in sorted(values, key=len, reverse=True):
        # Escaped: what stands for a variable may hold backslashes, which re.sub would read as groups.
        expr = re.sub(rf"\$\{{{name}(:\w+)?\}}|\${name}\b", values[name].replace("\\", r"\\"), expr)
    return expr
