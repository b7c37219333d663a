"""The dashboard of GPUs and their sensors: power, clocks, temperature, and whether the meter is right."""

from __future__ import annotations

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, number, series
from dashboards.generate.queries import DEVICE, WHERE, faults, source
from grafana_foundation_sdk.builders.dashboard import Dashboard

_I = "$__rate_interval"
_NAME = "{{name}} {{device}} ({{source}})"


def _now() -> list[object]:
    return [
        number(
            "Energy source",
            units.COUNT,
            "The sensors in use. Orange: `modelled`, a simulated GPU, which no sensor measured.",
            source(),
            limits=((1, "orange"),),
            text=True,
        ),
        number(
            "Devices",
            units.COUNT,
            "Number of metered devices.",
            Query(f"count(wattserve_device_power_watts{{{DEVICE}}})"),
        ),
        number(
            "Maximum temperature",
            units.CELSIUS,
            "Of the hottest device. Clocks drop near 90 °C: look at its cooling.",
            Query(f"max(wattserve_device_temperature_celsius{{{DEVICE}}})"),
            limits=((80, "orange"), (90, "red")),
        ),
        number(
            "Power, share of limit",
            units.RATIO,
            "Of the device nearest to its limit. At the limit clocks drop: figures are those of a capped "
            "device.",
            Query(
                f"max(wattserve_device_power_watts{{{DEVICE}}} "
                f"/ on (instance, device) wattserve_device_power_limit_watts{{{DEVICE}}})"
            ),
            limits=((0.98, "orange"),),
        ),
        number(
            "Oldest meter sample",
            units.SECONDS,
            "Age of the oldest value in use. Above 5 s: is the driver or the meter stuck?",
            Query(f"max(wattserve_meter_sample_age_seconds{{{DEVICE}}})"),
            limits=((2, "orange"), (5, "red")),
        ),
        number(
            "Servers up",
            units.COUNT,
            "Metered servers that Prometheus reaches.",
            Query(f"sum(up{{{WHERE}}})"),
        ),
    ]


def _devices() -> list[object]:
    return [
        series(
            "Power and power limit",
            units.WATTS,
            "The power sensor's reading at each scrape, and the limit that the driver enforces.",
            Query(f"wattserve_device_power_watts{{{DEVICE}}}", _NAME),
            Query(f"wattserve_device_power_limit_watts{{{DEVICE}}}", "limit {{device}}", dashed=True),
        ),
        series(
            "Energy counter and power sensor",
            units.WATTS,
            "Mean power from the energy counter, and mean of the power sensor's readings. The two should "
            "agree: where they "
            "part, trust neither before a self-test (`wattserve meter --selftest`).",
            Query(f"rate(wattserve_device_energy_joules_total{{{DEVICE}}}[{_I}])", "counter {{device}}"),
            Query(f"avg_over_time(wattserve_device_power_watts{{{DEVICE}}}[{_I}])", "power {{device}}"),
        ),
        series(
            "SM clock",
            units.HERTZ,
            "Clock of the multiprocessors. It falls when the device is limited by power or temperature.",
            Query(f"wattserve_device_sm_clock_hertz{{{DEVICE}}}", "{{device}}"),
        ),
        series(
            "Temperature",
            units.CELSIUS,
            "Temperature of each device.",
            Query(f"wattserve_device_temperature_celsius{{{DEVICE}}}", "{{device}}"),
        ),
    ]


def _meter() -> list[object]:
    return [
        series(
            "Counter against power, relative difference",
            units.RATIO,
            "In the meter's self-test. Beyond 2 % energy figures carry the flag `sensor_disagreement`.",
            Query(f"wattserve_meter_disagreement_ratio{{{DEVICE}}}", "{{device}}"),
        ),
        series(
            "Meter sample age",
            units.SECONDS,
            "Time since each device gave a new value. Above 5 s an alert fires.",
            Query(f"wattserve_meter_sample_age_seconds{{{DEVICE}}}", "{{device}}"),
        ),
        series(
            "Meter faults (5 min)",
            units.COUNT,
            "Named faults that began within five minutes; docs/explanation/measurement.md has what each "
            "means. `none`: "
            "the device responds without one.",
            faults(),
        ),
        series(
            "Unattributed power",
            units.WATTS,
            "Power above idle that belongs to no request. It should stay near 0: lost step records or a "
            "wrong idle power "
            "raise it.",
            Query(
                "sum by (model) "
                f'(rate(wattserve_energy_joules_total{{{WHERE},component="unattributed",model!="no-engine"}}[{_I}]))',
                "{{model}}",
            ),
        ),
        series(
            "Simulator delay",
            units.SECONDS,
            "Only with `wattserve sim`: how much later than planned its steps ended. Above 10 ms its "
            "latencies are wrong: "
            "free the machine.",
            Query(
                "histogram_quantile(0.99, sum by (le) "
                f"(rate(wattserve_simulation_late_seconds_bucket{{{WHERE}}}[{_I}])))",
                "p99",
            ),
            span=24,
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.GPU_AND_METER,
        "Metered GPUs and their sensors: power, limit, clocks and temperature, and whether the meter is "
        "right.",
        [variables.datasource(), *variables.servers(), variables.device(), variables.run()],
        [("Now", _now()), ("GPUs", _devices()), ("Meter health", _meter())],
    )
