"""What the three dashboards share: uid, tags, time range, variables, links to each other, annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashboards.generate.annotations import alerts, phases
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, Row
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType

TAG = "wattload"
ENERGY = ("wattload-energy", "wattload / LLM energy overview")
LOAD_TEST = ("wattload-load-test", "wattload / Load test")
GPU_AND_METER = ("wattload-gpu-meter", "wattload / GPUs and meter health")


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
        .tags([TAG, "energy", "llm"])
        .timezone("browser")
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .annotation(phases())
        .annotation(alerts())
    )
    for variable in variables:
        built = built.with_variable(variable)
    # Of every dashboard with a tag, so that one that somebody adds is in the list: vLLM's own has `vllm`.
    for tag, text in ((TAG, "wattload"), ("vllm", "vLLM")):
        built = built.link(
            DashboardLink(text)
            .type(DashboardLinkType.DASHBOARDS)
            .tags([tag])
            .as_dropdown(True)
            .tooltip(f"Dashboards with the tag {tag}, same time and variables")
            .keep_time(True)
            .include_vars(True)
        )
    for row_title, panels in rows:
        built = built.with_row(Row(row_title))
        for panel in panels:
            built = built.with_panel(panel)
    return built
