"""The node's components under /metrics: a counter for each sensor, labelled with what it is a part of."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wattserve.meter.components.components import Components

_LABELS = ("component", "device", "source")


class ComponentCollector(Collector):
    """What `components` have counted. Components overlap (the node holds the others), so they are never to be
    summed; devices of one component are. What a sensor does not give is absent, never 0.
    """

    def __init__(self, components: Components, *, registry: CollectorRegistry) -> None:
        self._components = components
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        energy = CounterMetricFamily(
            "wattserve_component_energy_joules",
            "Joules that the sensor of a part of the node counted; components overlap.",
            labels=_LABELS,
        )
        power = GaugeMetricFamily(
            "wattserve_component_power_watts", "Power of the part as its sensor gave it last.", labels=_LABELS
        )
        age = GaugeMetricFamily(
            "wattserve_component_sample_age_seconds",
            "Time since the sensor gave a new value.",
            labels=_LABELS,
        )
        for component, device in self._components.status():
            labels = (component, device.id, device.source)
            for family, value in (
                (energy, device.energy_joules),
                (power, device.power_watts),
                (age, device.sample_age_seconds),
            ):
                if value is not None:
                    family.add_metric(labels, value)
        yield from (energy, power, age)
