"""Marks on the time axis: the phases of load tests, queried from its own metric, and alerts."""

from __future__ import annotations

from typing import Any

from dashboards.generate.variables import DATASOURCE
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import AnnotationQuery


class PrometheusAnnotation(AnnotationQuery):
    """The SDK's annotation plus the fields that Grafana's Prometheus data source reads beyond the schema."""

    def __init__(self, name: str, expr: str, *, title: str, text: str, tags: str, color: str) -> None:
        super().__init__(
            name=name, datasource=DATASOURCE, enable=True, hide=False, icon_color=color, expr=expr, built_in=0
        )
        self.title, self.text, self.tags = title, text, tags

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "titleFormat": self.title,
            "textFormat": self.text,
            "tagKeys": self.tags,
            # Grafana joins samples that are one step apart into a region.
            "step": "5s",
            "useValueForTime": "false",
        }


class _Built(Builder[AnnotationQuery]):
    def __init__(self, annotation: AnnotationQuery) -> None:
        self._annotation = annotation

    def build(self) -> AnnotationQuery:
        return self._annotation


def phases() -> Any:
    """Warm-up, measurement and cool-down of the chosen runs, as regions."""
    return _Built(
        PrometheusAnnotation(
            "Test phases",
            'wattload_phase{run=~"$run"} > 0',
            title="{{run}}: {{phase}}",
            text="Phase of the load test, as the load generator reported it.",
            tags="phase",
            color="blue",
        )
    )


def alerts() -> Any:
    """The firing alerts of dashboards/prometheus/alerts."""
    return _Built(
        PrometheusAnnotation(
            "Alerts",
            'ALERTS{alertstate="firing"}',
            title="{{alertname}}",
            text="{{severity}}",
            tags="alertname",
            color="red",
        )
    )
