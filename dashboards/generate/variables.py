"""The variables of the dashboards: which servers, models, devices, tenants and runs, and factors of the "
"user."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable, TextBoxVariable
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


def servers() -> list[QueryVariable]:
    """Which metered servers: namespace (in Kubernetes), job, instance, each within the ones before."""
    power = "wattserve_device_power_watts"
    return [
        _several(
            _labels("namespace", "Namespace", "Kubernetes namespaces; All elsewhere.", power, "namespace")
        ),
        _several(_labels("job", "Job", "Scrape jobs of metered servers.", power, "job")),
        _several(_labels("instance", "Instance", "Metered servers.", f'{power}{{job=~"$job"}}', "instance")),
    ]


def tenant() -> QueryVariable:
    """The tenants, by the header x-energy-group; `none` are requests without it."""
    return _several(
        _labels(
            "tenant",
            "Tenant",
            "Tenants, by the header x-energy-group; none: requests without it.",
            "wattserve_tenant_energy_joules_total",
            "tenant",
        ),
    )


def factors() -> list[TextBoxVariable]:
    """What a kilowatt-hour costs and emits where the GPUs are: numbers of the user, with examples as "
    "defaults."""
    return [
        _factor("pue", "PUE", "Facility energy over IT energy; 1 leaves cooling and supply out.", "1.2"),
        _factor("price", "Price per kWh", "In your currency.", "0.20"),
        _factor("carbon", "gCO2e per kWh", "Carbon intensity of your electricity.", "400"),
    ]


def _factor(name: str, label: str, description: str, default: str) -> TextBoxVariable:
    return TextBoxVariable(name).label(label).description(description).default_value(default)


def model() -> QueryVariable:
    """The served models."""
    return _several(
        _labels("model", "Model", "Served models.", "wattserve_energy_joules_total", "model"),
    )


def tested_model() -> QueryVariable:
    """The models that load tests asked for."""
    return _several(
        _labels("model", "Model", "Models of load tests.", "wattload_planned_requests_total", "model"),
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
