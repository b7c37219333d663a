"""The variables of the dashboards: data source, model, device, run. Every query names them."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh, VariableSort

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def datasource() -> DatasourceVariable:
    """Which Prometheus; Grafana offers all that it knows."""
    return (
        DatasourceVariable("datasource")
        .label("Data source")
        .description("The Prometheus that scrapes wattserve and wattload.")
        .type("prometheus")
    )


def _labels(name: str, label: str, description: str, metric: str, key: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": f"label_values({metric},{key})", "refId": f"{name}-values"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )


def _several(variable: QueryVariable) -> QueryVariable:
    return variable.multi(True).include_all(True).all_value(".*")


def model() -> QueryVariable:
    """The served models."""
    return _several(
        _labels("model", "Model", "Served models.", "wattserve_energy_joules_total", "model"),
    )


def device() -> QueryVariable:
    """The metered devices, by their stable id."""
    return _several(
        _labels("device", "Device", "Metered devices, by id.", "wattserve_device_power_watts", "device"),
    )


def run() -> QueryVariable:
    """The load tests, by name: in panels of a load test, and in the annotations of every dashboard."""
    return _several(
        _labels("run", "Run", "Load tests, by name.", "wattload_planned_requests_total", "run"),
    )


def compared_run() -> QueryVariable:
    """The other run of a comparison: one, not several."""
    return _labels(
        "compare", "Compare with", "The run to compare with.", "wattload_planned_requests_total", "run"
    )
