"""A dashboard as one picture: its grid of panels, each drawn from the answers to its own queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from checker import dashboard as boards
from checker import live
from checker.prometheus import Prometheus
from matplotlib.figure import Figure

from picture.panels import DRAW, FAINT, INK, Line, Region, legend_name

COLUMN_INCHES, ROW_INCHES = 0.62, 0.32


def _lines(
    panel: dict[str, Any],
    board: dict[str, Any],
    prometheus: Prometheus,
    span: live.Span,
    values: dict[str, str],
) -> list[Line]:
    matchers = [o["matcher"] for o in panel["fieldConfig"].get("overrides", [])]
    dashed = {m["options"] for m in matchers if m["id"] == "byFrameRefID"}
    renamed: dict[str, str] = {}
    for transformation in panel.get("transformations", []):
        renamed |= transformation["options"].get("renameByName", {})
    lines = []
    for query, target in zip(boards.panel_queries(board, panel), panel["targets"], strict=True):
        for series in live.ask(query, prometheus, span, values):
            name = legend_name(query, series)
            column = renamed.get(f"Value #{target['refId']}", "")
            lines.append(Line(name, query.unit, column, series, target["refId"] in dashed))
    return lines


def _regions(prometheus: Prometheus, span: live.Span) -> list[Region]:
    """The phases of the runs, joined as Grafana joins the samples of an annotation."""
    regions = []
    for series in prometheus.range("wattload_phase > 0", span.start, span.end, 5):
        times = [t for t, _ in series.samples]
        regions.append(Region(series.labels.get("phase", ""), times[0], times[-1]))
    return regions


def draw(path: Path, prometheus: Prometheus, span: live.Span, target: Path, note: str) -> None:
    """Draws the dashboard of the JSON file at `path` into the PNG `target`; `note` says what the data are."""
    board = boards.read(path)
    values, _ = live.variables(board, prometheus)
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) + 3
    width, height = 24 * COLUMN_INCHES, rows * ROW_INCHES
    mpl.rcParams["font.family"] = "DejaVu Sans"
    figure = Figure(figsize=(width, height), facecolor="#f4f5f5")
    figure.text(0.01, 1 - 0.9 / rows, board["title"], fontsize=16, color=INK, weight="bold", va="center")
    figure.text(0.01, 1 - 2.0 / rows, note, fontsize=8.5, color=FAINT, va="center")
    regions = _regions(prometheus, span)
    for panel in board["panels"]:
        pos = panel["gridPos"]
        top = 1 - (pos["y"] + 3) / rows
        if panel["type"] == "row":
            figure.text(0.01, top - 0.5 / rows, f"▾ {panel['title']}", fontsize=10, color=INK, va="center")
            continue
        box = (
            pos["x"] / 24 + 0.003,
            top - pos["h"] / rows + 0.1 / rows,
            pos["w"] / 24 - 0.006,
            (pos["h"] - 0.2) / rows,
        )
        panel["title"] = boards.fill(panel["title"], values)
        _panel(figure, box, panel, _lines(panel, board, prometheus, span, values), regions, rows=rows)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=90)


def _panel(
    figure: Figure,
    box: tuple[float, float, float, float],
    panel: dict[str, Any],
    lines: Sequence[Line],
    regions: Sequence[Region],
    *,
    rows: int,
) -> None:
    left, bottom, width, height = box
    back = figure.add_axes(box, facecolor="white")
    back.set(xticks=[], yticks=[])
    for spine in back.spines.values():
        spine.set_color("#d8d8d8")
    row = 1 / rows
    figure.text(
        left + 0.006, bottom + height - 0.55 * row, panel["title"], fontsize=9, color=INK, va="center"
    )
    kind = panel["type"]
    legend = min(0.5 * (height / row), 0.5 + 0.42 * max(1, len(lines))) if kind == "timeseries" else 0.2
    indent = {"timeseries": 0.06, "bargauge": 0.075, "state-timeline": 0.13}.get(kind, 0.004)
    inner = (
        left + indent,
        bottom + (legend + (0.6 if kind in {"timeseries", "state-timeline"} else 0)) * row,
        width - indent - 0.008,
        height - (legend + 1.3 + (0.6 if kind in {"timeseries", "state-timeline"} else 0)) * row,
    )
    DRAW[kind](figure.add_axes(inner, facecolor="none"), panel, lines, regions)
