"""What Prometheus is given as a counter never falls: a fall reads as a restart, and all is added again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattserve.http.metrics import MonitorCollector


class _Monitor:
    """Snapshots with the totals given."""

    def __init__(self) -> None:
        self.unattributed = 0.0

    def snapshot(self, *, take_settled: bool = False) -> Any:
        buckets = {"idle": 100.0, "unattributed": self.unattributed}
        return SimpleNamespace(
            model_name="m",
            devices=(),
            faults={},
            bucket_joules=buckets,
            settled_requests=(),
            active_requests=0,
        )


def test_a_bucket_that_wavers_stays_a_counter() -> None:
    monitor, registry = _Monitor(), CollectorRegistry()
    MonitorCollector(cast(EnergyMonitor, monitor), info={}, registry=registry)
    seen = []
    for total in (0.0, 5.0, 4.9, 5.2, 3.0, 6.0):
        monitor.unattributed = total
        labels = {"bucket": "unattributed", "component": "unattributed", "model": "m"}
        seen.append(registry.get_sample_value("wattserve_energy_joules_total", labels))
    assert seen == [0.0, 5.0, 5.0, 5.2, 5.2, 6.0]


def test_a_bucket_below_zero_is_absent_and_not_0() -> None:
    """An idle power given too high leaves less than nothing unattributed: no figure is better than 0."""
    monitor, registry = _Monitor(), CollectorRegistry()
    MonitorCollector(cast(EnergyMonitor, monitor), info={}, registry=registry)
    seen = []
    for total in (-30.0, -1e-9, 2.0):
        monitor.unattributed = total
        labels = {"bucket": "unattributed", "component": "unattributed", "model": "m"}
        seen.append(registry.get_sample_value("wattserve_energy_joules_total", labels))
    assert seen == [None, 0.0, 2.0]
