"""Queries, and parts of them, that more than one dashboard shows."""

from __future__ import annotations

from typing import Final

from dashboards.generate.panels import Query

# Which servers: variables of every dashboard that shows a server's own metrics. Outside Kubernetes there is
# no label `namespace`; the pattern of "All" matches that too.
WHERE: Final = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
DEVICE: Final = f'{WHERE},device=~"$device"'


def percentiles(metric: str, selector: str, *, by: str = "", prefix: str = "") -> tuple[Query, ...]:
    """p50, p95 and p99 of a histogram, by the labels of `by`; `prefix` begins the legend."""
    labels = f"{by}, le" if by else "le"
    return tuple(
        Query(
            f"histogram_quantile({level}, sum by ({labels}) "
            f"(rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            f"{prefix}p{round(level * 100)}",
        )
        for level in (0.5, 0.95, 0.99)
    )


def faults() -> Query:
    """Faults that began within five minutes, by device and reason.

    A fault that never happened has no counter, so a device that is read has a line `none` at zero: without it
    a healthy meter and a missing one would look the same.
    """
    found = f"sum by (device, reason) (increase(wattserve_meter_faults_total{{{DEVICE}}}[5m]))"
    read = f"0 * sum by (device) (wattserve_device_power_watts{{{DEVICE}}})"
    return Query(f'{found} or label_replace({read}, "reason", "none", "", "")', "{{reason}} {{device}}")


def source() -> Query:
    """The sources of the joules, by name; 1 for a simulated one, so that it can be coloured."""
    power = f"wattserve_device_power_watts{{{DEVICE}"
    return Query(
        f'clamp_max(count by (source) ({power},source="modelled"}}), 1) '
        f'or 0 * count by (source) ({power},source!="modelled"}})',
        "{{source}}",
    )
