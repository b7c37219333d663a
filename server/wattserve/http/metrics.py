"""The energy accounting under /metrics, with the names that the dashboards ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from wattmeter.schema import MonitorSnapshot


class Snapshots(Protocol):
    """What the collector asks: an EnergyMonitor, or what gives the state of one."""

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot: ...


# 0.1 J is a word on an idle GPU, 10 kJ a long document on a node of eight.
REQUEST_JOULES_BUCKETS = (
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000, 10000,
)  # fmt: skip
# Tenants have series of their own up to here; later ones are counted together: a label that clients can set
# must not grow Prometheus without end.
MOST_TENANTS = 100
OTHER_TENANTS, NO_TENANT = "other", "none"
# A total further below 0 than sums of floats round is a contradiction (an idle power given too high).
ROUNDING_JOULES = 1e-3
_DEVICE = ("device", "name", "source")


class MonitorCollector(Collector):
    """Everything that an MonitorSnapshot holds, computed when Prometheus asks.

    What a meter does not give is absent, never 0. `info` are the labels of wattserve_info.
    """

    def __init__(
        self,
        account: Snapshots,
        *,
        info: dict[str, str],
        registry: CollectorRegistry,
        selftest: dict[str, Any] | None = None,
    ) -> None:
        self._account = account
        self._info = info
        self.selftest = selftest
        self._joules = Histogram(
            "wattserve_request_energy_joules",
            "Energy attributed to a request (above idle), when it is final.",
            ["model"],
            buckets=REQUEST_JOULES_BUCKETS,
            registry=None,
        )
        self._tenants: dict[str, tuple[float, int]] = {}
        # What nobody is charged with can fall for a while: idle power wavers about its mean. Prometheus takes
        # a counter's fall for a restart and adds the whole counter again, so it waits until the total is
        # above where it was.
        self._highest: dict[str, float] = {}
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Nothing: asking the account at registration would take the settled requests away."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        snapshot = self._account.snapshot(take_settled=True)
        model = snapshot.model_name
        power = GaugeMetricFamily(
            "wattserve_device_power_watts", "Power of the device as its sensor gave it last.", labels=_DEVICE
        )
        energy = CounterMetricFamily(
            "wattserve_device_energy_joules", "Joules the device's counter gained.", labels=_DEVICE
        )
        limit = GaugeMetricFamily(
            "wattserve_device_power_limit_watts", "Power limit the driver enforces.", labels=["device"]
        )
        temperature = GaugeMetricFamily(
            "wattserve_device_temperature_celsius", "Temperature of the device.", labels=["device"]
        )
        clock = GaugeMetricFamily(
            "wattserve_device_sm_clock_hertz", "Clock of the multiprocessors.", labels=["device"]
        )
        age = GaugeMetricFamily(
            "wattserve_meter_sample_age_seconds",
            "Time since the sensor gave a new value.",
            labels=["device"],
        )
        faults = CounterMetricFamily(
            "wattserve_meter_faults", "Times each fault began, by its name.", labels=["device", "reason"]
        )
        info = GaugeMetricFamily("wattserve_device_info", "1, with the device's names.", labels=_DEVICE)
        for device in snapshot.devices:
            names = (device.id, device.name, device.source)
            info.add_metric(names, 1)
            for family, labels, value in (
                (power, names, device.power_watts),
                (energy, names, device.energy_joules),
                (limit, (device.id,), device.power_limit_watts),
                (temperature, (device.id,), device.temperature_celsius),
                (clock, (device.id,), device.sm_clock_hertz),
                (age, (device.id,), device.sample_age_seconds),
            ):
                if value is not None:
                    family.add_metric(labels, value)
            for reason, count in device.faults.items():
                faults.add_metric((device.id, reason), count)
        for reason, count in snapshot.faults.items():
            faults.add_metric(("", reason), count)
        buckets = CounterMetricFamily(
            "wattserve_energy_joules",
            "Settled joules by what they were spent on; the buckets add up to the counters.",
            labels=["bucket", "component", "model"],
        )
        for bucket, joules in self.buckets(snapshot).items():
            if joules < -ROUNDING_JOULES:
                continue
            self._highest[bucket] = max(joules, self._highest.get(bucket, 0.0))
            # `bucket` is the earlier name of the label.
            buckets.add_metric((bucket, bucket, model), self._highest[bucket])
        yield from (power, energy, limit, temperature, clock, age, faults, info, buckets)
        for request in snapshot.settled_requests:
            if request.joules is not None:
                self._joules.labels(model).observe(request.joules)
                self._count(request.group, request.joules)
        yield from self._joules.collect()
        yield from self._by_tenant(model)
        yield from self._disagreement()
        yield InfoMetricFamily("wattserve", "What is served, and by what.", value=self._info)

    def buckets(self, snapshot: MonitorSnapshot) -> dict[str, float]:
        """Settled joules by bucket."""
        return snapshot.bucket_joules

    def _count(self, group: str, joules: float) -> None:
        tenant = group or NO_TENANT
        if tenant not in self._tenants and len(self._tenants) >= MOST_TENANTS:
            tenant = OTHER_TENANTS
        total, requests = self._tenants.get(tenant, (0.0, 0))
        self._tenants[tenant] = (total + joules, requests + 1)

    def _by_tenant(self, model: str) -> Iterator[Metric]:
        energy = CounterMetricFamily(
            "wattserve_tenant_energy_joules",
            "Attributed energy (above idle) of requests whose energy is final, by tenant.",
            labels=["tenant", "model"],
        )
        requests = CounterMetricFamily(
            "wattserve_tenant_requests",
            "Requests whose energy is final, by tenant.",
            labels=["tenant", "model"],
        )
        for tenant, (joules, count) in self._tenants.items():
            energy.add_metric((tenant, model), joules)
            requests.add_metric((tenant, model), count)
        yield from (energy, requests)

    def _disagreement(self) -> Iterator[Metric]:
        """Counter against integrated power, where the self-test measured it."""
        devices = (self.selftest or {}).get("devices", [])
        family = GaugeMetricFamily(
            "wattserve_meter_disagreement_ratio",
            "Counter's joules over those of integrated power, minus 1, in the self-test.",
            labels=["device"],
        )
        for device in devices:
            value = device.get("disagreement_ratio")
            if value is not None:
                family.add_metric((str(device.get("id", "")),), float(value))
        if family.samples:
            yield family
