"""The dashboard of the devices and their sensors: power, clocks, heat, and whether the meter is right."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.generate import shell, units, variables
from dashboards.generate.panels import Query, number, series
from dashboards.generate.queries import faults

_D = 'device=~"$device"'
_I = "$__rate_interval"
_NAME = "{{name}} {{device}} ({{source}})"


def _now() -> list[object]:
    return [
        number(
            "Energy source",
            units.COUNT,
            "The sensors in use. `modelled` is a virtual GPU: no sensor measured it.",
            Query(f"count by (source) (wattserve_device_power_watts{{{_D}}})", "{{source}}"),
            text=True,
        ),
        number(
            "Devices",
            units.COUNT,
            "Metered devices.",
            Query(f"count(wattserve_device_power_watts{{{_D}}})"),
        ),
        number(
            "Hottest device",
            units.CELSIUS,
            "Highest device temperature now.",
            Query(f"max(wattserve_device_temperature_celsius{{{_D}}})"),
            limits=((80, "orange"), (90, "red")),
        ),
        number(
            "Closest to its power limit",
            units.RATIO,
            "Power over limit of the device nearest to it. At the limit clocks drop, so joules and "
            "latency are those "
            "of a capped device.",
            Query(
                f"max(wattserve_device_power_watts{{{_D}}} "
                f"/ on (instance, device) wattserve_device_power_limit_watts{{{_D}}})"
            ),
            limits=((0.98, "orange"),),
        ),
        number(
            "Oldest sample",
            units.SECONDS,
            "Age of the oldest last sample.",
            Query(f"max(wattserve_meter_sample_age_seconds{{{_D}}})"),
            limits=((2, "orange"), (5, "red")),
        ),
        number(
            "Metered servers up",
            units.COUNT,
            "Servers that Prometheus reaches.",
            Query('sum(up{job="wattserve"})'),
        ),
    ]


def _devices() -> list[object]:
    return [
        series(
            "Power and limit",
            units.WATTS,
            "The power sensor's reading at each scrape, and the limit that the driver enforces.",
            Query(f"wattserve_device_power_watts{{{_D}}}", _NAME),
            Query(f"wattserve_device_power_limit_watts{{{_D}}}", "limit {{device}}", dashed=True),
        ),
        series(
            "Counter against power",
            units.WATTS,
            "Mean power from the joule counter, and the mean of the power sensor's readings. Two "
            "sensors of the same "
            "thing: they should lie on each other.",
            Query(f"rate(wattserve_device_energy_joules_total{{{_D}}}[{_I}])", "counter {{device}}"),
            Query(f"avg_over_time(wattserve_device_power_watts{{{_D}}}[{_I}])", "power {{device}}"),
        ),
        series(
            "SM clock",
            units.HERTZ,
            "Clock of the device's multiprocessors: falls when the device is capped by power or heat.",
            Query(f"wattserve_device_sm_clock_hertz{{{_D}}}", "{{device}}"),
        ),
        series(
            "Temperature",
            units.CELSIUS,
            "Device temperature.",
            Query(f"wattserve_device_temperature_celsius{{{_D}}}", "{{device}}"),
        ),
    ]


def _meter() -> list[object]:
    return [
        series(
            "Counter and integrated power disagree by",
            units.RATIO,
            "Relative difference of the two over the meter's own check. Above 2 % the energy figures "
            "carry the flag "
            "`sensor_disagreement`.",
            Query(f"wattserve_meter_disagreement_ratio{{{_D}}}", "{{device}}"),
        ),
        series(
            "Age of the last sample",
            units.SECONDS,
            "Seconds since the device was last read. The alert fires above 5 s.",
            Query(f"wattserve_meter_sample_age_seconds{{{_D}}}", "{{device}}"),
        ),
        series(
            "Faults",
            units.FAULTS_PER_SECOND,
            "Named faults a second, by device and reason (docs/measurement.md tells what each means). "
            "`none`: a device answers without one.",
            faults(),
        ),
        series(
            "Unattributed power",
            units.WATTS,
            "Energy above idle that belongs to no request's step. It should stay near zero.",
            Query(
                f'sum by (model) (rate(wattserve_energy_joules_total{{bucket="unattributed"}}[{_I}]))',
                "{{model}}",
            ),
        ),
        series(
            "Lateness of the virtual GPU",
            units.SECONDS,
            "Only with `wattserve sim`: how much later than planned its steps ended. A late simulator "
            "is a wrong one, "
            "and says so.",
            Query(
                "histogram_quantile(0.99, sum by (le) "
                f"(rate(wattserve_simulation_late_seconds_bucket[{_I}])))",
                "p99",
            ),
            span=24,
        ),
    ]


def build() -> Dashboard:
    """The dashboard."""
    return shell.dashboard(
        shell.GPU_AND_METER,
        "The metered devices and their sensors: power, limit, clocks and temperature, and whether the "
        "meter is right.",
        [variables.datasource(), variables.device(), variables.run()],
        [("Now", _now()), ("Devices", _devices()), ("Meter", _meter())],
    )
