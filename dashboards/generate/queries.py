"""Queries that more than one dashboard shows."""

from __future__ import annotations

from dashboards.generate.panels import Query


def faults() -> Query:
    """Faults a second, by device and reason.

    A fault that never happened has no counter, so a device that is read has a line `none` at zero: without it
    a healthy meter and a missing one would look the same.
    """
    rate = 'sum by (device, reason) (rate(wattserve_meter_faults_total{device=~"$device"}[$__rate_interval]))'
    read = '0 * sum by (device) (wattserve_device_power_watts{device=~"$device"})'
    return Query(f'{rate} or label_replace({read}, "reason", "none", "", "")', "{{reason}} {{device}}")
