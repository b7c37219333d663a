"""Energy by tenant under /metrics: what tenants' requests used, in a bounded number of series."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from wattmeter.schema import SETTLED, IdleState, MonitorSnapshot, RequestEnergy
from wattserve.http.metrics import MOST_TENANTS, MonitorCollector


class Settled:
    """Gives each batch of settled requests once, as a monitor does."""

    def __init__(self, *batches: Sequence[RequestEnergy]) -> None:
        self._batches = list(batches)

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot:
        batch = self._batches.pop(0) if take_settled and self._batches else ()
        return MonitorSnapshot(
            now_unix=0.0,
            model_name="m",
            source="nvml",
            devices=(),
            bucket_joules={},
            settled_joules=0.0,
            settled_unix=None,
            idle=IdleState(None, None, None),
            settled_requests=tuple(batch),
            active_requests=0,
            conservation_error_ratio=0.0,
            step_model=None,
        )


def request(group: str, joules: float | None) -> RequestEnergy:
    return RequestEnergy("r", SETTLED, joules, group=group)


def collected(*batches: Sequence[RequestEnergy]) -> CollectorRegistry:
    """The registry after a scrape of each batch."""
    registry = CollectorRegistry()
    MonitorCollector(Settled(*batches), info={}, registry=registry)
    for _ in batches:
        list(registry.collect())
    return registry


def value(registry: CollectorRegistry, name: str, tenant: str) -> float | None:
    return registry.get_sample_value(name, {"tenant": tenant, "model": "m"})


def test_tenants_sum_over_scrapes_and_a_request_without_joules_is_not_counted() -> None:
    registry = collected(
        [request("shop", 2.0), request("", 1.0), request("shop", None)], [request("shop", 3.0)], []
    )
    assert value(registry, "wattserve_tenant_energy_joules_total", "shop") == 5.0
    assert value(registry, "wattserve_tenant_requests_total", "shop") == 2.0
    assert value(registry, "wattserve_tenant_energy_joules_total", "none") == 1.0


def test_tenants_beyond_the_bound_are_counted_together() -> None:
    many = [request(f"t{number}", 1.0) for number in range(MOST_TENANTS + 20)]
    registry = collected([*many, request("t0", 1.0)], [])
    assert value(registry, "wattserve_tenant_energy_joules_total", "other") == 20.0
    assert value(registry, "wattserve_tenant_energy_joules_total", "t0") == 2.0
    series = [
        s for family in registry.collect() for s in family.samples if s.name.startswith("wattserve_tenant_r")
    ]
    assert len(series) == MOST_TENANTS + 1
