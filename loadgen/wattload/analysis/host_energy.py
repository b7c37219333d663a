"""The host's joules beside the accelerators', divided among requests by share of busy time.

Nothing tells which request a CPU worked for. What can be defended is: while no request is in flight, none
caused it; while some are, they are equal. So E(host) * busy / window is divided, at each moment in equal
parts among the N(t) requests in flight, and the rest is a figure of its own. The parts add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattload.rundir.requests import F64, Requests
from wattload.rundir.result import HostInfo
from wattload.rundir.run import RunData

# Separate zones of RAPL, which do not overlap. `platform`, `module` and `node` hold others' too.
HOST_PARTS = ("cpu_package", "dram")


def host_energy(data: RunData, components: dict[str, Any] | None) -> HostInfo | None:
    """The section of run.json; None where no CPU package is metered or its joules are not known."""
    known = {
        name: float(entry["joules"])
        for name in HOST_PARTS
        if isinstance(entry := (components or {}).get(name), dict)
        and isinstance(entry.get("joules"), int | float)
    }
    lacking = [name for name in HOST_PARTS if name in (components or {}) and name not in known]
    if "cpu_package" not in known or lacking:
        return None
    start, end = data.window.start_unix, data.window.end_unix
    shares, busy_seconds = busy_shares(data.requests, start, end)
    joules, fraction = sum(known.values()), busy_seconds / (end - start)
    each = joules * shares / (end - start)
    done = data.done & ~np.isnan(each)
    tags = sorted({str(tag) for tag in data.requests.tag[~np.isnan(each)]} - {""})
    return HostInfo(
        joules=joules,
        parts=list(known),
        busy_fraction=fraction,
        divided_joules=joules * fraction,
        undivided_joules=joules * (1.0 - fraction),
        per_request_joules=float(each[done].mean()) if done.any() else None,
        by_tag={tag: float(np.nansum(each[data.requests.tag == tag])) for tag in tags} or None,
    )


def busy_shares(requests: Requests, start: float, end: float) -> tuple[F64, float]:
    """(each request's share in seconds, shape (N,); seconds of [start, end) with a request in flight).

    The shares add up to the seconds. A request that was not sent, or whose end is not known, has NaN.
    """
    begun = np.clip(requests.sent, start, end)
    ended = np.clip(requests.last, start, end)
    known = ~np.isnan(begun) & ~np.isnan(ended)
    low, high = begun[known], np.maximum(ended[known], begun[known])
    times = np.concatenate((low, high, [start, end]))
    steps = np.concatenate((np.ones(len(low)), -np.ones(len(high)), [0.0, 0.0]))
    order = np.argsort(times, kind="stable")
    times, flying = times[order], np.cumsum(steps[order])[:-1]
    lengths = np.diff(times)
    busy = flying > 0
    each = np.where(busy, lengths / np.maximum(flying, 1.0), 0.0)
    gone = np.concatenate(([0.0], np.cumsum(each)))
    shares = np.full(len(begun), np.nan)
    shares[known] = np.interp(high, times, gone) - np.interp(low, times, gone)
    return shares, float(lengths[busy].sum())
