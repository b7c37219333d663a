"""The kinds of panel used, each one function: a title, a unit, a description and queries give a panel.

Descriptions end with the metrics that the queries read. A value without limits has a neutral colour; parts of
energy and quantiles have the same colours everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from dashboards.generate.variables import DATASOURCE
from grafana_foundation_sdk.builders import bargauge, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from wattload.colours import COMPONENTS

_NEUTRAL = "blue"
_METRIC = re.compile(r"\b((?:vllm:|wattserve_|wattload_|model:|run:|up\b)[\w:]*)")


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and what its series are called. `dashed`: a limit, not a measurement.

    `column` is the heading of the query's value in a table, `unit` its unit if not the panel's.
    """

    expr: str
    legend: str = ""
    dashed: bool = False
    column: str = ""
    unit: str = ""


def _steps(limits: tuple[tuple[float, str], ...]) -> ThresholdsConfig:
    base = "green" if limits else _NEUTRAL
    steps = [Threshold(value=None, color=base), *(Threshold(value=v, color=c) for v, c in limits)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _target(query: Query, ref: str, *, instant: bool) -> Dataquery:
    target = Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref).datasource(DATASOURCE)
    return target.instant() if instant else target.range()


def _finish(
    panel: Any, title: str, unit: str, description: str, queries: tuple[Query, ...], *, instant: bool
) -> Any:
    text = described(description, queries)
    panel = panel.title(title).description(text).datasource(DATASOURCE).unit(unit)
    for query, ref in zip(queries, ascii_uppercase, strict=False):
        panel = panel.with_target(_target(query, ref, instant=instant))
    return panel


def described(description: str, queries: tuple[Query, ...]) -> str:
    """The description with the metrics that are read, each once."""
    metrics = dict.fromkeys(name for query in queries for name in _METRIC.findall(query.expr))
    return f"{description}\n\nMetric: {', '.join(f'`{name}`' for name in metrics)}."


def _colour(panel: Any, colours: dict[str, str]) -> Any:
    for name, colour in colours.items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        panel = panel.override_by_regexp(f"/\\b{name}$/", [DynamicConfigValue(id_val="color", value=fixed)])
    return panel


def series(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    span: int = 12,
    height: int = 8,
    stacked: bool = False,
    maximum: float | None = None,
    colours: dict[str, str] | None = None,
) -> Any:
    """Lines over time; `stacked` where the lines are parts of one whole."""
    panel = _finish(timeseries.Panel(), title, unit, description, queries, instant=False)
    panel = (
        panel.span(span)
        .height(height)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 8)
        .span_nulls(False)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(
            VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "lastNotNull"])
        )
    )
    if stacked:
        panel = panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if maximum is not None:
        panel = panel.max(maximum)
    panel = _colour(panel, colours or {})
    for query, ref in zip(queries, ascii_uppercase, strict=False):
        if query.dashed:
            panel = panel.override_by_query(
                ref,
                [
                    DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 8]}),
                    DynamicConfigValue(id_val="custom.fillOpacity", value=0),
                    DynamicConfigValue(id_val="custom.stacking", value={"mode": "none", "group": "A"}),
                ],
            )
    return panel


def number(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    span: int = 4,
    height: int = 4,
    limits: tuple[tuple[float, str], ...] = (),
    text: bool = False,
    instant: bool = False,
) -> Any:
    """One value, large: the last of the range, its course behind it. `text` shows the series' name instead.

    `instant` asks for one value at the end of the range, for queries over `$__range`: the window shown.
    """
    panel = _finish(stat.Panel(), title, unit, description, queries, instant=instant)
    return (
        panel.span(span)
        .height(height)
        .thresholds(_steps(limits))
        .graph_mode(BigValueGraphMode.NONE if text or instant else BigValueGraphMode.AREA)
        .text_mode(BigValueTextMode.NAME if text else BigValueTextMode.AUTO)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .no_value("no data")
    )


def bars(title: str, unit: str, description: str, *queries: Query, span: int = 12, height: int = 8) -> Any:
    """One horizontal bar per series, for the selected time range."""
    panel = _finish(bargauge.Panel(), title, unit, description, queries, instant=True)
    return (
        _colour(panel, COMPONENTS)
        .span(span)
        .height(height)
        .min(0)
        .thresholds(_steps(()))
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def states(title: str, unit: str, description: str, *queries: Query, span: int = 24, height: int = 5) -> Any:
    """A strip per series: on or off over time."""
    panel = _finish(statetimeline.Panel(), title, unit, description, queries, instant=False)
    return panel.span(span).height(height).thresholds(_steps(())).merge_values(True)


def grid(
    title: str, unit: str, description: str, key: str, *queries: Query, span: int = 24, height: int = 8
) -> Any:
    """A table: one row per value of the label `key`, one column per query, each with its own unit."""
    text = described(description, queries)
    panel = table.Panel().title(title).description(text).datasource(DATASOURCE).unit(unit)
    names = {}
    for query, ref in zip(queries, ascii_uppercase, strict=False):
        panel = panel.with_target(_target(query, ref, instant=True).format(PromQueryFormat.TABLE))
        names[f"Value #{ref}"] = query.column
        panel = panel.override_by_name(
            query.column, [DynamicConfigValue(id_val="unit", value=query.unit or unit)]
        )
    join = DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"})
    hide = {"Time": True} | {f"Time {n}": True for n in range(1, len(queries) + 1)}
    organize = DataTransformerConfig(
        id_val="organize", options={"excludeByName": hide, "renameByName": names}
    )
    return panel.span(span).height(height).transformations([join, organize])
