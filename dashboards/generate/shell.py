"""What the three dashboards share: uid, tags, time range, variables, links to each other, annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, Row
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType

from dashboards.generate.annotations import alerts, phases

ENERGY = ("wattload-energy", "Energy of serving")
LOAD_TEST = ("wattload-load-test", "Load test")
GPU_AND_METER = ("wattload-gpu-meter", "GPU and meter")
ALL = (ENERGY, LOAD_TEST, GPU_AND_METER)


def dashboard(
    which: tuple[str, str],
    description: str,
    variables: Sequence[Any],
    rows: Sequence[tuple[str, Sequence[Any]]],
) -> Dashboard:
    """A dashboard of titled rows of panels, with the links and annotations that all have."""
    uid, title = which
    built = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["wattload", "energy", "llm"])
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("5s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(phases())
        .annotation(alerts())
    )
    for variable in variables:
        built = built.with_variable(variable)
    for other_uid, other_title in ALL:
        if other_uid != uid:
            built = built.link(
                DashboardLink(other_title)
                .type(DashboardLinkType.LINK)
                .url(f"/d/{other_uid}")
                .tooltip(f"{other_title}, same time and variables")
                .keep_time(True)
                .include_vars(True)
            )
    for row_title, panels in rows:
        built = built.with_row(Row(row_title))
        for panel in panels:
            built = built.with_panel(panel)
    return built
